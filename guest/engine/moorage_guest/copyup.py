"""Copies a directory of an image into an empty volume, with owners, modes, times, extended attributes and hard links.

Paths are resolved inside the container's root by the kernel (openat2), so that a link in the image cannot lead out.
"""

import contextlib
import ctypes
import errno
import os
import stat
import struct
from pathlib import Path

_SYS_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_RESOLVE_NO_MAGICLINKS = 0x02
_CHUNK = 1 << 24
_libc = ctypes.CDLL(None, use_errno=True)


def open_inside(root: Path, path: str, flags: int = os.O_PATH) -> int:
    """Open ``path`` as a process with ``root`` as its root would; raises OSError as open does."""
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        name = os.fsencode(path.lstrip("/") or ".")
        descriptor = int(_libc.syscall(_SYS_OPENAT2, base, name, how, len(how)))
        if descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return descriptor
    finally:
        os.close(base)


def has_content(root: Path, path: str) -> bool:
    """Whether the image has a folder at ``path``."""
    try:
        os.close(open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        return False
    return True


def copy_up(root: Path, path: str, target: Path) -> bool:
    """Fill an empty directory with the image's content at ``path``; False when there is nothing to copy or it has content.

    The directory itself takes over the owner, mode and times of the image's.
    """
    if any(entry.name != "lost+found" for entry in target.iterdir()):
        return False
    try:
        source = open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    try:
        destination = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _Copier().directory(source, destination)
        finally:
            os.close(destination)
    finally:
        os.close(source)
    return True


class _Copier:
    """One tree; remembers hard links."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[int, str]] = {}
        self._kept: list[int] = []

    def directory(self, source: int, destination: int) -> None:
        """Copy everything in a directory, then what is said about it."""
        try:
            self._entries(source, destination)
        finally:
            for descriptor in self._kept:
                os.close(descriptor)
            self._kept.clear()

    def _entries(self, source: int, destination: int) -> None:
        keep = os.dup(destination)
        self._kept.append(keep)
        with os.scandir(source) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            self._entry(source, destination, keep, name)
        status = os.fstat(source)
        os.fchown(destination, status.st_uid, status.st_gid)
        os.fchmod(destination, stat.S_IMODE(status.st_mode))
        _attributes(source, destination)
        os.utime(destination, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _entry(self, source: int, destination: int, keep: int, name: str) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            first = self._seen.get(key)
            if first is not None:
                os.link(first[1], name, src_dir_fd=first[0], dst_dir_fd=destination, follow_symlinks=False)
                return
            self._seen[key] = (keep, name)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=destination)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            try:
                outer = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=destination)
                try:
                    self._entries(inner, outer)
                finally:
                    os.close(outer)
            finally:
                os.close(inner)
            return
        if stat.S_ISREG(status.st_mode):
            self._file(source, destination, name, status)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
        elif stat.S_ISSOCK(status.st_mode):
            return
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=destination)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=destination, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=destination)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=destination, follow_symlinks=False)

    def _file(self, source: int, destination: int, name: str, status: os.stat_result) -> None:
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=destination)
            try:
                _bytes(reader, writer)
                os.fchown(writer, status.st_uid, status.st_gid)
                os.fchmod(writer, stat.S_IMODE(status.st_mode))
                _attributes(reader, writer)
                os.utime(writer, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(writer)
        finally:
            os.close(reader)


def _bytes(reader: int, writer: int) -> None:
    try:
        while os.copy_file_range(reader, writer, _CHUNK):
            continue
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        while os.sendfile(writer, reader, None, _CHUNK):
            continue


def _attributes(source: int, destination: int) -> None:
    for name in os.listxattr(source):
        # A file system that cannot keep an attribute (tmpfs, user.*) is no reason to do without the file.
        with contextlib.suppress(OSError):
            os.setxattr(destination, name, os.getxattr(source, name))
