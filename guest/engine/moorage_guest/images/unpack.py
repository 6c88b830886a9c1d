# ruff: noqa: PTH101, PTH102, PTH108, PTH211
# Paths are strings here: for each of many entries pathlib costs more than the system call.
"""Unpacks a layer's tar into a new, empty folder in the form overlayfs wants.

Whiteouts become 0/0 character devices, opaque folders get an extended attribute. Nothing is ever written outside the
folder, and whatever an honest layer has no use for raises TarError: absolute or climbing names, links that point out of
the tree, names that lead through an absolute link, the same file twice, device nodes other than those every container has.
The caller throws the folder away when this raises.
"""

import contextlib
import errno
import mmap
import os
import stat
from collections import deque
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from moorage_guest.idmap import SAME, IdMap, Unmapped
from moorage_guest.images.streams import BufferedSource
from moorage_guest.images.tarformat import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER,
    FIFO,
    FOLDER,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    Reader,
    Skipper,
    TarError,
    read_entries,
)

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"

#: Character devices that images of old carry and every container gets anyway.
HARMLESS_DEVICES = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)})

#: Entries that one layer may have; the largest real ones have some hundred thousand.
MAX_ENTRIES = 4_000_000

#: Files, and bytes of them, that are written by a helper thread in one go; and how many such goes may wait.
_BATCH_FILES, _BATCH_BYTES, _WAITING = 64, 4 << 20, 8

#: Content up to this size is written from the mapped archive, more is copied inside the kernel.
_SMALL = 256 << 10


@dataclass
class Unpacked:
    """What came out of one layer."""

    size: int = 0
    """Bytes of regular files and of what symbolic links hold, which is how layers are measured."""
    entries: int = 0


@dataclass
class _State:
    root: str
    base: bool
    ids: IdMap = SAME
    folders: dict[str, Entry | None] = field(default_factory=lambda: {"": None})
    """Folders there are, with the entry that set their times; None for those made on the way."""
    links: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    whiteouts: set[str] = field(default_factory=set)
    inherits_group: bool = False


def clean_name(name: str) -> str:
    """Return an entry's name without ``./`` and slashes at its ends. Raises TarError when it is absolute or climbs."""
    if name.startswith("/"):
        raise TarError(f'invalid entry "{name}": absolute path in a layer')
    if "/." in name or "//" in name or name[:1] == "." or name[-1:] == "/":
        parts = [part for part in name.split("/") if part and part != "."]
        if ".." in parts:
            raise TarError(f'"{name}" is outside of the layer')
        return "/".join(parts)
    return name


class _Files:
    """Writes regular files, in helper threads if there are any: most of the time goes to the kernel, which takes both cores.

    Folders are there before their files are handed over, so files may be written in any order. To be closed.
    """

    def __init__(self, content: "_Content", state: _State, helpers: Executor | None) -> None:
        self._content = content
        self._state = state
        self._helpers = helpers
        self._batch: list[tuple[str, Entry]] = []
        self._bytes = 0
        self._running: deque[Future[None]] = deque()
        self._unsettled: set[str] = set()

    def add(self, path: str, entry: Entry) -> None:
        """Write a file, now or later. Raises TarError, OSError, also for files added before."""
        if self._helpers is None:
            self._write(path, entry)
            return
        self._batch.append((path, entry))
        self._bytes += entry.size
        if len(self._batch) >= _BATCH_FILES or self._bytes >= _BATCH_BYTES:
            if len(self._running) >= _WAITING:
                self._running.popleft().result()
            self._running.append(self._helpers.submit(self._write_all, self._batch))
            self._unsettled.update(path for path, _ in self._batch)
            self._batch, self._bytes = [], 0

    def settle(self, path: str = "") -> None:
        """Wait until a file is there, or all are. Raises TarError, OSError."""
        if path and path not in self._unsettled and all(path != waiting for waiting, _ in self._batch):
            return
        batch, self._batch, self._bytes = self._batch, [], 0
        self._write_all(batch)
        while self._running:
            self._running.popleft().result()
        self._unsettled.clear()

    def close(self) -> None:
        """Wait until nobody writes any more."""
        for future in self._running:
            future.cancel()
        wait(self._running)

    def _write_all(self, batch: list[tuple[str, Entry]]) -> None:
        for path, entry in batch:
            self._write(path, entry)

    def _write(self, path: str, entry: Entry) -> None:
        _file(path, entry, self._content)
        if self._state.inherits_group and not entry.gid:  # its folder may have forced a group on it
            os.chown(path, entry.uid, entry.gid)
            os.chmod(path, entry.mode)


