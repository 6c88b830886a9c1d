"""The files of a container that does not run, with everything mounted that it would see: for `docker cp`.

The mounts are made in a mount namespace of their own, which lives as long as the descriptor that holds it.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage_guest.idmap import SAME, IdMap
from moorage_guest.images.kernel import open_in_root

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19


@dataclass(frozen=True)
class Assembled:
    """``root`` is a descriptor of the root folder, good in every thread; `close` lets go of the mounts."""

    root: int
    namespace: int

    def close(self) -> None:
        """Give up both descriptors; the kernel then unmounts."""
        os.close(self.root)
        os.close(self.namespace)


def assemble(rootfs: Path, mounts: Sequence[tuple[Path, str]], folder: str, ids: IdMap = SAME) -> Assembled:
    """Mount each (source, destination inside) over a mounted root file system and make ``folder`` in it if it is missing.

    ``ids`` says who owns on disk what is made. Blocks. Sources that are not there are left out, as are destinations that lead nowhere. Raises OSError. A thread that
    ends with it does the work, since a thread cannot go back to the namespace it came from.
    """
    made: list[Assembled] = []
    faults: list[OSError] = []

    def work() -> None:
        try:
            made.append(_assemble(rootfs, mounts, folder, ids))
        except OSError as error:
            faults.append(error)

    thread = threading.Thread(target=work, name="assemble")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return made[0]


def _assemble(rootfs: Path, mounts: Sequence[tuple[Path, str]], folder: str, ids: IdMap) -> Assembled:
    _check(_libc.unshare(_CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _mount("none", "/", _MS_REC | _MS_SLAVE)
    with contextlib.ExitStack() as undo:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, root)
        if folder:
            with contextlib.suppress(OSError):
                os.close(_point(root, folder, ids, folder=True))
        for source, destination in sorted(mounts, key=lambda each: each[1].count("/")):
            if not source.exists():
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                point = _point(root, destination, ids, folder=source.is_dir())
                try:
                    _mount(str(source), f"/proc/self/fd/{point}", _MS_BIND | _MS_REC)
                finally:
                    os.close(point)
        namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        undo.pop_all()
        return Assembled(root, namespace)


def _point(root: int, path: str, ids: IdMap, *, folder: bool) -> int:
    """Open a path inside the root, made when it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return open_in_root(root, path.lstrip("/") or ".", os.O_PATH)
    head, _, leaf = path.rstrip("/").rpartition("/")
    above = _point(root, head, ids, folder=True)
    try:
        with contextlib.suppress(FileExistsError):
            if folder:
                os.mkdir(leaf, 0o755, dir_fd=above)
            else:
                os.close(os.open(leaf, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=above))
            os.chown(leaf, *ids.root, dir_fd=above, follow_symlinks=False)
    finally:
        os.close(above)
    return open_in_root(root, path.lstrip("/"), os.O_PATH)


def _mount(source: str, target: str, flags: int) -> None:
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None), target)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
