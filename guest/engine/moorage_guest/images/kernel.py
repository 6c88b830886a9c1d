"""System calls that the standard library lacks: mounts, confined path look-up, a thread's own umask and folder.

Thin: every function is one call and raises OSError with the path. Linux only; most need root.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

CLONE_FS = 0x200

#: The same number on every architecture that Linux got after 5.6.
_SYS_OPENAT2 = 437


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _fail(path: str | bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """mount(2)."""
    done = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode() or None
    )
    if done != 0:
        raise _fail(target)


def unmount(target: str | Path, *, lazy: bool = False) -> None:
    """umount2(2) that does not follow a link."""
    if _libc.umount2(os.fsencode(target), UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)) != 0:
        raise _fail(str(target))


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2(2): open ``path`` as a process whose root folder is ``root`` would. Returns a descriptor.

    Neither ``..`` nor links leave the root, even while somebody else renames things in it.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    for _attempt in range(100):
        descriptor = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(root),
            os.fsencode(path or "."),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if descriptor >= 0:
            return int(descriptor)
        error = _fail(path)
        if not isinstance(error, BlockingIOError):  # EAGAIN: something on the way was renamed just now
            raise error
    raise error


def sync_filesystem(path: Path) -> None:
    """syncfs(2): block until everything written to the file system of ``path`` is on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            raise _fail(str(path))
    finally:
        os.close(descriptor)


def _own_file_system_state(folder: str | None) -> None:
    """Give this thread an umask (0) and a working folder apart from the rest of the process."""
    if _libc.unshare(ctypes.c_int(CLONE_FS)) != 0:
        raise _fail("unshare(CLONE_FS)")
    os.umask(0)
    if folder is not None:
        os.chdir(folder)


def umask_free_executor(workers: int, name: str, folder: Path | None = None) -> ThreadPoolExecutor:
    """Return threads in which files get exactly the mode asked for and, if given, ``folder`` is the working folder."""
    return ThreadPoolExecutor(workers, name, _own_file_system_state, (None if folder is None else str(folder),))


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at ``path``; false when it does not exist."""
    try:
        return os.lstat(path).st_dev != os.lstat(path.parent).st_dev
    except (FileNotFoundError, NotADirectoryError):
        return False
