"""RUN --mount: what may be mounted while a command runs, read and checked; putting it in place is for `running`."""

import csv
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from moorage_guest.images.build.dialect import Statement

KINDS = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")

_ALIASES = {
    "dst": "target", "destination": "target", "src": "source", "ro": "readonly", "rw": "readwrite",
}  # fmt: skip
_FLAGS = {"readonly", "readwrite", "required"}
_ALLOWED = {
    "bind": {"source", "from", "readwrite", "readonly"},
    "cache": {"id", "source", "from", "sharing", "readonly", "readwrite", "mode", "uid", "gid"},
    "tmpfs": {"size"},
    "secret": {"id", "source", "required", "mode", "uid", "gid", "env"},
    "ssh": {"id", "required", "mode", "uid", "gid"},
}
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Mount:
    """One --mount. ``target`` is absolute, "" for a secret that is only a variable; ``origin`` is the stage, image or context."""

    kind: str
    target: str
    source: str = "/"
    origin: str = ""
    writable: bool = False
    id: str = ""
    sharing: str = "shared"
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: int = 0
    variable: str = ""


def read_mount(statement: Statement, text: str, expand: Callable[[str], str], folder: str) -> Mount:
    """Read the value of one --mount; ``folder`` is the working directory. Raises BuildError."""
    given = _fields(statement, text, expand)
    kind = given.pop("type", "bind").lower()
    if kind not in KINDS:
        raise statement.error(f'unsupported mount type "{kind}"')
    for key in given:
        if key in ("mode", "uid", "gid") and key not in _ALLOWED[kind]:
            raise statement.error(f'{key} not allowed for "{kind}" type mounts')
        if key != "target" and key not in _ALLOWED[kind]:
            raise statement.error(f"unexpected key '{key}' for mount type \"{kind}\"")
    target = given.get("target", "")
    sharing = given.get("sharing", "shared").lower()
    if sharing not in SHARING:
        raise statement.error(f'unsupported sharing value "{sharing}"')
    if kind == "secret":
        target = _secret_target(statement, given)
    nowhere = not target and kind in ("secret", "ssh")
    absolute = "" if nowhere else posixpath.normpath(posixpath.join("/", folder, target)).replace("//", "/")
    if absolute == "/":
        raise statement.error(f'invalid mount target "{absolute}"')
    return Mount(
        kind, absolute, source=given.get("source", "/"), origin=given.get("from", ""), writable=_writable(kind, given),
        id=_id(kind, given, absolute), sharing=sharing, required=given.get("required", "false") == "true",
        mode=_number(statement, "mode", given["mode"], 8) if "mode" in given else None,
        uid=_number(statement, "uid", given.get("uid", "0")), gid=_number(statement, "gid", given.get("gid", "0")),
        size=_size(statement, given.get("size", "0")), variable=given.get("env", ""),
    )  # fmt: skip


def _fields(statement: Statement, text: str, expand: Callable[[str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in next(csv.reader([text]), []):
        key, equals, value = field.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if key in _FLAGS:
            value = (value if equals else "true").lower()
            if value not in ("true", "false", "1", "0"):
                raise statement.error(f"invalid value for {key}: {value}")
            found[key] = "true" if value in ("true", "1") else "false"
        elif not equals:
            raise statement.error(f"invalid field '{field}' must be a key=value pair")
        else:
            found[key] = value if key in ("type", "from") else expand(value)
    return found


def _secret_target(statement: Statement, given: dict[str, str]) -> str:
    given.setdefault("id", given.get("source", "") or posixpath.basename(given.get("target", "")))
    if not given["id"]:
        raise statement.error('secret mount needs "id": which of the client\'s secrets is meant')
    if given.get("target"):
        return given["target"]
    return "" if given.get("env") else f"/run/secrets/{posixpath.basename(given['id'])}"


def _writable(kind: str, given: dict[str, str]) -> bool:
    if kind == "cache":
        return given.get("readonly", "false") != "true" and given.get("readwrite", "true") == "true"
    return given.get("readwrite", "false") == "true" or given.get("readonly", "true") == "false"


def _id(kind: str, given: dict[str, str], target: str) -> str:
    return given.get("id") or {"cache": target, "ssh": "default"}.get(kind, "")


def _number(statement: Statement, key: str, text: str, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise statement.error(f"invalid value {text} for {key}") from None


def _size(statement: Statement, text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([bkmgt]?)i?b?", text.strip().lower())
    if match is None:
        raise statement.error(f"invalid value for size: {text}")
    return int(match[1]) * _UNITS[match[2]]
