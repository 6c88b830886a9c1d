"""Mount points that a command's root file system lacked: found before it runs, taken away after. All blocks."""

import contextlib
import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage_guest.images.archive import opened

#: Where the container has file systems of its own.
_ELSEWHERE = ("/dev", "/proc", "/sys")

#: Of a folder that hides the one below, as one does that was removed and made anew.
_OPAQUE = {"trusted.overlay.opaque", "user.overlay.opaque"}


@dataclass(frozen=True)
class Stub:
    """One path that is only made to be mounted on."""

    path: str


@dataclass(frozen=True)
class Above:
    """A folder above stubs as it was: the overlay copies it when something is made in it."""

    path: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Stubs:
    """All of one command's, outermost first."""

    made: tuple[Stub, ...]
    above: tuple[Above, ...]


def missing(root: Path, targets: Sequence[str]) -> Stubs:
    """Return what has to be made for things to be mounted at ``targets``."""
    made: dict[str, Stub] = {}
    above: dict[str, Above] = {}
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        prefix = str(Path(f"/proc/self/fd/{top}").readlink()).rstrip("/")
        for target in targets:
            if any(f"{target}/".startswith(f"{each}/") for each in _ELSEWHERE):
                continue
            here = ""
            over: list[Above] = []
            gone = False
            for part in target.strip("/").split("/"):
                path = f"{here}/{part}"
                if not gone:
                    try:
                        with opened(top, path, os.O_PATH) as descriptor:
                            found = str(Path(f"/proc/self/fd/{descriptor}").readlink())
                            here = found[len(prefix) :] if found.startswith(f"{prefix}/") else ""
                            status = os.fstat(descriptor)
                            over.append(Above(here, status.st_mode, status.st_uid, status.st_gid))
                        continue
                    except OSError:
                        gone = True
                here = path
                made[path] = Stub(path)
            if gone:
                above.update({each.path: each for each in over if each.path})
    finally:
        os.close(top)
    return Stubs(tuple(made[path] for path in sorted(made)), tuple(above[path] for path in sorted(above)))


def tidy(diff: Path, stubs: Stubs) -> None:
    """Remove from a folder of changes what was only mounted on. A command may have put anything there: no link is followed out."""
    top = os.open(diff, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for stub in reversed(stubs.made):
            _remove_empty(top, stub.path)
        for folder in reversed(stubs.above):
            _restore(top, folder)
    finally:
        os.close(top)


def _remove_empty(top: int, path: str) -> None:
    head, leaf = posixpath.split(path)
    with contextlib.suppress(OSError), opened(top, head) as parent:
        status = os.stat(leaf, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(leaf, dir_fd=parent)
        elif stat.S_ISREG(status.st_mode) and not status.st_size:
            os.unlink(leaf, dir_fd=parent)


def _restore(top: int, folder: Above) -> None:
    """Take away a folder that is nothing but a copy of the one below."""
    head, leaf = posixpath.split(folder.path)
    with contextlib.suppress(OSError), opened(top, folder.path, os.O_RDONLY | os.O_DIRECTORY) as found:
        status = os.fstat(found)
        same = (status.st_mode, status.st_uid, status.st_gid) == (folder.mode, folder.uid, folder.gid)
        if same and not _OPAQUE.intersection(os.listxattr(found)):
            with opened(top, head) as parent:
                os.rmdir(leaf, dir_fd=parent)
