"""The docker CLI's context for the machine: made and removed with it, never in place of somebody else's."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import write_atomically

DESCRIPTION = "Moorage container engine"


def _meta(config: Path, name: str) -> Path:
    return config / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"


def exists(config: Path, name: str) -> bool:
    """Whether docker knows a context of this name that is ours."""
    return _ours(_meta(config, name)) is True


def create(config: Path, name: str, socket: Path) -> None:
    """Make the context `name` lead to `socket`. Idempotent; raises HostError when another program's context has the name."""
    meta = _meta(config, name)
    if _ours(meta) is False:
        raise HostError(
            f"docker already has a context named {name} that is not Moorage's",
            hint=f"use `docker --host unix://{socket}`, or remove that context (docker context rm {name}) and start again",
            code=ErrorCode.CONFLICT,
        )
    content = {
        "Name": name,
        "Metadata": {"Description": DESCRIPTION},
        "Endpoints": {"docker": {"Host": f"unix://{socket}", "SkipTLSVerify": False}},
    }
    try:
        meta.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot make docker's context folder {meta.parent}: {error.strerror}", hint="who owns ~/.docker?"
        ) from error
    text = json.dumps(content)
    with contextlib.suppress(OSError):
        if meta.read_text(encoding="utf-8") == text:
            return
    write_atomically(meta, text, mode=0o644)


def remove(config: Path, name: str) -> None:
    """Remove the context when it is ours. Idempotent."""
    meta = _meta(config, name)
    if _ours(meta) is True:
        meta.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            meta.parent.rmdir()


def _ours(meta: Path) -> bool | None:
    """None: there is no such context."""
    try:
        content = json.loads(meta.read_text(encoding="utf-8"))
        return bool(content["Metadata"].get("Description") == DESCRIPTION)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
