"""Reads a container's log: from the end or the beginning, by time, following, over rotated and packed files.

File work happens in threads. How far a reader has come is a small record that outlives rotation and the daemon: the
time of the last records given out, and how many bytes of them.
"""

import asyncio
import bisect
import contextlib
import gzip
import operator
import os
import struct
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from moorage_guest.logs.files import history
from moorage_guest.logs.formats import Format, Run
from moorage_guest.logs.notify import Notifier
from moorage_guest.logs.times import fixed_text

#: Bytes of a file that are read at once.
BLOCK = 256 * 1024

#: Bytes in a long frame at most.
_LONG = 32 * 1024

_FRAME = struct.Struct("!BxxxI")
#: The head of a frame with a line of so many bytes and a newline.
_HEADS = {stream: [_FRAME.pack(stream, length + 1) for length in range(1024)] for stream in (1, 2)}


@dataclass(frozen=True)
class LogQuery:
    """What to read. ``tail`` None is all; times in nanoseconds since the epoch, 0 is no bound.

    ``multiplexed``: as the Engine API frames streams without a tty, one frame a line; with ``long_frames`` as many lines
    in a frame as came together.
    """

    stdout: bool = True
    stderr: bool = True
    since_ns: int = 0
    until_ns: int = 0
    tail: int | None = None
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    multiplexed: bool = False
    long_frames: bool = False


@dataclass(frozen=True)
class Position:
    """How far a reader is: everything before ``time_ns`` and ``count`` bytes of the records of that time.

    ``open`` are the streams whose last line goes on behind it.
    """

    time_ns: int
    count: int
    open: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a record that `from_json` takes."""
        return {"time": self.time_ns, "count": self.count, "open": list(self.open)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Position":
        """Take up what `to_json` returned. Raises KeyError or ValueError."""
        return cls(int(record["time"]), int(record["count"]), tuple(record.get("open", ())))


@dataclass(frozen=True)
class LogChunk:
    """Bytes to send to the client, and where to go on after them."""

    data: bytes
    position: Position


def frame(stream: int, data: bytes) -> bytes:
    """Return one frame of the multiplexed stream."""
    return _FRAME.pack(stream, len(data)) + data


def frame_long(stream: int, data: bytes) -> bytes:
    """Return ``data`` in few frames; each fits into the buffer with which Go clients begin."""
    pieces = (data[at : at + _LONG] for at in range(0, len(data), _LONG))
    return b"".join(frame(stream, piece) for piece in pieces)


def frame_lines(stream: int, data: bytes) -> bytes:
    """Return ``data`` as frames of one line each, as dockerd sends them."""
    lines = data.split(b"\n")
    last = lines.pop()
    heads = _HEADS[stream]
    try:
        framed = b"\n".join(map(operator.add, map(heads.__getitem__, map(len, lines)), lines))
    except IndexError:  # a long line
        framed = b"\n".join([_FRAME.pack(stream, len(line) + 1) + line for line in lines])
    if lines:
        framed += b"\n"
    return framed + frame(stream, last) if last else framed


async def read_logs(
    path: Path, format_: Format, query: LogQuery, *, notifier: Notifier | None = None, position: Position | None = None
) -> AsyncGenerator[LogChunk, None]:
    """Yield the log, and with ``query.follow`` and a notifier what comes, until that is closed.

    ``position`` goes on after an earlier chunk and makes ``tail`` meaningless: with that, the first chunk is empty and says
    where the tail begins. A log that is not there is empty.
    Raises OSError. The iterator is to be closed (`contextlib.aclosing`).
    """
    reading = _Reading(path, format_, query, position)
    try:
        await asyncio.to_thread(reading.start)
        if position is None and reading.position is not None:
            yield LogChunk(b"", reading.position)
        while True:
            seen = -1 if notifier is None else notifier.version
            ended = notifier is None or notifier.closed
            chunk = await asyncio.to_thread(reading.next)
            if chunk is not None:
                if chunk.data:
                    yield chunk
                if not reading.past_until:
                    continue
            if reading.past_until or not query.follow or ended or notifier is None:
                return
            if not await _wait(notifier, seen, query.until_ns):
                return
    finally:
        reading.close()


async def _wait(notifier: Notifier, seen: int, until_ns: int) -> bool:
    """Wait for more; False when the time until which to follow has come."""
    if not until_ns:
        await notifier.wait(seen)
        return True
    left = until_ns / 1e9 - time.time()
    try:
        async with asyncio.timeout(max(left, 0.0)):
            await notifier.wait(seen)
    except TimeoutError:
        return False
    return True


class _Source:
    """One file, plain or packed, open and read by offset. It stays readable when it is renamed or removed."""

    def __init__(self, path: Path) -> None:
        self.packed = path.suffix == ".gz"
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._content: bytes | None = None
        status = os.fstat(self._descriptor)
        self.identity = (status.st_dev, status.st_ino)

    def size(self) -> int:
        return len(self._unpacked()) if self.packed else os.fstat(self._descriptor).st_size

    def sound_size(self, format_: Format) -> int:
        """Return where the last whole record ends: behind it may be one that is being written or was cut off."""
        return self.size() if self.packed else format_.sound(self._descriptor)

    def read(self, start: int, length: int) -> bytes:
        if self.packed:
            return self._unpacked()[start : start + length]
        return os.pread(self._descriptor, length, start)

    def _unpacked(self) -> bytes:
        if self._content is None:
            with open(self._descriptor, "rb", closefd=False) as raw, gzip.GzipFile(fileobj=raw) as file:
                self._content = file.read()
        return self._content

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._content = None


def _identities(path: Path) -> list[tuple[Path, int, int]]:
    found = []
    for file in history(path):
        with contextlib.suppress(FileNotFoundError):
            status = file.stat()
            found.append((file, status.st_dev, status.st_ino))
    return found


def _open_all(path: Path) -> list[_Source]:
    """Open a log's files, oldest first. They are renamed while one looks: what is returned was so at one moment."""
    while True:
        wanted = _identities(path)
        sources = []
        try:
            for file, _, _ in wanted:
                sources.append(_Source(file))
        except FileNotFoundError:
            pass
        if [each.identity for each in sources] == [identity[1:] for identity in wanted] and _identities(path) == wanted:
            return sources
        for source in sources:
            source.close()


