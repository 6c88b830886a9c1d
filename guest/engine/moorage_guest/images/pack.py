# ruff: noqa: PTH115
# Paths are strings here: for each of many entries pathlib costs more than the system call.
"""Packs a folder tree as a tar stream: a layer (overlayfs whiteouts become ``.wh.`` files) or a plain root file system.

The same tree gives the same bytes: names are sorted and times cut to seconds.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.images.tarformat import (
    BLOCK_DEVICE,
    CHARACTER,
    END,
    FIFO,
    FOLDER,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    header,
    padding,
)
from moorage_guest.images.unpack import OPAQUE, OPAQUE_XATTR, WHITEOUT

_CHUNK = 1 << 20

_KINDS = {
    stat.S_IFREG: REGULAR, stat.S_IFDIR: FOLDER, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK_DEVICE, stat.S_IFIFO: FIFO,
}  # fmt: skip


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark for a removed entry."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: str | Path) -> bool:
    """Whether overlayfs hides what lower layers have in this folder."""
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False


def _xattrs(path: str | int) -> dict[str, bytes]:
    follow = {} if isinstance(path, int) else {"follow_symlinks": False}
    try:
        names = os.listxattr(path, **follow)
    except OSError:
        return {}
    found = {}
    for name in names:
        if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
            try:
                found[name] = os.getxattr(path, name, **follow)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                    raise
    return found


@dataclass
class Packer:
    """Yields the tar stream of one tree. Hard links are kept inside one packer."""

    layer: bool
    """Turn whiteouts and opaque folders into ``.wh.`` entries."""
    seen: dict[tuple[int, int], str] = field(default_factory=dict)

    def tree(self, root: Path, name: str = "") -> Iterator[bytes]:
        """Yield everything below ``root``, each name put behind ``name``; the folder itself only if it has a name."""
        if name:
            yield from self.one(root, name)
        if root.is_dir() and not root.is_symlink():
            yield from self._folder(str(root), name)

    def end(self) -> bytes:
        """Return the two blocks that end an archive."""
        return END * 2

    def _folder(self, path: str, name: str) -> Iterator[bytes]:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        if self.layer and name and is_opaque(path):
            yield header(Entry(f"{name}/{OPAQUE}", REGULAR, 0, 0o600, 0, 0, 0, "", 0, 0, 0))
        for entry in entries:
            inner = f"{name}/{entry.name}" if name else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield from self._entry(entry.path, inner, status)
            if stat.S_ISDIR(status.st_mode):
                yield from self._folder(entry.path, inner)

    def one(self, path: Path, name: str) -> Iterator[bytes]:
        """Yield a single entry with its content."""
        return self._entry(str(path), name, path.lstat())

    def _entry(self, path: str, name: str, status: os.stat_result) -> Iterator[bytes]:
        if self.layer and is_whiteout(status):
            head, slash, leaf = name.rpartition("/")
            mtime = int(status.st_mtime) * 1_000_000_000
            yield header(Entry(f"{head}{slash}{WHITEOUT}{leaf}", REGULAR, 0, 0o600, 0, 0, mtime, "", 0, 0, 0))
            return
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:  # sockets have no place in an archive
            return
        entry = Entry(
            name, kind, 0, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, "", 0, 0, 0
        )
        if kind in (CHARACTER, BLOCK_DEVICE):
            entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif kind == SYMLINK:
            entry.link = os.readlink(path)
            entry.mode = 0o777
        elif kind == FOLDER:
            entry.name += "/"
            entry.xattrs = _xattrs(path)
        if kind != FOLDER and status.st_nlink > 1:
            first = self.seen.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                entry.kind, entry.link = HARD_LINK, first
                yield header(entry)
                return
        if kind != REGULAR:
            yield header(entry)
            return
        yield from self._content(path, entry)

    def _content(self, path: str, entry: Entry) -> Iterator[bytes]:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            entry.size = os.fstat(descriptor).st_size
            entry.xattrs = _xattrs(descriptor)
            if entry.size <= _CHUNK // 16:
                data = os.read(descriptor, entry.size) if entry.size else b""
                entry.size = len(data)
                yield header(entry) + data + padding(entry.size)
                return
            yield header(entry)
            left = entry.size
            while left:
                data = os.read(descriptor, min(_CHUNK, left))
                if not data:  # the file shrank while it was read
                    data = bytes(min(_CHUNK, left))
                left -= len(data)
                yield data
            yield padding(entry.size)
        finally:
            os.close(descriptor)


def pack_layer(diff: Path) -> Iterator[bytes]:
    """Yield the tar stream of an overlay's upper folder."""
    packer = Packer(layer=True)
    yield from packer.tree(diff)
    yield packer.end()


def pack_tree(root: Path) -> Iterator[bytes]:
    """Yield the tar stream of a root file system."""
    packer = Packer(layer=False)
    yield from packer.tree(root)
    yield packer.end()
