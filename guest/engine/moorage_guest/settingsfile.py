"""Reads a file that a user edits: whatever is there in its place, the reader neither waits nor fills its memory.

Standard library only, since the agent uses it.
"""

import errno
import os
import stat
from pathlib import Path

#: Largest daemon.json in bytes.
MAX_BYTES = 1024 * 1024


def read_text(path: Path) -> str:
    """Return a regular file's text. Raises FileNotFoundError, OSError with the reason, or UnicodeDecodeError. Never blocks."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it has to be a regular file", str(path))
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES} bytes", str(path))
    return data.decode()
