"""COPY and ADD: which files an instruction means, the digest by which they are cached, and putting them in place.

Sources lie in a folder that nobody may be trusted with: every path is looked up inside of it by the kernel. All blocks.
"""

import contextlib
import fnmatch
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.images.archive import TreeWriter, make_folders, opened
from moorage_guest.images.compression import Bounded, compression
from moorage_guest.images.streams import BufferedSource, uncompressed
from moorage_guest.images.tarformat import FIFO, FOLDER, REGULAR, SYMLINK, Entry, TarError, looks_like_tar, read_entries

_KINDS = {stat.S_IFREG: REGULAR, stat.S_IFDIR: FOLDER, stat.S_IFLNK: SYMLINK, stat.S_IFIFO: FIFO}


def no_ignore(path: str) -> bool:
    """Leave nothing out."""
    return False


@dataclass(frozen=True)
class Source:
    """One file or folder to copy: where it is below the source folder, and what it is."""

    path: str
    is_folder: bool
    is_archive: bool = False


@dataclass
class SourceTree:
    """A folder that is copied from: a build context, another image, or files that were fetched."""

    root: Path
    ignore: Callable[[str], bool] = no_ignore
    origin: str = "build context"
    with_owners: bool = False
    """Keep owners: files of another image have theirs, those of a context belong to root."""
    _digests: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        descriptor = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def find(self, pattern: str, *, command: str, archives: bool) -> list[Source]:
        """Return what a word of an instruction means, sorted. Raises InvalidParameter when that is nothing."""
        clean = posixpath.normpath("/" + pattern).lstrip("/")
        depth = 0
        for part in pattern.split("/"):
            depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
            if depth < 0 and not self.with_owners:
                raise InvalidParameter(f"{command} failed: forbidden path outside the build context: {pattern} ()")
        with self._open() as root:
            if re.search(r"[*?\[\\]", clean):
                found = sorted(self._matches(root, clean.split("/")))
                if not found:
                    raise InvalidParameter(f"{command} failed: no source files were specified")
            else:
                found = [clean]
            return [self._source(root, path, pattern, command, archives) for path in found]

    def _matches(self, root: int, parts: Sequence[str], below: str = "") -> Iterator[str]:
        with contextlib.suppress(OSError), opened(root, below or ".", os.O_RDONLY | os.O_DIRECTORY) as folder:
            for name in os.listdir(folder):  # noqa: PTH208 -- an open folder has no path
                path = f"{below}/{name}" if below else name
                if not fnmatch.fnmatchcase(name, _shell_pattern(parts[0])):
                    continue
                if len(parts) > 1:
                    yield from self._matches(root, parts[1:], path)
                elif not self.ignore(path):
                    yield path

    def _source(self, root: int, path: str, shown: str, command: str, archives: bool) -> Source:
        where = "" if self.with_owners else f"file not found in {self.origin} or excluded by .dockerignore: "
        name = shown.lstrip("/") if self.with_owners else shown
        missing = InvalidParameter(f"{command} failed: {where}stat {name}: file does not exist")
        try:
            with opened(root, path or ".", os.O_PATH) as descriptor:
                status = os.fstat(descriptor)
        except OSError:
            raise missing from None
        folder = stat.S_ISDIR(status.st_mode)
        if path and self.ignore(path) and not folder:
            raise missing
        return Source(path, folder, archives and not folder and self._is_archive(root, path))

    def _is_archive(self, root: int, path: str) -> bool:
        """Whether a file is a tar, plain or compressed, as its beginning says."""
        with opened(root, path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return False
            head = os.pread(descriptor, 256 << 10, 0)
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

    # -- walking ------------------------------------------------------------------------------------------------------

    def walk(self, source: Source) -> Iterator[tuple[Entry, int | None]]:
        """Yield what a source consists of, names relative to it, each regular file open for as long as it is looked at.

        A file alone has the name ""; of a folder only the content comes. Links inside are copied as links.
        """
        with self._open() as root:
            if source.is_folder:
                with opened(root, source.path or ".", os.O_RDONLY | os.O_DIRECTORY) as folder:
                    yield from self._walk(folder, "", source.path)
                return
            with opened(root, source.path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
                yield self._entry(os.fstat(descriptor), "", ""), descriptor

    def _walk(self, folder: int, name: str, path: str) -> Iterator[tuple[Entry, int | None]]:
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
                    yield self._entry(status, inner, ""), descriptor
                finally:
                    os.close(descriptor)
            else:
                link = os.readlink(leaf, dir_fd=folder) if kind == stat.S_IFLNK else ""
                yield self._entry(status, inner, link), None

    def _entry(self, status: os.stat_result, name: str, link: str) -> Entry:
        uid, gid = (status.st_uid, status.st_gid) if self.with_owners else (0, 0)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), REGULAR)
        size = status.st_size if kind == REGULAR else 0
        return Entry(name, kind, size, stat.S_IMODE(status.st_mode), uid, gid, status.st_mtime_ns, link, 0, 0, 0)

    def digest(self, source: Source) -> str:
        """Return the digest of names, kinds, modes, owners and contents; times do not count."""
        known = self._digests.get(source.path)
        if known is None:
            total = hashlib.sha256()
            for entry, descriptor in self.walk(source):
                line = (entry.name, entry.kind, f"{entry.mode:o}", str(entry.uid), str(entry.gid), entry.link)
                total.update(os.fsencode("\0".join(line)) + b"\n")
                if descriptor is not None:
                    with os.fdopen(os.dup(descriptor), "rb") as file:
                        total.update(hashlib.file_digest(file, "sha256").digest())
            known = self._digests[source.path] = total.hexdigest()
        return known


