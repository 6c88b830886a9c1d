"""Files over a session's streams, both ways: packets of fsutil.

The sender says what there is (STAT, in order, an empty one at the end), the receiver asks for contents by number (REQ), gets
them in pieces (DATA, an empty one at the end of each) and ends the transfer (FIN, answered by FIN).
"""

import asyncio
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_plus

from moorage_guest.buildkit.errors import Code, GrpcError
from moorage_guest.buildkit.grpc import ClientStream
from moorage_guest.buildkit.session_messages import DATA, ERROR, FIN, REQUEST, STAT, Packet, Stat
from moorage_guest.images.build.context import Announced, ContextTree
from moorage_guest.images.tarformat import FIFO, FOLDER, HARD_LINK, REGULAR, SYMLINK, Entry, TarError

FILES = "/moby.filesync.v1.FileSync/DiffCopy"
OUTPUT = "/moby.filesync.v1.FileSend/DiffCopy"

#: Contents that are asked for at once: fewer than the sender's queue holds, or both sides might wait for each other.
_MAX_REQUESTS = 64

#: Bytes of content that wait to be written.
_BATCH = 1 << 20

_PIECE = 32 << 10

# Go's os.FileMode.
_GO_FOLDER, _GO_SYMLINK, _GO_DEVICE, _GO_FIFO, _GO_SOCKET = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24
_GO_SETUID, _GO_SETGID, _GO_CHARACTER, _GO_STICKY, _GO_IRREGULAR = 1 << 23, 1 << 22, 1 << 21, 1 << 20, 1 << 19
_GO_TYPE = _GO_FOLDER | _GO_SYMLINK | _GO_DEVICE | _GO_FIFO | _GO_SOCKET | _GO_CHARACTER | _GO_IRREGULAR

_PERMISSIONS = ((_GO_SETUID, stat.S_ISUID), (_GO_SETGID, stat.S_ISGID), (_GO_STICKY, stat.S_ISVTX))
_KINDS = {0: REGULAR, _GO_FOLDER: FOLDER, _GO_SYMLINK: SYMLINK, _GO_FIFO: FIFO}
_GO_KINDS = {
    stat.S_IFREG: 0,
    stat.S_IFDIR: _GO_FOLDER,
    stat.S_IFLNK: _GO_SYMLINK,
    stat.S_IFIFO: _GO_FIFO,
    stat.S_IFCHR: _GO_DEVICE | _GO_CHARACTER,
    stat.S_IFBLK: _GO_DEVICE,
}


def permissions(mode: int) -> int:
    """Return the permissions of Go's os.FileMode as Unix has them."""
    return mode & 0o777 | sum(unix for go, unix in _PERMISSIONS if mode & go)


def go_mode(mode: int) -> int:
    """Return Unix' st_mode as Go's os.FileMode."""
    return mode & 0o777 | sum(go for go, unix in _PERMISSIONS if mode & unix) | _GO_KINDS[stat.S_IFMT(mode)]


