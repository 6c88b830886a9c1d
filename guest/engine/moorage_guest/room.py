"""Whether there is room below the data root and the exec root: said in `docker info` and in the agent's status.

Standard library only, since the agent uses it.
"""

import errno
import os
from pathlib import Path

#: Bytes and files of which fewer are as good as none.
_FEW_BYTES = 4 << 20
_FEW_FILES = 16


def shortages(data_root: Path, exec_root: Path) -> list[str]:
    """Return a sentence for each thing that has run out, none when all is well. Does not block on a healthy disk."""
    found = _of(
        data_root, "the data disk", "containers wait until their output can be logged; remove images, volumes or files"
    )
    return found + _of(exec_root, "the file system of run files", "no container can be started; free some memory")


def _of(folder: Path, name: str, advice: str) -> list[str]:
    try:
        facts = os.statvfs(folder)
    except OSError as error:
        return [f"{name} ({folder}) cannot be read: {error.strerror or errno.errorcode.get(error.errno or 0, error)}"]
    if facts.f_flag & os.ST_RDONLY:
        return [
            f"{name} ({folder}) is read-only: nothing can be changed; see the kernel's messages, and start the machine again"
        ]
    if facts.f_bavail * facts.f_frsize < _FEW_BYTES:
        return [f"{name} ({folder}) is full: {advice}"]
    if facts.f_files and facts.f_favail < _FEW_FILES:
        return [f"{name} ({folder}) can hold no more files: {advice}"]
    return []
