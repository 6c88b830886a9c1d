"""Bridges between the event loop and the threads that read and write archives.

A thread reads a request's body as a blocking file; a handler writes out the progress that a thread reports.
"""

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from moorage_guest.images.compression import Bounded, compression
from moorage_guest.images.tarformat import TarError
from moorage_guest.web import ClientPayloadError, StreamReader

T = TypeVar("T")

#: Bytes that are kept between the network and the thread.
HIGH, LOW = 16 << 20, 4 << 20

#: Takes one message of the stream that clients show; callable from any thread.
Progress = Callable[[dict[str, Any]], None]


async def finished(work: Awaitable[T]) -> T:
    """Await what a thread does, and when cancelled wait for its end all the same: what comes after must not overtake it."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if not future.cancelled():
            future.exception()  # told by nobody else: whoever waited is being cancelled
        raise


class ClientGone(TarError):
    """The client ended its request's body before it was complete."""


class Conveyor:
    """Bytes on their way from the event loop to one thread that reads them; who writes waits when too much is under way."""

    def __init__(self, high: int = HIGH, low: int = LOW) -> None:
        self._loop = asyncio.get_running_loop()
        self._high, self._low = high, low
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._closed = False
        self._ready = threading.Condition()
        self._room = asyncio.Event()

    async def put(self, chunks: Iterable[bytes]) -> bool:
        """Add bytes and wait until there is room for more; false, at once, when nobody will read them."""
        with self._ready:
            if self._closed:
                return False
            for data in chunks:
                if data:
                    self._chunks.append(data)
                    self._size += len(data)
            full = self._size > self._high
            if full:
                self._room.clear()
            self._ready.notify()
        if full:
            await self._room.wait()
        return not self._closed

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing follows; the reader gets ``error`` instead of the end, and what it has not read yet is gone."""
        with self._ready:
            if error is not None:
                self._error = error
                self._chunks.clear()
                self._size = 0
            self._ended = True
            self._ready.notify()

    def read_some(self) -> bytes:
        """Return what there is, waiting for at least one byte; b"" at the end. Raises what `end` was given."""
        with self._ready:
            while not self._chunks and not self._ended:
                self._ready.wait()
            if not self._chunks:
                if self._error is not None:
                    raise self._error
                return b""
            data = self._chunks.popleft()
            before = self._size
            self._size -= len(data)
            wake = before > self._low >= self._size
        if wake:
            self._make_room()
        return data

    def close(self) -> None:
        """Stop keeping what comes; from any thread."""
        with self._ready:
            self._closed = True
            self._chunks.clear()
            self._size = 0
        self._make_room()

    def _make_room(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._room.set)


class BodyFile:
    """A request's body for a thread: `read_some` blocks. `feed` runs in the event loop meanwhile."""

    def __init__(self, body: StreamReader) -> None:
        self._body = body
        self._conveyor = Conveyor()

    async def feed(self) -> None:
        """Move the body over until it ends; never raises, `read_some` does."""
        error: BaseException | None = None
        try:
            while data := await self._body.readany():
                # Read on when nobody wants it, so that a client which writes everything first gets its answer.
                await self._conveyor.put([data])
        except (ClientPayloadError, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError) as cause:
            error = ClientGone("unexpected EOF")
            if isinstance(cause, asyncio.CancelledError):
                raise
        finally:
            self._conveyor.end(error)

    def read_some(self) -> bytes:
        """Return what there is, waiting for at least one byte; b"" at the end. Raises ClientGone."""
        return self._conveyor.read_some()

    def close(self) -> None:
        """Stop keeping what comes."""
        self._conveyor.close()


class BufferedSource:
    """Exact reads from something that gives pieces: `read_some` returns b"" at the end."""

    def __init__(self, read_some: Callable[[], bytes]) -> None:
        self._read_some = read_some
        self._rest = memoryview(b"")
        self.position = 0

    def peek(self, count: int) -> bytes:
        """Return up to ``count`` bytes without taking them."""
        while len(self._rest) < count:
            more = self._read_some()
            if not more:
                break
            self._rest = memoryview(bytes(self._rest) + more)
        return bytes(self._rest[:count])

    def piece(self, limit: int) -> memoryview:
        """Return at least one and at most ``limit`` bytes, empty at the end."""
        if not self._rest:
            self._rest = memoryview(self._read_some())
        data, self._rest = self._rest[:limit], self._rest[limit:]
        self.position += len(data)
        return data

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, fewer only at the end."""
        first = self.piece(count)
        if len(first) == count:
            return bytes(first)
        parts = [bytes(first)]
        left = count - len(first)
        while left and first:
            first = self.piece(left)
            parts.append(bytes(first))
            left -= len(first)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Throw ``count`` bytes away; raises TarError at the end."""
        while count:
            data = self.piece(count)
            if not data:
                raise TarError("unexpected EOF")
            count -= len(data)


def uncompressed(source: BufferedSource) -> BufferedSource:
    """Return the source, or what it decompresses to. Reading raises TarError for a damaged stream or a bomb."""
    kind = compression(source.peek(8))
    if not kind:
        return source
    undo = Bounded(kind)

    def pieces() -> Iterator[bytes]:
        while data := source.piece(1 << 20):
            yield from undo.feed(bytes(data))
        undo.finish()

    iterator = pieces()
    return BufferedSource(lambda: next(iterator, b""))


async def with_body(body: StreamReader, work: Callable[[BodyFile], T]) -> T:
    """Run ``work`` in a thread with the body as its file, and return what it returns.

    When cancelled (the client is gone), the thread sees the end of the body and is waited for.
    """
    file = BodyFile(body)
    feeder = asyncio.get_running_loop().create_task(file.feed(), name="request-body")
    thread = asyncio.ensure_future(asyncio.to_thread(work, file))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        feeder.cancel()
        file.close()
        with contextlib.suppress(Exception):
            await thread
        raise
    finally:
        file.close()
        if not feeder.done():
            # The work may end before the body does: take the rest so that the connection stays usable.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await asyncio.shield(feeder)
            feeder.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeder


class ProgressQueue:
    """Messages of a thread for one client, in order. `send` never blocks; `lines` ends after `end`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def send(self, message: dict[str, Any]) -> None:
        """Add a message; from any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, message)

    def end(self) -> None:
        """Say that nothing follows; from any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, None)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield messages as JSON lines, those that wait together in one piece."""
        while True:
            message = await self._queue.get()
            out: list[bytes] = []
            while message is not None:
                out.append(json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\r\n")
                if self._queue.empty():
                    break
                message = self._queue.get_nowait()
            if out:
                yield b"".join(out)
            if message is None:
                return


def failure(error: BaseException) -> dict[str, Any]:
    """Return the message that ends a stream with an error."""
    text = str(error) or type(error).__name__
    code = getattr(error, "code", None)
    detail = {"message": text} if code is None else {"code": code, "message": text}
    return {"errorDetail": detail, "error": text}


def bar(current: int, total: int) -> str:
    """Return the text that old clients show beside a progress."""
    if total <= 0:
        return human(current)
    done = min(max(current * 50 // total, 0), 50)
    middle = ">" if done < 50 else ""
    numbers = f"{human(current)}/{human(total)}"
    return f"[{'=' * done}{middle}{' ' * (50 - done - len(middle))}] {numbers:>8}"


def human(size: float) -> str:
    """Return a size in decimal units with four digits."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    index = 0
    while size >= 1000 and index < len(units) - 1:
        size /= 1000
        index += 1
    return f"{size:.4g}{units[index]}"
