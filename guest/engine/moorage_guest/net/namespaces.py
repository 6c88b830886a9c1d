"""Makes, enters and removes network namespaces that are kept by a bind mount.

A namespace lives until its mount, its processes and every socket in it are gone. What is in it belongs to `links`.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from moorage_guest.idmap import IdMap

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_NS_GET_NSTYPE = 0xB703
#: Is in namespaces of its own once it echoes a line, and ends when its input does.
_HOLDER = ("unshare", "--user", "--net", "cat")

#: The same in a user namespace that there is. Executing another program there would cost it its rights.
_JOINER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.setns(os.open(sys.argv[1], os.O_RDONLY), 0x10000000) or libc.unshare(0x40000000):
    sys.exit(os.strerror(ctypes.get_errno()))
os.write(1, os.read(0, 1))
os.read(0, 1)
"""
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


def create_remapped(path: Path, user_path: Path, ids: IdMap, join: Path | None = None) -> int:
    """As `create`, in a new user namespace that is pinned at ``user_path``: whoever is root there governs the network.

    ``join`` is a user namespace to use instead of a new one. A process makes both, since one with threads, as this one, cannot enter a user namespace. Blocks for some milliseconds.
    """
    remove(path)
    remove(user_path)
    argv = _HOLDER if join is None else (sys.executable, "-ISc", _JOINER, str(join))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None and holder.stderr is not None
        try:
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            if holder.stdout.read(1) != b"\n":
                raise OSError(
                    errno.EPERM, f"make user namespace: {holder.stderr.read().decode(errors='replace').strip()}"
                )
            for kind, ranges in (("uid", ids.uids), ("gid", ids.gids)) if join is None else ():
                lines = "".join(f"{each.inside} {each.outside} {each.count}\n" for each in ranges)
                Path(f"/proc/{holder.pid}/{kind}_map").write_text(lines)
            for kind, target in (("user", user_path), ("net", path))[0 if join is None else 1 :]:
                os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                source = f"/proc/{holder.pid}/ns/{kind}"
                _check(
                    _libc.mount(source.encode(), os.fsencode(target), None, _MS_BIND, None),
                    f"keep {kind} namespace at {target}",
                )
            return os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            remove(path)
            remove(user_path)
            raise


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
