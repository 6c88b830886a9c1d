"""Copies into and out of a root file system that a container may be changing meanwhile (`docker cp`, COPY, ADD).

Paths mean what they mean inside the root: links and ``..`` are followed by the kernel without ever leaving it.
All functions block.
"""

import base64
import contextlib
import errno
import json
import os
import posixpath
import shutil
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import gmtime, strftime
from typing import NamedTuple

from moorage_guest.errors import InvalidParameter, NotFound
from moorage_guest.idmap import SAME, IdMap, Unmapped
from moorage_guest.images.kernel import open_in_root
from moorage_guest.images.pack import Packer
from moorage_guest.images.streams import BufferedSource
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
    TarError,
    read_entries,
)

#: Bits of Go's os.FileMode, which clients expect.
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31, stat.S_IFLNK: 1 << 27, stat.S_IFBLK: 1 << 26, stat.S_IFCHR: (1 << 26) | (1 << 21),
    stat.S_IFIFO: 1 << 25, stat.S_IFSOCK: 1 << 24,
}  # fmt: skip

_DIRECTORY = os.O_PATH | os.O_DIRECTORY


@dataclass(frozen=True)
class PathStat:
    """What `docker cp` is told about a path."""

    name: str
    size: int
    mode: int
    """Go's os.FileMode."""
    mtime_ns: int
    link_target: str

    @property
    def is_folder(self) -> bool:
        return bool(self.mode & (1 << 31))

    def header(self) -> str:
        """Return the value of X-Docker-Container-Path-Stat."""
        seconds, nanoseconds = divmod(self.mtime_ns, 1_000_000_000)
        value = {
            "name": self.name,
            "size": self.size,
            "mode": self.mode,
            "mtime": _rfc3339(seconds, nanoseconds),
            "linkTarget": self.link_target,
        }
        return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


def _rfc3339(seconds: int, nanoseconds: int) -> str:
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds)) + fraction + "Z"


def go_mode(mode: int) -> int:
    """Return a Unix mode as Go's os.FileMode."""
    found = stat.S_IMODE(mode) & 0o777 | _GO_KINDS.get(stat.S_IFMT(mode), 0)
    for bit, go in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        if mode & bit:
            found |= go
    return found


