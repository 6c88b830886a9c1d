"""The context of a build as the client sent it: an index in memory over one file with the content of all files.

A build looks at most files once, to see that they are as before; so nothing is unpacked until a step that is not in the cache
copies it. Small contexts never touch the disk.
"""

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.images.archive import Content
from moorage_guest.images.build.sources import Source, SourceTree
from moorage_guest.images.streams import BufferedSource, uncompressed
from moorage_guest.images.tarformat import (
    BLOCK,
    FIFO,
    FOLDER,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
    TarError,
    blamed_on_archive,
    read_entries,
)

#: Bytes of content that stay in memory.
IN_MEMORY = 4 << 20

#: Files that a context may have; each takes some hundred bytes of memory.
MAX_ENTRIES = 1_000_000

#: Bytes that all files together may claim to have before any of them has come.
MAX_SIZE = 1 << 42

_MAX_LINKS = 40

_SMALL = 64 << 10


@dataclass(slots=True)
class _Node:
    kind: str
    mode: int
    mtime_ns: int
    link: str = ""
    offset: int = 0
    size: int = 0
    children: "dict[str, _Node] | None" = None


@dataclass(slots=True)
class Announced:
    """A file that a tree knows of, and whose content comes in pieces, which `ContextTree.fill` takes. Its fields are the tree's."""

    node: _Node
    room: int


def _folder(mode: int = 0o755, mtime_ns: int = 0) -> _Node:
    return _Node(FOLDER, mode, mtime_ns or time.time_ns(), children={})


