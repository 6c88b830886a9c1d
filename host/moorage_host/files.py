"""Files written as if power fails, with the mode they should have from the first byte on."""

from __future__ import annotations

import os
from pathlib import Path

from moorage_host.errors import HostError


def private_folder(path: Path) -> Path:
    """Make `path` (with its parents) a folder that its owner alone can enter. Idempotent."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    except OSError as error:
        raise HostError(
            f"cannot make the folder {path}: {error.strerror}", hint="check who owns its parent folder"
        ) from error
    return path


def write_atomically(path: Path, content: str, *, mode: int = 0o600) -> None:
    """Replace `path` by `content`: a reader, or the next start after a power loss, sees the old file or the new one whole."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise HostError(
            f"cannot write {path}: {error.strerror}", hint="is the disk full, or the folder not yours?"
        ) from error