@dataclass
class _Reading:
    """The state of one reader; used by one thread at a time."""

    path: Path
    format: Format
    query: LogQuery
    position: Position | None
    past_until: bool = False
    _files: list[_Source] = field(default_factory=list)
    _source: _Source | None = None
    _opened: bool = False
    _offset: int = 0
    _time: int = 0
    _count: int = 0
    _line_open: dict[int, bool] = field(default_factory=dict)

    def start(self) -> None:
        """Open the first file to read, at the right place."""
        self._files = _open_all(self.path)
        if self.position is not None:
            self._line_open = dict.fromkeys(self.position.open, True)
            self._seek_time(self.position.time_ns)
        elif self.query.tail is not None:
            self._seek_tail(self.query.tail)
        elif self.query.since_ns:
            self._seek_time(self.query.since_ns)

    def close(self) -> None:
        self._close_source()
        self._drop(len(self._files))

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _drop(self, count: int) -> None:
        """Close the first ``count`` of the files that are left."""
        for source in self._files[:count]:
            source.close()
        del self._files[:count]

    def next(self) -> LogChunk | None:
        """Return what the next block gives, maybe nothing (empty data), or None when there is no more for now."""
        while True:
            if self._source is None and not self._open_next():
                return None
            block = self._block()
            if not block and not self._files and self._was_rotated():
                # What was written between reading and renaming comes first.
                block = self._block()
                if not block and self._find_again():
                    continue
            if block:
                self._offset += len(block)
                return self._chunk(block)
            if self._source is not None and self._source.size() < self._offset:
                self._offset = 0  # somebody has cut the file short
                continue
            if not self._files:
                return None
            self._close_source()

    def _open_next(self) -> bool:
        """Take the next of the files, if there is one."""
        if not self._files and not self._opened:
            self._files = _open_all(self.path)
        if not self._files:
            return False
        self._begin(0, 0)
        return True

    def _begin(self, index: int, offset: int) -> None:
        """Go to one of the files that are left, forgetting those before it."""
        self._drop(index)
        self._source, self._offset = self._files.pop(0), offset
        self._opened = True

    def _was_rotated(self) -> bool:
        if self._source is None:
            return False
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) != self._source.identity

    def _find_again(self) -> bool:
        """Go on behind the file that has been read to its end, which has another name by now or is packed or gone.

        Returns whether there is something behind it.
        """
        assert self._source is not None
        self._files = _open_all(self.path)
        identities = [source.identity for source in self._files]
        if self._source.identity in identities:
            self._drop(identities.index(self._source.identity) + 1)
            if not self._files:
                return False
            self._close_source()
            return True
        self._close_source()
        if self._time:
            self.position = Position(self._time, self._count)
            self._time = self._count = 0
        if self.position is not None:
            self._seek_time(self.position.time_ns)
        else:
            self._drop(len(self._files) - 1)
        return True

    def _block(self) -> bytes:
        """Return whole records from the offset on."""
        assert self._source is not None
        length = BLOCK
        while True:
            data = self._source.read(self._offset, length)
            whole = self.format.whole(data)
            if whole:
                return data[:whole]
            if len(data) < length:
                return b""
            length *= 2

    def _first_time(self, source: _Source, offset: int, end: int) -> int | None:
        data = source.read(offset, min(BLOCK, end - offset))
        run = next(iter(self.format.decode(data[: self.format.whole(data)])), None)
        return None if run is None else run.time_ns

    def _seek_time(self, time_ns: int) -> None:
        """Begin with the last file that begins at or before this time: everything later is behind it."""
        for index in range(len(self._files) - 1, -1, -1):
            source = self._files[index]
            first = self._first_time(source, 0, source.size())
            if index == 0 or (first is not None and first < time_ns):
                self._begin(index, self._bisect(source, time_ns))
                return

    def _bisect(self, source: _Source, time_ns: int) -> int:
        """Return the offset of a record before all of this time or later, by halving: times only grow."""
        blocks = source.size() // BLOCK

        def begins(number: int) -> tuple[int, int]:
            """Return (time, offset) of the first record that begins in this block; the format finds its edges."""
            offset = self.format.align(source.read(number * BLOCK, BLOCK)) if number else 0
            if offset is None:
                return 0, 0
            at = number * BLOCK + offset
            return self._first_time(source, at, source.size()) or 0, at

        number = bisect.bisect_left(range(blocks), time_ns, key=lambda each: begins(each)[0])
        return begins(number - 1)[1] if number > 0 else 0

    def _seek_tail(self, count: int) -> None:
        """Begin with the last ``count`` lines."""
        left = count
        for index in range(len(self._files) - 1, -1, -1):
            source = self._files[index]
            if left <= 0:
                offset, found = source.sound_size(self.format), 0
            else:
                offset, found = self._last(source, left)
            if found >= left or index == 0:
                self._begin(index, offset)
                self._mark(source, max(0, found - left), oldest=index == 0)
                return
            left -= found
        self.position = Position(0, 0)

    def _mark(self, source: _Source, surplus: int, *, oldest: bool) -> None:
        """Turn the offset to begin at, and lines to leave out behind it, into a position, which outlives the daemon."""
        ahead = iter(self.format.decode(self._block()))
        following = next(ahead, None)
        time_ns, count = 0 if following is None else following.time_ns, 0
        start, before = self._before(source, self._offset, time_ns)
        if following is None:
            time_ns = before[-1].time_ns if before else 0 if oldest else time.time_ns()
        count = sum(len(run.data) for run in before if run.time_ns == time_ns)
        while surplus and following is not None:
            if following.time_ns != time_ns:
                time_ns, count = following.time_ns, 0
            end = 0
            while surplus and end < len(following.data):
                end = following.data.find(b"\n", end) + 1 or len(following.data)
                surplus -= 1
            count += end
            following = next(ahead, None)
        self.position = Position(time_ns, count)
        self._offset = start

    def _before(self, source: _Source, offset: int, time_ns: int) -> tuple[int, list[Run]]:
        """Return the runs before an offset back to all of ``time_ns`` (0: of the last one's time), and where they begin."""
        length = BLOCK
        while True:
            start = max(0, offset - length)
            block = source.read(start, offset - start)
            first, _ = self.format.last(block, sys.maxsize, from_start=start == 0)
            runs = list(self.format.decode(block[first:]))
            if start == 0 or (runs and runs[0].time_ns < (time_ns or runs[-1].time_ns)):
                return start + first, runs
            length *= 4

    def _last(self, source: _Source, count: int) -> tuple[int, int]:
        size = source.sound_size(self.format)
        length = BLOCK
        while True:
            start = max(0, size - length)
            data = source.read(start, size - start)
            if start == 0:
                data = data[: self.format.whole(data)]
            offset, found = self.format.last(data, count, from_start=start == 0)
            if found >= count or start == 0:
                return start + offset, found
            length *= 4

    def _chunk(self, block: bytes) -> LogChunk:
        parts: list[bytes] = []
        for run in self.format.decode(block):
            parts.append(self._take(run))
            if self.past_until:
                break
        open_ = tuple(sorted(stream for stream, goes_on in self._line_open.items() if goes_on))
        return LogChunk(b"".join(parts), Position(self._time, self._count, open_))

    def _take(self, run: Run) -> bytes:
        """Return what the client gets of a run, and count it."""
        data = run.data
        skip = 0
        if self.position is not None:
            if run.time_ns < self.position.time_ns:
                return b""
            if run.time_ns == self.position.time_ns:
                skip = max(0, self.position.count - (self._count if self._time == run.time_ns else 0))
        if run.time_ns == self._time:
            self._count += len(data)
        else:
            self._time, self._count = run.time_ns, len(data)
        data = data[skip:]
        query = self.query
        if query.until_ns and run.time_ns > query.until_ns:
            self.past_until = True
            return b""
        if not data or run.time_ns < query.since_ns or not (query.stderr if run.stream == 2 else query.stdout):
            return b""
        if query.timestamps or query.details:
            data = self._with_prefix(run, data)
        if not query.multiplexed:
            return data
        return frame_long(run.stream, data) if query.long_frames else frame_lines(run.stream, data)

    def _with_prefix(self, run: Run, data: bytes) -> bytes:
        prefix = b""
        if self.query.timestamps:
            prefix += fixed_text(run.time_ns).encode() + b" "
        if self.query.details:
            pairs = (f"{quote_plus(name)}={quote_plus(value)}" for name, value in sorted(run.attributes.items()))
            prefix += ",".join(pairs).encode() + b" "
        goes_on = self._line_open.get(run.stream, False)
        self._line_open[run.stream] = not data.endswith(b"\n")
        text = data[:-1] if data.endswith(b"\n") else data
        text = text.replace(b"\n", b"\n" + prefix) + (b"\n" if data.endswith(b"\n") else b"")
        return text if goes_on else prefix + text