def _shell_pattern(part: str) -> str:
    return re.sub(r"\\(.)", lambda match: f"[{match[1]}]", part).replace("[^", "[!")


def hash_of(tree: SourceTree, sources: Sequence[Source]) -> str:
    """Return the word that stands for the sources in an image's history, by which cached steps are found."""
    if len(sources) == 1:
        return f"{'dir' if sources[0].is_folder else 'file'}:{tree.digest(sources[0])}"
    total = hashlib.sha256()
    for source in sources:
        total.update(f"{posixpath.basename(source.path)}:{tree.digest(source)}\n".encode())
    return f"multi:{total.hexdigest()}"


def place(
    root: Path,
    tree: SourceTree,
    sources: Sequence[Source],
    target: str,
    *,
    chown: tuple[int, int] | None,
    chmod: int | None,
) -> None:
    """Put sources at ``target`` (absolute; a slash at its end makes it a folder) of a root file system."""
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for source in sources:
            _place_one(descriptor, tree, source, target, chown, chmod)
    finally:
        os.close(descriptor)


def _place_one(
    root: int, tree: SourceTree, source: Source, target: str, chown: tuple[int, int] | None, chmod: int | None
) -> None:
    if source.is_archive:  # its files have owners of their own
        chown = None
    owner = chown or (0, 0)
    if source.is_folder or source.is_archive:
        folder, leaf = target, ""
    elif target.endswith("/") or _is_folder(root, target):
        folder, leaf = target, posixpath.basename(source.path)
    else:
        folder, leaf = posixpath.split(target)
    try:
        make_folders(root, folder, owner)
    except NotADirectoryError:
        raise InvalidParameter(f"cannot copy to non-directory: {target}") from None
    writer = TreeWriter(root, folder or "/", chown=chown, chmod=chmod, new_folder_owner=owner)
    if source.is_archive:
        _extract(tree, source, writer)
    else:
        for entry, descriptor in tree.walk(source):
            entry.name = entry.name or leaf
            writer.put(entry, descriptor)
    writer.finish()


def _is_folder(root: int, path: str) -> bool:
    try:
        with opened(root, path):
            return True
    except OSError:
        return False


def _extract(tree: SourceTree, source: Source, writer: TreeWriter) -> None:
    alone = Source(source.path, False)
    for _entry, descriptor in tree.walk(alone):
        assert descriptor is not None
        plain = uncompressed(BufferedSource(lambda: os.read(descriptor, 1 << 20)))  # noqa: B023
        for entry in read_entries(plain.read, plain.skip):
            writer.put(entry, plain)