@contextlib.contextmanager
def _opened_root(root: Path) -> Iterator[int]:
    descriptor = os.open(root, _DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(root: int, path: str, flags: int = _DIRECTORY) -> Iterator[int]:
    """Open a path inside an open root. Raises OSError."""
    descriptor = open_in_root(root, path.lstrip("/") or ".", flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _split(path: str) -> tuple[str, str]:
    """Return folder and last name; the name is "." when the path ends in a slash or a dot."""
    if not path:
        raise InvalidParameter("path cannot be empty")
    clean = posixpath.normpath(f"/{path}")
    if path.endswith(("/", "/.")) or clean == "/" or path == ".":
        return clean, "."
    head, _, leaf = clean.rpartition("/")
    return head or "/", leaf


@contextlib.contextmanager
def _found(root: Path, path: str) -> Iterator[tuple[int, int, str]]:
    """Open root and the folder of a path; yields both and the last name. Raises NotFound, InvalidParameter."""
    folder, leaf = _split(path)
    try:
        with _opened_root(root) as top, opened(top, folder) as parent:
            os.stat(leaf, dir_fd=parent, follow_symlinks=False)
            yield top, parent, leaf
    except FileNotFoundError:
        raise NotFound(f"Could not find the file {path} in container") from None
    except NotADirectoryError:
        raise InvalidParameter(f"{path}: not a directory") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InvalidParameter(f"{path}: too many links") from None


def stat_path(root: Path, path: str) -> PathStat:
    """Describe a path; a link at its end is not followed. Raises NotFound, InvalidParameter."""
    with _found(root, path) as (top, parent, leaf):
        return _path_stat(top, parent, leaf, path)


def _path_stat(top: int, parent: int, leaf: str, path: str) -> PathStat:
    status = os.stat(leaf, dir_fd=parent, follow_symlinks=False)
    target = ""
    if stat.S_ISLNK(status.st_mode):
        target = _link_target(top, path, os.readlink(leaf, dir_fd=parent))
    name = posixpath.basename(posixpath.normpath(f"/{path}")) or "/"
    if path.rstrip("/").rpartition("/")[2] == ".":
        name = "."
    return PathStat(name, status.st_size, go_mode(status.st_mode), status.st_mtime_ns, target)


def _link_target(top: int, path: str, link: str) -> str:
    """Return the path inside the root that a link leads to in the end; the next step when that is not there."""
    try:
        with opened(top, path, os.O_PATH) as descriptor:
            root, found = (str(Path(f"/proc/self/fd/{each}").readlink()) for each in (top, descriptor))
        if found == root:
            return "/"
        if found.startswith(f"{root.rstrip('/')}/"):
            return found[len(root.rstrip("/")) :]
    except OSError:
        pass
    return posixpath.normpath(posixpath.join("/", posixpath.dirname(posixpath.normpath(f"/{path}")), link))


def link_end(root: int, path: str) -> str:
    """Return where the links at a path's end lead to inside an open root, though nothing may be there; the path without one."""
    for _ in range(40):
        folder, _, leaf = path.rpartition("/")
        try:
            with opened(root, folder or "/") as parent:
                link = os.readlink(leaf, dir_fd=parent)
        except OSError:
            return path
        path = posixpath.normpath(posixpath.join("/", folder, link))
    return path


def real_path(root: Path, path: str) -> str:
    """Return a path inside the root without links. Raises NotFound, InvalidParameter."""
    with _found(root, f"{path}/.") as (top, parent, _leaf):
        where, found = (str(Path(f"/proc/self/fd/{each}").readlink()) for each in (top, parent))
    return f"/{found[len(where.rstrip('/')) :].lstrip('/')}" if found.startswith(where.rstrip("/")) else path


def tar_out(root: Path, path: str, ids: IdMap = SAME) -> tuple[PathStat, Generator[bytes, None, None]]:
    """Return a path's description and its tar stream; names begin with the path's last part. Raises NotFound, InvalidParameter.

    ``ids`` says who owns the files on disk.
    """
    found = stat_path(root, path)

    def stream() -> Generator[bytes, None, None]:
        with _found(root, path) as (_top, parent, leaf):
            yield from Packer(ids=ids).one(parent, leaf, found.name)
            yield END * 2

    return found, stream()


def tar_in(
    root: Path,
    path: str,
    source: BufferedSource,
    *,
    no_overwrite_dir_non_dir: bool = False,
    chown: tuple[int, int] | None = None,
    ids: IdMap = SAME,
) -> None:
    """Unpack a tar into the folder ``path``, which has to exist. Raises NotFound, InvalidParameter, TarError, OSError.

    ``chown`` gives everything to that user and group instead of the ones in the archive; ``ids`` says who they are on disk.
    """
    folder, leaf = _split(path)
    if leaf != ".":
        folder = posixpath.join(folder, leaf)
    try:
        with _opened_root(root) as top, opened(top, folder):
            writer = TreeWriter(top, folder, chown=chown, keep_kind=no_overwrite_dir_non_dir, ids=ids)
            for entry in read_entries(source.read, source.skip):
                writer.put(entry, source)
            writer.finish()
    except FileNotFoundError:
        raise NotFound(f"Could not find the file {path} in container") from None
    except NotADirectoryError:
        raise InvalidParameter("extraction point is not a directory") from None


class Content(NamedTuple):
    """Where the content of a file lies: in an open file, from an offset on."""

    descriptor: int
    offset: int


@dataclass
class TreeWriter:
    """Puts entries into a folder of an open root, replacing what is there. `finish` sets the folders' times.

    Owners are the container's numbers; ``ids`` turns them into those on disk.
    """

    root: int
    folder: str
    chown: tuple[int, int] | None = None
    chmod: int | None = None
    keep_kind: bool = False
    """Refuse to put a file where a folder is and the other way round."""
    new_folder_owner: tuple[int, int] = (0, 0)
    ids: IdMap = SAME
    _times: dict[str, int] = field(default_factory=dict)

    def put(self, entry: Entry, source: BufferedSource | Content | None) -> None:
        """Write one entry. Raises TarError, OSError.

        The content of a file is taken from ``source``, padding included, or lies where ``source`` says.
        """
        parts = [part for part in entry.name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise TarError(f'"{entry.name}" is outside of "{self.folder}"')
        if not parts:
            return
        parent = posixpath.join(self.folder, *parts[:-1])
        descriptor = self._open_folder(parent)
        try:
            self._put(descriptor, parts[-1], entry, source, posixpath.join(parent, parts[-1]))
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ENOENT):
                raise InvalidParameter(f"{entry.name}: {error.strerror}") from None
            raise
        finally:
            os.close(descriptor)

    def _open_folder(self, path: str) -> int:
        """Open a folder, making what is missing of it."""
        try:
            return open_in_root(self.root, path.lstrip("/") or ".", _DIRECTORY)
        except FileNotFoundError:
            make_folders(self.root, path, self.ids.outside(*(self.chown or self.new_folder_owner)))
            return open_in_root(self.root, path.lstrip("/") or ".", _DIRECTORY)

    def _put(self, folder: int, leaf: str, entry: Entry, source: BufferedSource | Content | None, path: str) -> None:
        exists = self._clear(folder, leaf, entry)
        mode = entry.mode if self.chmod is None or entry.kind == SYMLINK else self.chmod
        if entry.kind == REGULAR:
            self._file(folder, leaf, entry, source, mode)
            return
        if entry.kind == FOLDER:
            if not exists:
                os.mkdir(leaf, 0o755, dir_fd=folder)
            self._times[path] = entry.mtime_ns
        elif entry.kind == SYMLINK:
            os.symlink(entry.link, leaf, dir_fd=folder)
        elif entry.kind == HARD_LINK:
            target = posixpath.join(self.folder, entry.link.lstrip("/"))
            head, last = _split(target)
            with opened(self.root, head) as other:
                os.link(last, leaf, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)
            return
        elif entry.kind == FIFO:
            os.mkfifo(leaf, mode, dir_fd=folder)
        elif entry.kind in (CHARACTER, BLOCK_DEVICE):
            kind = stat.S_IFCHR if entry.kind == CHARACTER else stat.S_IFBLK
            os.mknod(leaf, mode | kind, os.makedev(entry.major, entry.minor), dir_fd=folder)
        uid, gid = self._owner(entry)
        os.chown(leaf, uid, gid, dir_fd=folder, follow_symlinks=False)
        if entry.kind != SYMLINK:
            with opened(folder, leaf, os.O_PATH | os.O_NOFOLLOW) as made:
                os.chmod(f"/proc/self/fd/{made}", mode)  # noqa: PTH101
        if entry.kind != FOLDER:
            os.utime(leaf, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def _owner(self, entry: Entry) -> tuple[int, int]:
        try:
            return self.ids.outside(*(self.chown or (entry.uid, entry.gid)))
        except Unmapped as error:
            raise TarError(f"{entry.name}: {error}") from None

    def _clear(self, folder: int, leaf: str, entry: Entry) -> bool:
        """Remove what is in the way; says whether a folder is there that stays."""
        try:
            status = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        there, new = stat.S_ISDIR(status.st_mode), entry.kind == FOLDER
        if there and new:
            return True
        if self.keep_kind and there:
            raise InvalidParameter(f'cannot overwrite directory "{entry.name}" with non-directory')
        if self.keep_kind and new:
            raise InvalidParameter(f'cannot overwrite non-directory "{entry.name}" with directory')
        if new and stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(OSError), opened(self.root, posixpath.join(self.folder, entry.name), _DIRECTORY):
                return True  # a link to a folder serves as one, as `cp` has it
        if there:
            shutil.rmtree(leaf, dir_fd=folder)
        else:
            os.unlink(leaf, dir_fd=folder)
        return False

    def _file(self, folder: int, leaf: str, entry: Entry, source: BufferedSource | Content | None, mode: int) -> None:
        out = os.open(leaf, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            if isinstance(source, Content):
                _copy_content(source, out, entry.size)
            left = 0 if isinstance(source, Content) else entry.size
            while left:
                assert isinstance(source, BufferedSource)
                data = source.piece(min(left, 1 << 20))
                if not data:
                    raise TarError("unexpected EOF")
                left -= len(data)
                while data:
                    data = data[os.write(out, data) :]
            if isinstance(source, BufferedSource):
                if rest := -entry.size % 512:
                    source.read(rest)  # the last file's may be missing
                entry.size = -1
            os.fchown(out, *self._owner(entry))
            os.fchmod(out, mode)
            for key, value in entry.xattrs.items():
                if key == "security.capability" or (key.startswith("user.") and not key.startswith("user.overlay.")):
                    with contextlib.suppress(OSError):
                        os.setxattr(out, key, value)
            os.utime(out, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(out)

    def finish(self) -> None:
        """Set the times of folders, innermost first."""
        for path, mtime_ns in sorted(self._times.items(), reverse=True):
            with contextlib.suppress(OSError), opened(self.root, path, os.O_RDONLY | os.O_DIRECTORY) as folder:
                os.utime(folder, ns=(mtime_ns, mtime_ns))


def _copy_content(source: Content, target: int, size: int) -> None:
    offset, left = source.offset, size
    while left:
        try:
            done = os.copy_file_range(source.descriptor, target, min(left, 16 << 20), offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            done = os.write(target, os.pread(source.descriptor, min(left, 1 << 20), offset))
        if not done:
            return
        offset, left = offset + done, left - done


def make_folders(root: int, path: str, owner: tuple[int, int] = (0, 0), mode: int = 0o755) -> None:
    """Make a folder and its parents inside an open root; those that are there stay as they are. Links are followed.

    ``owner`` is the one on disk.
    """
    place = "/"
    for part in path.split("/"):
        if part in ("", "."):
            continue
        following = posixpath.join(place, part)
        try:
            with opened(root, following):
                pass
        except FileNotFoundError:
            with opened(root, place) as parent:
                try:
                    os.mkdir(part, mode, dir_fd=parent)
                except FileExistsError:
                    target = _link_target(root, following, os.readlink(part, dir_fd=parent))
                    make_folders(root, target, owner, mode)
                else:
                    os.chown(part, *owner, dir_fd=parent, follow_symlinks=False)
        place = following
