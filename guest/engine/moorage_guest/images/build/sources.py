"""Where COPY and ADD take files from: which of them a word means, what they consist of, and the digest by which steps are cached.

A context that a client sent is a `context.ContextTree`; another image, a checkout or a download is a `FolderTree`. Nobody may
be trusted with either, so no path ever leads out of them. All blocks.
"""

import contextlib
import fnmatch
import hashlib
import os
import posixpath
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.images.archive import Content, opened
from moorage_guest.images.compression import Bounded, compression
from moorage_guest.images.tarformat import FIFO, FOLDER, REGULAR, SYMLINK, Entry, TarError, looks_like_tar

_KINDS = {stat.S_IFREG: REGULAR, stat.S_IFDIR: FOLDER, stat.S_IFLNK: SYMLINK, stat.S_IFIFO: FIFO}

#: Bytes of a file's beginning by which an archive is told.
_HEAD = 256 << 10


def no_ignore(path: str) -> bool:
    """Leave nothing out."""
    return False


@dataclass(frozen=True)
class Source:
    """One file or folder to copy: where it is in its tree, and what it is."""

    tree: "SourceTree"
    path: str
    is_folder: bool
    is_archive: bool = False


@dataclass
class SourceTree(ABC):
    """Files that are copied from. Paths are relative, with slashes; links in them are followed and never lead out."""

    ignore: Callable[[str], bool] = field(default=no_ignore, kw_only=True)
    origin: str = field(default="build context", kw_only=True)
    with_owners: bool = field(default=False, kw_only=True)
    """Keep owners: files of another image have theirs, those of a context belong to root."""
    ids: IdMap = field(default=SAME, kw_only=True)
    """Who owns that image's files on disk."""
    _digests: dict[str, str] = field(default_factory=dict, kw_only=True)

    @abstractmethod
    def is_folder(self, path: str) -> bool:
        """Whether a path is a folder and not something else. Raises OSError when it is not there."""

    @abstractmethod
    def names(self, path: str) -> Sequence[str]:
        """Return what is in a folder. Raises OSError when it is none."""

    @abstractmethod
    def head(self, path: str) -> bytes:
        """Return the beginning of a regular file, nothing of anything else. Raises OSError."""

    @abstractmethod
    def walk(self, source: Source) -> Iterator[tuple[Entry, Content | None]]:
        """Yield what a source consists of in order, names relative to it, each file's content for as long as it is looked at.

        A file alone has the name ""; of a folder only what is in it comes. Links inside are copied as links. Raises OSError.
        """

    def find(self, pattern: str, *, command: str, archives: bool) -> list[Source]:
        """Return what a word of an instruction means, sorted. Raises InvalidParameter when that is nothing."""
        clean = posixpath.normpath("/" + pattern).lstrip("/")
        depth = 0
        for part in pattern.split("/"):
            depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
            if depth < 0 and not self.with_owners:
                raise InvalidParameter(f"{command} failed: forbidden path outside the build context: {pattern} ()")
        if re.search(r"[*?\[\\]", clean):
            found = sorted(self._matches(clean.split("/")))
            if not found:
                raise InvalidParameter(f"{command} failed: no source files were specified")
        else:
            found = [clean]
        return [self._source(path, pattern, command, archives) for path in found]

    def _matches(self, parts: Sequence[str], below: str = "") -> Iterator[str]:
        with contextlib.suppress(OSError):
            for name in self.names(below):
                path = f"{below}/{name}" if below else name
                if not fnmatch.fnmatchcase(name, _shell_pattern(parts[0])):
                    continue
                if len(parts) > 1:
                    yield from self._matches(parts[1:], path)
                elif not self.ignore(path):
                    yield path

    def _source(self, path: str, shown: str, command: str, archives: bool) -> Source:
        where = "" if self.with_owners else f"file not found in {self.origin} or excluded by .dockerignore: "
        name = shown.lstrip("/") if self.with_owners else shown
        missing = InvalidParameter(f"{command} failed: {where}stat {name}: file does not exist")
        try:
            folder = self.is_folder(path)
            if path and self.ignore(path) and not folder:
                raise missing
            return Source(self, path, folder, archives and not folder and _is_archive(self.head(path)))
        except OSError:
            raise missing from None

    def read(self, name: str, limit: int) -> str | None:
        """Return a text file; None when it is not there or a folder. Raises InvalidParameter when it is larger than ``limit``."""
        try:
            (found,) = self.find(name.replace("\\", "/"), command="build", archives=False)
        except (InvalidParameter, ValueError):
            return None
        for entry, content in self.walk(found):
            if found.is_folder or content is None:
                return None
            if entry.size > limit:
                raise InvalidParameter(f"{name} is too large ({entry.size} bytes)")
            return os.pread(content.descriptor, entry.size, content.offset).decode("utf-8", "replace")
        return None

    def digest(self, source: Source) -> str:
        """Return the digest of names, kinds, modes, owners and contents; times do not count. Raises OSError."""
        known = self._digests.get(source.path)
        if known is None:
            total = hashlib.sha256()
            for entry, content in self.walk(source):
                line = (entry.name, entry.kind, f"{entry.mode:o}", str(entry.uid), str(entry.gid), entry.link)
                total.update(os.fsencode("\0".join(line)) + b"\n")
                if content is not None:
                    total.update(_content_digest(content, entry.size))
            known = self._digests[source.path] = total.hexdigest()
        return known