@dataclass
class ContextTree(SourceTree):
    """Files of an archive by path, as if it had been unpacked into an empty folder by root. To be closed."""

    tmp: Path
    _root: _Node = field(default_factory=_folder)
    _content: int = field(default_factory=lambda: os.memfd_create("context", os.MFD_CLOEXEC))
    _size: int = 0
    _written: int = 0
    """Where content that is still to be written goes to."""
    _live: int = 0
    """Bytes of content that files have, others having been left behind."""
    _small: bytearray = field(default_factory=bytearray)
    """Content of small files that is still to be written, all at once."""
    _entries: int = 0

    def close(self) -> None:
        """Let go of the content; quiet when done before."""
        if self._content >= 0:
            os.close(self._content)
            self._content = -1

    # -- taking in ----------------------------------------------------------------------------------------------------

    def unpack(self, source: BufferedSource) -> None:
        """Take in a tar, plain or compressed, to its end. Blocks. Raises TarError, OSError."""
        plain = uncompressed(source)
        with blamed_on_archive():
            for entry in read_entries(plain.read, plain.skip):
                self._put(entry, plain)
        while plain.piece(1 << 20):
            pass
        self._flush()

    def write(self, name: str, text: str) -> None:
        """Add a file. Blocks."""
        data = text.encode("utf-8", "surrogateescape")
        node = _Node(REGULAR, 0o644, time.time_ns(), offset=self._size, size=len(data))
        self._append(memoryview(data))
        self._flush()
        self._parent([], name)[name] = node

    def announce(self, entry: Entry) -> Announced | None:
        """Add what an entry says; a regular file's content, for which its size is no promise, is left to `fill`. Blocks.

        Returns None for everything else. Raises TarError, InvalidParameter, OSError.
        """
        node = self._put(entry, None)
        return Announced(node, entry.size) if node is not None and entry.kind == REGULAR else None

    def adopt(self, entry: Entry, before: "ContextTree") -> bool:
        """Add a regular file with the content that it had in a tree before, if it has not changed since; return whether it did so.

        This tree must have taken that one's content, see `take_content`. Raises as `announce` does.
        """
        node: _Node | None = before._root
        for part in entry.name.split("/"):
            node = node.children.get(part) if node is not None and node.children is not None else None
        if node is None or (node.kind, node.mode, node.mtime_ns, node.size) != (
            entry.kind, entry.mode, entry.mtime_ns, entry.size,
        ):  # fmt: skip
            return False
        placed = self._put(replace(entry, size=0), None)
        assert placed is not None
        placed.offset, placed.size = node.offset, node.size
        self._live += node.size
        return True

    def take_content(self, before: "ContextTree") -> None:
        """Take over the content of another tree, which keeps no more than its index; this one must be empty still."""
        os.close(self._content)
        self._content, before._content = before._content, -1
        self._size = self._written = before._size

    def moved(self) -> "ContextTree":
        """Return a tree of the same files, to be closed in this one's stead, which is closed now."""
        other = ContextTree(self.tmp)
        other.take_content(self)
        other._root, other._live, other._entries = self._root, self._live, self._entries
        return other

    @property
    def measure(self) -> tuple[int, int, int]:
        """How many files there are, the bytes of their content, and those of all content that is kept."""
        return self._entries, self._live, self._size

    def fill(self, pieces: Sequence[tuple[Announced, bytes]]) -> None:
        """Write pieces of content behind what their files have already. Blocks. Raises OSError."""
        for announced, data in pieces:
            node = announced.node
            if node.size + len(data) > announced.room:  # the file has grown since it was announced
                self._move(announced, max(2 * announced.room, node.size + len(data)))
            view, offset = memoryview(data), node.offset + node.size
            node.size += len(data)
            self._live += len(data)
            while view:
                written = os.pwrite(self._content, view, offset)
                view, offset = view[written:], offset + written

    def _move(self, announced: Announced, room: int) -> None:
        """Give a file more room, at another place."""
        node, there = announced.node, self._reserve(room)
        done = 0
        while done < node.size and (
            data := os.pread(self._content, min(1 << 20, node.size - done), node.offset + done)
        ):
            done += os.pwrite(self._content, data, there + done)
        node.offset, announced.room = there, room

    def _reserve(self, size: int) -> int:
        """Return where content of so many bytes may be written."""
        if size > MAX_SIZE - self._size:
            raise TarError(f"a context of more than {MAX_SIZE} bytes is refused: leave some out with .dockerignore")
        self._flush()
        self._leave_memory(size)
        offset = self._size
        self._size = self._written = offset + size
        return offset

    def _leave_memory(self, more: int) -> None:
        """Go on in a file on disk if the content becomes too large for memory."""
        if not self._size <= IN_MEMORY < self._size + more:
            return
        self._flush()
        with tempfile.TemporaryFile(dir=self.tmp, prefix="context-") as file:
            os.lseek(self._content, 0, os.SEEK_SET)
            while os.sendfile(file.fileno(), self._content, None, IN_MEMORY):
                pass
            os.dup2(file.fileno(), self._content, inheritable=False)

    def _append(self, data: memoryview) -> None:
        self._leave_memory(len(data))
        self._size += len(data)
        if len(data) < _SMALL:
            self._small += data
            if len(self._small) < _SMALL:
                return
            data = memoryview(b"")
        self._flush()
        self._write(data)

    def _flush(self) -> None:
        if self._small:
            small, self._small = self._small, bytearray()
            self._write(memoryview(small))

    def _write(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._content, data, self._written)
            self._written, data = self._written + written, data[written:]

    def _put(self, entry: Entry, source: BufferedSource | None) -> _Node | None:
        """Add what an entry says and return it; None for what stays as it is. Without a source content comes later."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise TarError(f"a context of more than {MAX_ENTRIES} files is refused: leave some out with .dockerignore")
        parts = [part for part in entry.name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise TarError(f'"{entry.name}" is outside of the context')
        if not parts:
            return None
        try:
            siblings = self._parent(parts[:-1], entry.name)
            return self._place(siblings, parts[-1], entry, source)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InvalidParameter(f"{entry.name}: {error.strerror}") from None

    def _parent(self, parts: Sequence[str], shown: str) -> dict[str, _Node]:
        children = self._resolve("/".join(parts), make=True).children
        if children is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), shown)
        return children

    def _place(
        self, siblings: dict[str, _Node], leaf: str, entry: Entry, source: BufferedSource | None
    ) -> _Node | None:
        there = siblings.get(leaf)
        if entry.kind == FOLDER:
            if there is not None and there.kind == SYMLINK:
                with contextlib.suppress(OSError):
                    if self._resolve(entry.name).children is not None:
                        return None  # a link to a folder serves as one
            if there is None or there.children is None:
                siblings[leaf] = _folder(entry.mode, entry.mtime_ns)
            else:
                there.mode, there.mtime_ns = entry.mode, entry.mtime_ns
        elif entry.kind == HARD_LINK:
            head, _, last = entry.link.strip("/").rpartition("/")
            linked = (self._resolve(head).children or {}).get(last)
            if linked is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if linked.children is not None:
                raise TarError(f'invalid hardlink "{entry.name}" -> "{entry.link}": it is a directory')
            siblings[leaf] = linked
        else:
            mode = 0o777 if entry.kind == SYMLINK else entry.mode  # as on a disk
            node = _Node(entry.kind, mode, entry.mtime_ns, entry.link, self._size, entry.size)
            if entry.kind == REGULAR and source is not None:
                self._take(entry, source)
            elif entry.kind == REGULAR:
                node.offset, node.size = self._reserve(entry.size), 0
            siblings[leaf] = node
        return siblings[leaf]

    def _take(self, entry: Entry, source: BufferedSource) -> None:
        left = entry.size
        while left:
            data = source.piece(min(left, 1 << 20))
            if not data:
                raise TarError("unexpected EOF")
            left -= len(data)
            self._append(data)
        if rest := -entry.size % BLOCK:
            source.read(rest)  # the last file's may be missing
        entry.size = -1  # so that nobody skips it again

    # -- looking up ---------------------------------------------------------------------------------------------------

    def _resolve(self, path: str, *, make: bool = False) -> _Node:
        """Return what is at a path, its links followed as the kernel would with this tree as its root. Raises OSError.

        With ``make`` folders that are not there are made.
        """
        trail = [self._root]
        todo = path.split("/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            here = trail[-1]
            if part in ("", "."):
                continue
            if here.children is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if part == "..":
                del trail[max(len(trail) - 1, 1) :]
                continue
            node = here.children.get(part)
            if node is None:
                if not make:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                node = here.children[part] = _folder()
            if node.kind == SYMLINK:
                hops += 1
                if hops > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if node.link.startswith("/"):
                    trail = [self._root]
                todo.extend(node.link.split("/")[::-1])
                continue
            trail.append(node)
        return trail[-1]

    def is_folder(self, path: str) -> bool:
        """See the base."""
        return self._resolve(path).children is not None

    def names(self, path: str) -> Sequence[str]:
        """See the base."""
        children = self._resolve(path).children
        if children is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return list(children)

    def head(self, path: str) -> bytes:
        """See the base."""
        node = self._resolve(path)
        return os.pread(self._content, min(node.size, 256 << 10), node.offset) if node.kind == REGULAR else b""

    def walk(self, source: Source) -> Iterator[tuple[Entry, Content | None]]:
        """See the base."""
        node = self._resolve(source.path)
        if node.children is not None:
            yield from self._walk(node.children, "", source.path)
        elif node.kind in (REGULAR, FIFO):
            yield self._entry(node, "")

    def _walk(self, children: dict[str, _Node], name: str, path: str) -> Iterator[tuple[Entry, Content | None]]:
        for leaf in sorted(children):
            inner, full = (f"{name}/{leaf}" if name else leaf), (f"{path}/{leaf}" if path else leaf)
            node = children[leaf]
            if node.kind in (FOLDER, REGULAR, SYMLINK, FIFO) and not self.ignore(full):
                yield self._entry(node, inner)
            if node.children is not None:
                yield from self._walk(node.children, inner, full)

    def _entry(self, node: _Node, name: str) -> tuple[Entry, Content | None]:
        entry = Entry(name, node.kind, node.size, node.mode, 0, 0, node.mtime_ns, node.link, 0, 0, 0)
        return entry, Content(self._content, node.offset) if node.kind == REGULAR else None