class _Content(Protocol):
    """Where the content of an archive's files comes from."""

    def copy(self, entry: Entry, out: int) -> None:
        """Write the content of an entry, which was just read, to an open file."""


class _Mapped:
    """An archive on disk: what is large is copied inside the kernel."""

    def __init__(self, archive: int, size: int, view: memoryview) -> None:
        self._archive = archive
        self._size = size
        self._view = view

    def copy(self, entry: Entry, out: int) -> None:
        size, offset = entry.size, entry.offset
        if offset + size > self._size:
            raise TarError("unexpected EOF")
        if 0 < size <= _SMALL:
            written = os.write(out, self._view[offset : offset + size])
            size, offset = size - written, offset + written
        while size > 0:
            copied = self._some(out, min(size, 16 << 20), offset)
            size, offset = size - copied, offset + copied

    def _some(self, out: int, count: int, offset: int) -> int:
        try:
            copied = os.copy_file_range(self._archive, out, count, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            copied = os.write(out, self._view[offset : offset + count])
        if copied == 0:
            raise TarError("unexpected EOF")
        return copied


class _Flowing:
    """An archive that is still coming."""

    def __init__(self, source: BufferedSource) -> None:
        self._source = source

    def copy(self, entry: Entry, out: int) -> None:
        left = entry.size
        while left:
            data = self._source.piece(left)
            if not data:
                raise TarError("unexpected EOF")
            left -= len(data)
            while data:
                data = data[os.write(out, data) :]
        if rest := -entry.size % BLOCK:
            self._source.read(rest)  # the last file's may be missing
        entry.size = -1  # so that nobody skips it again


def unpack(
    archive: int,
    size: int,
    target: Path,
    *,
    base: bool,
    free_bytes: int,
    helpers: Executor | None = None,
    ids: IdMap = SAME,
) -> Unpacked:
    """Unpack ``size`` bytes of the open file ``archive`` into the empty folder ``target``.

    Blocking; runs in a thread of `kernel.umask_free_executor`, as are those of ``helpers``, which write files meanwhile.
    ``base``: there is no layer below, so whiteouts mean nothing. ``ids``: who owns the files on disk.
    Raises TarError for a damaged or hostile archive, OSError when the disk is at fault.
    """
    if size == 0:
        return Unpacked()
    with mmap.mmap(archive, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        position = 0

        def read(count: int) -> bytes:
            nonlocal position
            data = mapped[position : position + count]
            position += len(data)
            return data

        def skip(count: int) -> None:
            nonlocal position
            position += count
            if position > size:
                raise TarError("unexpected EOF")

        return _unpack(read, skip, _Mapped(archive, size, view), target, base, free_bytes, helpers, ids)


def unpack_stream(source: BufferedSource, target: Path, *, base: bool, free_bytes: int, ids: IdMap = SAME) -> Unpacked:
    """As `unpack` for an archive that is still coming: reads it to its end, also what follows the last entry."""
    done = _unpack(source.read, source.skip, _Flowing(source), target, base, free_bytes, None, ids)
    while source.piece(1 << 20):
        pass
    return done


def _unpack(
    read: Reader,
    skip: Skipper,
    content: _Content,
    target: Path,
    base: bool,
    free_bytes: int,
    helpers: Executor | None,
    ids: IdMap,
) -> Unpacked:
    result = Unpacked()
    state = _State(str(target) + "/", base, ids)
    ids.give(target)
    with contextlib.closing(_Files(content, state, helpers)) as files:
        for entry in read_entries(read, skip):
            result.entries += 1
            if result.entries > MAX_ENTRIES:
                raise TarError(f"a layer with more than {MAX_ENTRIES} entries is refused")
            result.size += entry.size if entry.kind != SYMLINK else len(os.fsencode(entry.link))
            if result.size > free_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            if ids:
                _remap(entry, ids)
            _place(state, entry, files)
        files.settle()
    _finish(state)
    return result


def _remap(entry: Entry, ids: IdMap) -> None:
    try:
        entry.uid, entry.gid = ids.outside(entry.uid, entry.gid)
    except Unmapped as error:
        raise TarError(f'"{entry.name}" cannot be owned by {entry.uid}:{entry.gid} here: {error}') from None


def _make_folder(state: _State, name: str) -> None:
    """Make a folder that may be one that the archive does not list: root's own then."""
    os.mkdir(state.root + name, 0o755)
    if state.ids:
        os.chown(state.root + name, *state.ids.root)


def _place(state: _State, entry: Entry, files: _Files) -> None:
    name = clean_name(entry.name)
    if not name:
        if entry.kind == FOLDER:
            _owner_and_mode(state, state.root, entry)
            state.folders[""] = entry
        return
    parent, _, leaf = name.rpartition("/")
    if parent not in state.folders:
        parent = _make_parents(state, parent, entry.name)
    name = f"{parent}/{leaf}" if parent else leaf
    path = state.root + name
    if leaf.startswith(WHITEOUT):
        _whiteout(state, parent, leaf)
        return
    if name in state.whiteouts:
        state.whiteouts.discard(name)
        if entry.kind == FOLDER:
            os.unlink(path)
            _make_folder(state, name)
            os.setxattr(path, OPAQUE_XATTR, b"y")
            state.folders[name] = None
        else:
            os.unlink(path)
    if name in state.others or name in state.links or (entry.kind != FOLDER and name in state.folders):
        raise TarError(f'duplicate entry "{entry.name}" in a layer')
    if entry.kind == REGULAR:
        files.add(path, entry)
        state.others.add(name)
        return
    elif entry.kind == FOLDER:
        if name not in state.folders:
            os.mkdir(path, 0o755)
        state.folders[name] = entry
    elif entry.kind == SYMLINK:
        _check_symlink(name, entry)
        os.symlink(entry.link, path)
        state.links[name] = entry.link
    elif entry.kind == HARD_LINK:
        source = _link_source(state, entry)
        files.settle(state.root + source)
        try:
            os.link(state.root + source, path, follow_symlinks=False)
        except FileNotFoundError:
            raise TarError(f'invalid hardlink "{entry.name}" -> "{entry.link}": no such entry in the layer') from None
        if source in state.links:
            state.links[name] = state.links[source]
        else:
            state.others.add(name)
        return
    elif entry.kind == FIFO:
        os.mkfifo(path, entry.mode)
        state.others.add(name)
    elif entry.kind in (CHARACTER, BLOCK_DEVICE):
        if entry.kind == BLOCK_DEVICE or (entry.major, entry.minor) not in HARMLESS_DEVICES:
            raise TarError(
                f'device node "{entry.name}" ({entry.major}:{entry.minor}) in a layer is refused; '
                "give a container devices with --device"
            )
        os.mknod(path, entry.mode | stat.S_IFCHR, os.makedev(entry.major, entry.minor))
        state.others.add(name)
    _owner_and_mode(state, path, entry)


def _file(path: str, entry: Entry, content: _Content) -> None:
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, entry.mode)
    try:
        content.copy(entry, out)
        if entry.uid or entry.gid:
            os.fchown(out, entry.uid, entry.gid)
            if entry.mode & 0o6000:
                os.fchmod(out, entry.mode)
        if entry.xattrs:
            _set_xattrs(out, entry)
        os.utime(out, ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(out)


def _owner_and_mode(state: _State, path: str, entry: Entry) -> None:
    """Set what the creating call did not."""
    if entry.kind == FOLDER and entry.mode & stat.S_ISGID:
        state.inherits_group = True  # before it is so: whoever makes a file in it from now on looks
    os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if entry.kind != SYMLINK:
        os.chmod(path, entry.mode)
    if entry.xattrs:
        _set_xattrs(path, entry)
    if entry.kind != FOLDER:
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _set_xattrs(target: str | int, entry: Entry) -> None:
    for key, value in entry.xattrs.items():
        if key.startswith(("trusted.overlay.", "user.overlay.")):
            raise TarError(f'"{entry.name}" carries the attribute {key}, which is the storage driver\'s own')
        try:
            if isinstance(target, int):
                os.setxattr(target, key, value)
            else:
                os.setxattr(target, key, value, follow_symlinks=False)
        except OSError as error:
            # As dockerd: a file system or kind of file that has no such attributes is no reason to refuse an image.
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
                raise


def _make_parents(state: _State, parent: str, shown: str) -> str:
    """Make the folders of a name that the archive did not list, and return where they really are."""
    place = ""
    hops = 0
    todo = parent.split("/")[::-1]
    while todo:
        part = todo.pop()
        step = f"{place}/{part}" if place else part
        if step in state.links:
            target = state.links[step]
            hops += 1
            if target.startswith("/") or hops > 40:
                raise TarError(f'entry "{shown}" leads through the link "{step}" -> "{target}"')
            for piece in reversed(target.split("/")):
                if piece not in ("", "."):
                    todo.append(piece)
            continue
        if part == "..":
            place = place.rpartition("/")[0]
            continue
        if step in state.others:
            raise TarError(f'entry "{shown}": "{step}" is not a directory')
        if step not in state.folders:
            if step in state.whiteouts:
                os.unlink(state.root + step)
                state.whiteouts.discard(step)
                _make_folder(state, step)
                os.setxattr(state.root + step, OPAQUE_XATTR, b"y")
            else:
                _make_folder(state, step)
            state.folders[step] = None
        place = step
    return place


def _check_symlink(name: str, entry: Entry) -> None:
    """Refuse a relative target that would climb above the root, as dockerd does; absolute ones are the container's."""
    if not entry.link:
        raise TarError(f'invalid symlink "{entry.name}": it points nowhere')
    if entry.link.startswith("/") or ".." not in entry.link:
        return
    depth = name.count("/")
    for part in entry.link.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            raise TarError(f'invalid symlink "{entry.name}" -> "{entry.link}"')


def _link_source(state: _State, entry: Entry) -> str:
    # Docker's own archives write targets with and without a leading slash; both mean the layer's root.
    source = clean_name(entry.link.lstrip("/")) if entry.link else ""
    parent, _, leaf = source.rpartition("/")
    if not leaf or (parent and parent not in state.folders):
        if parent and any(source.startswith(f"{link}/") for link in state.links):
            raise TarError(f'invalid hardlink "{entry.name}" -> "{entry.link}": it leads through a link')
        raise TarError(f'invalid hardlink "{entry.name}" -> "{entry.link}"')
    if source in state.folders:
        raise TarError(f'invalid hardlink "{entry.name}" -> "{entry.link}": it is a directory')
    return source


def _whiteout(state: _State, parent: str, leaf: str) -> None:
    if leaf == OPAQUE:
        if not state.base:
            os.setxattr(state.root + parent, OPAQUE_XATTR, b"y")
        return
    hidden = leaf[len(WHITEOUT) :]
    if leaf.startswith(".wh..wh.") or state.base:
        return
    if hidden in ("", ".", ".."):
        raise TarError(f'invalid whiteout "{leaf}"')
    name = f"{parent}/{hidden}" if parent else hidden
    if name in state.folders:
        os.setxattr(state.root + name, OPAQUE_XATTR, b"y")
    elif name not in state.others and name not in state.links and name not in state.whiteouts:
        os.mknod(state.root + name, stat.S_IFCHR, os.makedev(0, 0))
        state.whiteouts.add(name)


def _finish(state: _State) -> None:
    """Owners, modes and times of folders come last: filling a folder changes its time."""
    for name, entry in sorted(state.folders.items(), reverse=True):
        if entry is not None:
            with contextlib.suppress(FileNotFoundError):
                os.utime(state.root + name, ns=(entry.mtime_ns, entry.mtime_ns))