@dataclass
class FolderTree(SourceTree):
    """A folder, looked into by the kernel, which follows no link out of it."""

    root: Path

    @contextlib.contextmanager
    def _open(self, path: str, flags: int) -> Iterator[int]:
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with opened(root, path or ".", flags) as descriptor:
                yield descriptor
        finally:
            os.close(root)

    def is_folder(self, path: str) -> bool:
        """See the base."""
        with self._open(path, os.O_PATH) as descriptor:
            return stat.S_ISDIR(os.fstat(descriptor).st_mode)

    def names(self, path: str) -> Sequence[str]:
        """See the base."""
        with self._open(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
            return os.listdir(folder)  # noqa: PTH208 -- an open folder has no path

    def head(self, path: str) -> bytes:
        """See the base."""
        with self._open(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return os.pread(descriptor, _HEAD, 0) if regular else b""

    def walk(self, source: Source) -> Iterator[tuple[Entry, Content | None]]:
        """See the base."""
        if source.is_folder:
            with self._open(source.path, os.O_RDONLY | os.O_DIRECTORY) as folder:
                yield from self._walk(folder, "", source.path)
            return
        with self._open(source.path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            status = os.fstat(descriptor)
            yield self._entry(status, "", ""), Content(descriptor, 0) if stat.S_ISREG(status.st_mode) else None

    def _walk(self, folder: int, name: str, path: str) -> Iterator[tuple[Entry, Content | None]]:
        for leaf in sorted(os.listdir(folder)):
            inner, full = (f"{name}/{leaf}" if name else leaf), (f"{path}/{leaf}" if path else leaf)
            status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
            left_out = self.ignore(full)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFDIR:
                if not left_out:
                    yield self._entry(status, inner, ""), None
                descriptor = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                try:
                    yield from self._walk(descriptor, inner, full)
                finally:
                    os.close(descriptor)
            elif left_out or kind not in _KINDS:
                continue
            elif kind == stat.S_IFREG:
                descriptor = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                try:
                    yield self._entry(status, inner, ""), Content(descriptor, 0)
                finally:
                    os.close(descriptor)
            else:
                link = os.readlink(leaf, dir_fd=folder) if kind == stat.S_IFLNK else ""
                yield self._entry(status, inner, link), None

    def _entry(self, status: os.stat_result, name: str, link: str) -> Entry:
        uid, gid = self.ids.inside(status.st_uid, status.st_gid) if self.with_owners else (0, 0)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), REGULAR)
        size = status.st_size if kind == REGULAR else 0
        return Entry(name, kind, size, stat.S_IMODE(status.st_mode), uid, gid, status.st_mtime_ns, link, 0, 0, 0)


def _shell_pattern(part: str) -> str:
    return re.sub(r"\\(.)", lambda match: f"[{match[1]}]", part).replace("[^", "[!")


def _is_archive(head: bytes) -> bool:
    """Whether a file is a tar, plain or compressed, as its beginning says."""
    try:
        undo = Bounded(compression(head))
        plain = b""
        for piece in undo.feed(head):
            plain += piece
            if len(plain) >= 512:
                break
        return len(plain) >= 512 and looks_like_tar(plain[:512])
    except TarError:
        return False


def _content_digest(content: Content, size: int) -> bytes:
    total = hashlib.sha256()
    offset, left = content.offset, size
    while left and (data := os.pread(content.descriptor, min(left, 1 << 20), offset)):
        total.update(data)
        offset, left = offset + len(data), left - len(data)
    return total.digest()


def hash_of(sources: Sequence[Source]) -> str:
    """Return the word that stands for the sources in an image's history, by which cached steps are found."""
    if len(sources) == 1:
        return f"{'dir' if sources[0].is_folder else 'file'}:{sources[0].tree.digest(sources[0])}"
    total = hashlib.sha256()
    for source in sources:
        total.update(f"{posixpath.basename(source.path)}:{source.tree.digest(source)}\n".encode())
    return f"multi:{total.hexdigest()}"
