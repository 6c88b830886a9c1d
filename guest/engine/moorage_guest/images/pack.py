"""Packs a folder tree as a tar stream: a layer (overlayfs whiteouts become ``.wh.`` files) or a plain root file system.

The same tree gives the same bytes: names are sorted and times cut to seconds. Links are never followed, and
entries are named by folder descriptor: nothing that a running container renames meanwhile leads out of the tree.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.idmap import SAME, IdMap
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
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_KINDS = {
    stat.S_IFREG: REGULAR, stat.S_IFDIR: FOLDER, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK_DEVICE, stat.S_IFIFO: FIFO,
}  # fmt: skip


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark for a removed entry."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: str | Path | int) -> bool:
    """Whether overlayfs hides what lower layers have in this folder."""
    try:
        return os.getxattr(path, OPAQUE_XATTR) == b"y"
    except OSError:
        return False


def _xattrs(descriptor: int) -> dict[str, bytes]:
    """Return the attributes that belong into an archive."""
    try:
        names = os.listxattr(descriptor)
    except OSError:
        return {}
    found = {}
    for name in names:
        if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
            try:
                value = os.getxattr(descriptor, name)
                found[name] = _without_root(value) if name == "security.capability" else value
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                    raise
    return found


def _without_root(capability: bytes) -> bytes:
    """Return a file's capabilities without whose they are: a number that means nothing outside of this machine."""
    version, size = capability[3:4], 20
    return capability[:3] + b"\x02" + capability[4:size] if version == b"\x03" else capability


@dataclass
class Packer:
    """Yields the tar stream of trees. Hard links are kept inside one packer."""

    layer: bool = False
    """Turn whiteouts and opaque folders into ``.wh.`` entries."""
    ids: IdMap = SAME
    """Who owns the files on disk; archives have the containers' own numbers."""
    seen: dict[tuple[int, int], str] = field(default_factory=dict)

    def children(self, folder: int, name: str = "") -> Iterator[bytes]:
        """Yield everything in an open folder, each name put behind ``name``."""
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in found)
        for leaf in names:
            with contextlib.suppress(FileNotFoundError):
                yield from self.one(folder, leaf, f"{name.rstrip('/')}/{leaf}" if name else leaf)

    def one(self, folder: int, leaf: str, name: str) -> Iterator[bytes]:
        """Yield the entry ``leaf`` of an open folder, called ``name`` in the archive, with all that is in it."""
        status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
        if self.layer and is_whiteout(status):
            head, slash, last = name.rpartition("/")
            mtime = int(status.st_mtime) * 1_000_000_000
            yield header(Entry(f"{head}{slash}{WHITEOUT}{last}", REGULAR, 0, 0o600, 0, 0, mtime, "", 0, 0, 0))
            return
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:  # sockets have no place in an archive
            return
        uid, gid = self.ids.inside(status.st_uid, status.st_gid) if self.ids else (status.st_uid, status.st_gid)
        entry = Entry(name, kind, 0, stat.S_IMODE(status.st_mode), uid, gid, status.st_mtime_ns, "", 0, 0, 0)
        if kind == FOLDER:
            yield from self._folder(folder, leaf, entry)
            return
        if kind in (CHARACTER, BLOCK_DEVICE):
            entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif kind == SYMLINK:
            entry.link = os.readlink(leaf, dir_fd=folder)
            entry.mode = 0o777
        if status.st_nlink > 1:
            first = self.seen.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                entry.kind, entry.link = HARD_LINK, first
                yield header(entry)
                return
        if kind != REGULAR:
            yield header(entry)
            return
        descriptor = os.open(leaf, _FILE_FLAGS, dir_fd=folder)
        try:
            yield from self._content(descriptor, entry)
        finally:
            os.close(descriptor)

    def _folder(self, folder: int, leaf: str, entry: Entry) -> Iterator[bytes]:
        try:
            descriptor = os.open(leaf, _FOLDER_FLAGS, dir_fd=folder)
        except NotADirectoryError:  # replaced while it was looked at
            return
        try:
            name = entry.name
            entry.name = f"{name.rstrip('/')}/"
            entry.xattrs = _xattrs(descriptor)
            yield header(entry)
            if self.layer and is_opaque(descriptor):
                yield header(Entry(f"{name}/{OPAQUE}", REGULAR, 0, 0o600, 0, 0, 0, "", 0, 0, 0))
            yield from self.children(descriptor, name)
        finally:
            os.close(descriptor)

    def _content(self, descriptor: int, entry: Entry) -> Iterator[bytes]:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return
        entry.size = status.st_size
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


def _pack(root: Path, packer: Packer) -> Generator[bytes, None, None]:
    descriptor = os.open(root, _FOLDER_FLAGS)
    try:
        yield from packer.children(descriptor)
        yield END * 2
    finally:
        os.close(descriptor)


def pack_layer(diff: Path, ids: IdMap = SAME) -> Iterator[bytes]:
    """Yield the tar stream of an overlay's upper folder."""
    return _pack(diff, Packer(layer=True, ids=ids))


def pack_tree(root: Path, ids: IdMap = SAME) -> Generator[bytes, None, None]:
    """Yield the tar stream of a root file system."""
    return _pack(root, Packer(ids=ids))