def options(
    name: str, *, follow: Sequence[str] = (), include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Return the metadata of a call that asks for files; what headers cannot hold is escaped as clients expect."""
    result: list[tuple[str, str]] = []
    asked = (
        ("dir-name", [name]),
        ("followpaths", follow),
        ("include-patterns", include),
        ("exclude-patterns", exclude),
    )
    for key, values in asked:
        escaped = any(not value.isascii() or not value.isprintable() or value != value.strip() for value in values)
        if escaped:
            result.append((f"{key}-encoded", "1"))
        result += [(key, quote_plus(value, errors="surrogateescape") if escaped else value) for value in values]
    return result


# -- receiving ----------------------------------------------------------------------------------------------------------


def _entry(found: Stat) -> Entry | None:
    """Return what a tree holds of a file; None for what no context has (sockets, devices)."""
    kind = _KINDS.get(found.mode & _GO_TYPE)
    if kind is None:
        return None
    link = found.linkname if kind in (REGULAR, SYMLINK) else ""
    if kind == REGULAR and link:
        kind = HARD_LINK
    size = found.size if kind == REGULAR else 0
    return Entry(found.path, kind, size, permissions(found.mode), 0, 0, found.mod_time, link, 0, 0, 0)


def _order(path: str) -> bytes:
    """Return what paths are sorted by: a folder's content comes right after it."""
    return os.fsencode(path).replace(b"/", b"\0")


@dataclass
class Receiver:
    """Takes a client's files into a tree, those that have not changed from the one ``before``.

    ``progress`` is told the bytes that have come.
    """

    stream: ClientStream
    tree: ContextTree
    progress: Callable[[int], None] | None = None
    before: ContextTree | None = None
    _number: int = 0
    _last: bytes = b""
    _listed: bool = False
    _wanted: "deque[tuple[int, Announced]]" = field(default_factory=deque)
    _asked: "dict[int, Announced]" = field(default_factory=dict)
    _batch: "list[tuple[Announced, bytes]]" = field(default_factory=list)
    _batched: int = 0
    _bytes: int = 0

    async def run(self) -> None:
        """Take everything. Raises GrpcError, PeerGone, OSError, and InvalidParameter for files that cannot be."""
        if self.before is not None:
            self.tree.take_content(self.before)
        while True:
            packet = await self.stream.receive(Packet)
            if packet is None:
                raise GrpcError(Code.DATA_LOSS, "the client ended the transfer of files before its end")
            self._bytes += self.stream.size
            if packet.type == STAT:
                await self._take_stat(packet.stat)
            elif packet.type == DATA:
                await self._take_data(packet.id, packet.data)
            elif packet.type == ERROR:
                raise GrpcError(
                    Code.UNKNOWN, packet.data.decode("utf-8", "replace") or "the client cannot send its files"
                )
            elif packet.type == FIN:
                break
        if not self._listed or self._wanted or self._asked:
            raise GrpcError(Code.DATA_LOSS, "the client ended the transfer of files before its end")
        await self._write()
        if self.progress is not None:
            self.progress(self._bytes)
        await self.stream.finish()
        while await self.stream.receive(Packet) is not None:
            pass  # how the call ended

    async def _take_stat(self, found: Stat | None) -> None:
        if found is None:
            self._listed = True
            await self._go_on()
            return
        if self._listed:
            raise GrpcError(Code.INVALID_ARGUMENT, f"{found.path} was named after the end of the list")
        number, self._number = self._number, self._number + 1
        self._check(found)
        entry = _entry(found)
        if entry is None:
            return
        try:
            if self.before is not None and entry.kind == REGULAR and self.tree.adopt(entry, self.before):
                return
            announced = self.tree.announce(entry)
        except TarError as error:
            raise GrpcError(Code.INVALID_ARGUMENT, str(error)) from None
        if announced is not None and entry.size:
            self._wanted.append((number, announced))
            await self._go_on()

    def _check(self, found: Stat) -> None:
        """Raise GrpcError for a path that leads elsewhere, or comes out of order: a file named twice would be two things."""
        parts = found.path.split("/")
        order = _order(found.path)
        if any(part in ("", ".", "..") for part in parts) or "\0" in found.path:
            raise GrpcError(Code.INVALID_ARGUMENT, f"the client named an impossible path: {found.path!r}")
        if order <= self._last and self._number > 1:
            raise GrpcError(Code.INVALID_ARGUMENT, f"the client named {found.path!r} out of order")
        if found.size < 0:
            raise GrpcError(Code.INVALID_ARGUMENT, f"{found.path!r} has {found.size} bytes")
        self._last = order

    async def _go_on(self) -> None:
        """Ask for what is wanted next, for many at a time; at the end say so."""
        if len(self._asked) <= _MAX_REQUESTS // 2:
            asking = [self._wanted.popleft() for _ in range(min(len(self._wanted), _MAX_REQUESTS - len(self._asked)))]
            self._asked.update(asking)
            if asking:
                await self.stream.send(*(Packet(REQUEST, id=number) for number, _ in asking))
        if self._listed and not self._asked:
            await self.stream.send(Packet(FIN))

    async def _take_data(self, number: int, data: bytes) -> None:
        announced = self._asked.get(number)
        if announced is None:
            raise GrpcError(Code.INVALID_ARGUMENT, f"the client sent content that was not asked for: {number}")
        self._batch.append((announced, data))
        self._batched += len(data)
        if self._batched >= _BATCH:
            await self._write()
        if not data:
            del self._asked[number]
            await self._go_on()
        if self.progress is not None:
            self.progress(self._bytes)

    async def _write(self) -> None:
        batch, self._batch, self._batched = self._batch, [], 0
        if batch:
            await asyncio.to_thread(self.tree.fill, batch)


# -- sending ------------------------------------------------------------------------------------------------------------


@dataclass
class Sender:
    """Sends what is in a folder; nobody else may change it meanwhile. ``progress`` is told the bytes of content so far."""

    stream: ClientStream
    root: Path
    progress: Callable[[int], None] | None = None
    _files: list[str | None] = field(default_factory=list)
    _links: dict[tuple[int, int], str] = field(default_factory=dict)
    _bytes: int = 0

    async def run(self) -> int:
        """Send everything, return the bytes of content. Raises GrpcError, PeerGone, OSError."""
        tasks = {asyncio.ensure_future(self._list()), asyncio.ensure_future(self._answer())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.stream.send(Packet(FIN))
        await self.stream.finish()
        while await self.stream.receive(Packet) is not None:
            pass  # how the call ended
        return self._bytes

    async def _list(self) -> None:
        walking = self._walk(self.root, "")
        while found := await asyncio.to_thread(_some, walking):
            self._files += [each.path if not each.linkname and each.mode & _GO_TYPE == 0 else None for each in found]
            await self.stream.send(*(Packet(STAT, each) for each in found))
        await self.stream.send(Packet(STAT))

    def _walk(self, folder: Path, name: str) -> Iterator[Stat]:
        for leaf in sorted((each.name for each in folder.iterdir()), key=os.fsencode):
            path = f"{name}/{leaf}" if name else leaf
            status = (folder / leaf).lstat()
            kind = stat.S_IFMT(status.st_mode)
            if kind not in _GO_KINDS:
                continue
            found = Stat(path, go_mode(status.st_mode), status.st_uid, status.st_gid, 0, status.st_mtime_ns)
            if kind == stat.S_IFLNK:
                found.linkname = os.readlink(folder / leaf)  # noqa: PTH115 -- as it stands, not tidied up
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                found.devmajor, found.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
            elif kind == stat.S_IFREG:
                first = self._links.setdefault((status.st_dev, status.st_ino), path) if status.st_nlink > 1 else path
                if first != path:
                    found.linkname = first
                else:
                    found.size = status.st_size
            yield found
            if kind == stat.S_IFDIR:
                yield from self._walk(folder / leaf, path)

    async def _answer(self) -> None:
        """Answer what the client asks for until it has everything."""
        while True:
            packet = await self.stream.receive(Packet)
            if packet is None:
                raise GrpcError(Code.DATA_LOSS, "the client ended the transfer of files before its end")
            if packet.type == FIN:
                return
            if packet.type == ERROR:
                raise GrpcError(Code.UNKNOWN, f"error from receiver: {packet.data.decode('utf-8', 'replace')}")
            if packet.type == REQUEST:
                await self._send_file(packet.id)

    async def _send_file(self, number: int) -> None:
        path = self._files[number] if 0 <= number < len(self._files) else None
        if path is None:
            raise GrpcError(Code.INVALID_ARGUMENT, f"the client asked for a file that there is not: {number}")
        self._files[number] = None
        descriptor = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            offset = 0
            while data := await asyncio.to_thread(os.pread, descriptor, _BATCH, offset):
                for start in range(0, len(data), _PIECE):
                    await self.stream.send(Packet(DATA, id=number, data=data[start : start + _PIECE]))
                offset += len(data)
                self._bytes += len(data)
                if self.progress is not None:
                    self.progress(self._bytes)
        finally:
            os.close(descriptor)
        await self.stream.send(Packet(DATA, id=number))


def _some(walking: Iterator[Stat]) -> list[Stat]:
    """Return the next few that are found, none at the end. Blocks."""
    return [each for _, each in zip(range(256), walking, strict=False)]
