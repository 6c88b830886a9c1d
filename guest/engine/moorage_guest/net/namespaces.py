"""Makes, enters and removes network namespaces that are kept by a bind mount.

A namespace lives until its mount, its processes and every socket in it are gone. What is in it belongs to `links`.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_NS_GET_NSTYPE = 0xB703
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Run the block with the calling thread in another network namespace, given as a file descriptor."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(namespace, _CLONE_NEWNET), "enter network namespace")
        try:
            yield
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET), "return to the network namespace")
    finally:
        os.close(home)


def create(path: Path) -> int:
    """Make a namespace, pin it at ``path`` and return a descriptor of it. What was at ``path`` before is dropped."""
    remove(path)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _check(_libc.unshare(_CLONE_NEWNET), "make network namespace")
        try:
            _check(
                _libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), None, _MS_BIND, None),
                f"keep network namespace at {path}",
            )
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET), "return to the network namespace")
    except BaseException:
        remove(path)
        raise
    finally:
        os.close(home)


def open_path(path: Path) -> int | None:
    """Return a descriptor of the namespace pinned at ``path``, or None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if not _is_namespace(descriptor):
        os.close(descriptor)
        return None
    return descriptor


def is_pinned(path: Path) -> bool:
    """Whether there is a namespace at ``path``."""
    descriptor = open_path(path)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def remove(path: Path) -> None:
    """Unpin the namespace at ``path``; quiet when there is none."""
    while _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        continue
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOENT):
        raise OSError(number, f"unmount {path}: {os.strerror(number)}")
    path.unlink(missing_ok=True)


def inode(descriptor: int) -> int:
    """Return the number that identifies a namespace while it lives."""
    return os.fstat(descriptor).st_ino


def _is_namespace(descriptor: int) -> bool:
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False
