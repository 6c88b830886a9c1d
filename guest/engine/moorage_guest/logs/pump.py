"""The pump: one thread that moves what containers print from their pipes into their logs, losing and doubling nothing.

Each step takes what is in a stream's pipe A into pipe B (splice), looks at it (tee), writes into the journal what the
log file will look like, appends the records, feeds attached clients, empties B and marks the step done. SIGKILL at any
instant leaves pipes, journal and file size that say which of these was the last; `add` goes on from there.

While the log's disk is full the stream's bytes stay where they are and the container blocks, as it does while no daemon
runs: it is tried again every second. In non-blocking mode they wait in memory instead, and are dropped beyond a bound.
"""

import asyncio
import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from moorage_guest.logs import pipes
from moorage_guest.logs.feed import Feed
from moorage_guest.logs.files import LogFile, history
from moorage_guest.logs.journal import Journal, Step, StreamState
from moorage_guest.logs.notify import Notifier
from moorage_guest.logs.records import Cut, cut, finish
from moorage_guest.logs.targets import LogTarget

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds until a log that could not be written is tried again.
RETRY = 1.0

#: Seconds without output after which the output of a container that has ended is taken to be complete.
GRACE = 1.0

#: Chunks that one container may take in a row while it is drained; then others get their turn.
TURN = 16

#: Seconds between two fsyncs of a log that is written to.
SYNC_INTERVAL = 1.0


class UnknownContainer(Exception):
    """The pump has no such container."""


@dataclass
class _Container:
    target: LogTarget
    journal: Journal
    states: list[StreamState]
    generation: int
    last_time: int
    #: Streams whose pipe B holds a chunk that is in no log yet.
    pending: set[int] = field(default_factory=set)
    #: Streams whose pipe A nobody can write to any more.
    ended: set[int] = field(default_factory=set)
    stalled: bool = False
    #: How long the log was before a write that has failed and may have left part of its records there.
    torn: int | None = None
    watched: set[int] = field(default_factory=set)
    #: Non-blocking mode: chunks that wait while the log cannot be written, their bytes, and how many were dropped.
    waiting: deque[tuple[int, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    dropped: int = 0

    @property
    def buffer(self) -> int | None:
        """Bytes that may wait in memory; None in blocking mode."""
        return None if self.target.sink is None else self.target.sink.buffer


class Pump:
    """All containers' logs. `start` it in the daemon's event loop; methods are called from there."""

    def __init__(self, *, sync_interval: float = SYNC_INTERVAL) -> None:
        self._sync_interval = sync_interval
        self._containers: dict[str, _Container] = {}
        self._by_descriptor: dict[int, tuple[_Container, int]] = {}
        self._feeds: dict[int, _Container] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._retries: dict[str, float] = {}
        #: Logs that are written no more and are yet to be made durable and closed.
        self._leaving: deque[LogFile] = deque()
        self._stopping = False
        self._sync_stop = threading.Event()
        self._scratch: tuple[int, int] = (-1, -1)
        self._thread: threading.Thread | None = None
        self._sync_thread: threading.Thread | None = None

    # -- for the event loop ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin pumping in a thread of its own."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self._scratch = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pipes.set_capacity(self._scratch[1])
        self._thread = threading.Thread(target=self._run, name="log-pump", daemon=True)
        self._thread.start()
        self._sync_thread = threading.Thread(target=self._sync, name="log-sync", daemon=True)
        self._sync_thread.start()

    async def stop(self) -> None:
        """Finish the step in hand, make the logs durable and let go of everything; containers are not touched."""
        if self._thread is None:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._sync_stop.set()
        await asyncio.to_thread(self._join)
        self._thread = None

    async def add(self, target: LogTarget) -> None:
        """Take a container on, going on where the last daemon stopped. Raises JournalError or OSError."""
        await self._call(lambda: self._add(target))

    async def drained(self, container_id: str, *, grace: float = GRACE) -> None:
        """Return when all that comes out of the pipes is written, an unfinished line at the end included.

        For a container that has ended: its pipes' writers go away, at the latest when its shim has passed everything on.
        If some process keeps a pipe open all the same, ``grace`` seconds without output are the end. Waits as long as
        the log's disk is full. Raises UnknownContainer.
        """
        loop = asyncio.get_running_loop()
        seen, quiet_since, pause = -1, loop.time(), 0.002
        while True:
            taken, dry, ended = await self._call(lambda: self._drain(container_id))
            if taken != seen:
                seen, quiet_since, pause = taken, loop.time(), 0.002
            if not dry:
                continue
            if ended or loop.time() - quiet_since >= grace:
                if await self._call(lambda: self._finish(container_id)):
                    return
                pause = RETRY / 4
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    async def remove(self, container_id: str) -> None:
        """Let go of a container's log; followers end. Quiet if there is none."""
        await self._call(lambda: self._remove(container_id))

    async def attach(self, container_id: str) -> dict[int, int]:
        """Feed attached clients from now on; return the offset by stream of the first byte that will be fed.

        Raises UnknownContainer.
        """
        return await self._call(lambda: self._attach(container_id))

    async def detach(self, container_id: str) -> None:
        """Nobody is attached any more. Quiet if the container is unknown."""
        await self._call(lambda: self._detach(container_id))

    async def hand_over(self, container_id: str) -> int | None:
        """Feed no more; return a file with what attached clients were too slow for, for the shim, or None.

        For a container whose log is complete. The caller closes the file. Raises UnknownContainer.
        """
        return await self._call(lambda: self._hand_over(container_id))

    async def offsets(self, container_id: str) -> dict[int, int]:
        """Return how many bytes of each stream have been taken from the pipes. Raises UnknownContainer."""
        return await self._call(lambda: self._offsets(container_id))

    def notifier(self, container_id: str) -> Notifier | None:
        """Return what tells of new records, or None when the container's log is not being written."""
        container = self._containers.get(container_id)
        return None if container is None else container.target.notifier

    async def _call(self, action: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def answer(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type] # result is a T when there is no error

        def command() -> None:
            try:
                result = action()
            except Exception as error:
                loop.call_soon_threadsafe(answer, None, error)
            else:
                loop.call_soon_threadsafe(answer, result, None)

        self._commands.append(command)
        os.eventfd_write(self._wake, 1)
        return await future

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._sync_thread is not None:
            self._sync_thread.join()
        for container_id in list(self._containers):
            self._remove(container_id)
        self._close_leaving()
        self._epoll.close()
        for descriptor in (self._wake, self._null, *self._scratch):
            os.close(descriptor)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception:
                log.exception("the log pump met an error and goes on")

    def _turn(self) -> None:
        for descriptor, _ in self._epoll.poll(self._until_retry()):
            if descriptor == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif descriptor in self._feeds:
                self._catch_up(self._feeds[descriptor])
            elif descriptor in self._by_descriptor:
                self._guarded(*self._by_descriptor[descriptor])
        while self._commands:
            self._commands.popleft()()
        self._retry()

    def _until_retry(self) -> float:
        if not self._retries:
            return -1.0
        return max(0.0, min(self._retries.values()) - time.monotonic())

    def _retry(self) -> None:
        now = time.monotonic()
        for container_id in [each for each, at in self._retries.items() if at <= now]:
            del self._retries[container_id]
            container = self._containers[container_id]
            if self._write_waiting(container):
                for stream in sorted(container.pending) or container.target.streams:
                    self._guarded(container, stream)

    def _guarded(self, container: _Container, stream: int) -> bool:
        """Do one step; a container whose log fails is tried again later and holds up nobody else."""
        try:
            found = self._step(container, stream)
        except Exception as error:
            self._stall(container, error)
            return False
        if container.stalled and not container.waiting:
            self._go_on(container)
        return found

    def _stall(self, container: _Container, error: Exception) -> None:
        if not container.stalled:
            log.error(
                "container %s: its log cannot be written and waits: %s", container.target.container_id, error,
                exc_info=not isinstance(error, OSError),
            )  # fmt: skip
        container.stalled = True
        self._retries[container.target.container_id] = time.monotonic() + RETRY
        if container.buffer is not None:
            for stream in sorted(container.pending):
                self._set_aside(container, stream)
        self._watch(container)

    def _go_on(self, container: _Container) -> None:
        log.info("container %s: its log is written again", container.target.container_id)
        if container.dropped:
            log.warning(
                "container %s: %d bytes of its output were dropped while its log could not be written (mode=non-blocking)",
                container.target.container_id, container.dropped,
            )  # fmt: skip
        container.dropped = 0
        container.stalled = False
        self._retries.pop(container.target.container_id, None)
        self._watch(container)

    def _set_aside(self, container: _Container, stream: int) -> None:
        """Take the chunk in pipe B into memory, or drop it when too much waits already."""
        chunk = pipes.peek(container.target.streams[stream].b_read, self._scratch)
        if container.waiting_bytes + len(chunk) <= (container.buffer or 0):
            container.waiting.append((stream, chunk))
            container.waiting_bytes += len(chunk)
        else:
            container.dropped += len(chunk)
        state = container.states[stream - 1]
        moved_on = replace(state, consumed=state.consumed + len(chunk))
        self._process(container, stream, Cut(b"", (), moved_on), chunk)
        container.pending.discard(stream)

    def _write_waiting(self, container: _Container) -> bool:
        """Write what waits in memory. Returns whether all of it could be written."""
        try:
            while container.waiting:
                stream, chunk = container.waiting[0]
                state = container.states[stream - 1]
                piece = cut(state, chunk)
                piece = replace(piece, state=replace(piece.state, consumed=state.consumed))
                self._process(container, stream, piece, b"")
                container.waiting.popleft()
                container.waiting_bytes -= len(chunk)
        except OSError as error:
            self._stall(container, error)
            return False
        return True

    def _watch(self, container: _Container) -> None:
        """Poll the pipes of a container that is well, and its feed while it is behind."""
        for stream, ends in container.target.streams.items():
            blocked = container.stalled and container.buffer is None
            wanted = not blocked and stream not in container.pending and stream not in container.ended
            if wanted and stream not in container.watched:
                self._epoll.register(ends.a_read, select.EPOLLIN)
                container.watched.add(stream)
            elif not wanted and stream in container.watched:
                self._epoll.unregister(ends.a_read)
                container.watched.discard(stream)

    def _step(self, container: _Container, stream: int) -> bool:
        """Take one chunk from a stream into the log. Returns whether there was one."""
        ends = container.target.streams[stream]
        if stream not in container.pending:
            moved = pipes.move(ends.a_read, ends.b_write, self._room(container))
            if moved is None:
                container.ended.add(stream)
                self._watch(container)
            if not moved:
                return False
            container.pending.add(stream)
        if container.stalled and container.waiting:
            self._set_aside(container, stream)
            return True
        chunk = pipes.peek(ends.b_read, self._scratch)
        self._process(container, stream, cut(container.states[stream - 1], chunk), chunk)
        container.pending.discard(stream)
        return True

    def _room(self, container: _Container) -> int:
        """How many bytes to take at once, so that a file with a max-size does not grow far beyond it."""
        sink = container.target.sink
        if sink is None or not sink.file.rotation.max_size:
            return pipes.CAPACITY
        left = sink.file.rotation.max_size - sink.file.identity()[2]
        if left <= 0:  # this chunk begins a new file
            left = sink.file.rotation.max_size
        return min(pipes.CAPACITY, max(256, left // 2))

    def _process(self, container: _Container, stream: int, piece: Cut, chunk: bytes) -> None:
        target, journal = container.target, container.journal
        now = max(time.time_ns(), container.last_time + 1)
        encoded = b"" if target.sink is None else target.sink.format.encode(stream, piece, now)
        device = inode = before = 0
        if encoded and target.sink is not None:
            self._mend(container)
            device, inode, before = target.sink.file.identity()
            if target.sink.file.rotate_for(before):
                device, inode, before = target.sink.file.identity()
        states = list(container.states)
        states[stream - 1] = piece.state
        step = Step(
            container.generation + 1, stream, len(chunk), device, inode, before, before + len(encoded), now,
            (states[0], states[1]),
        )  # fmt: skip
        journal.write(step)
        if encoded and target.sink is not None:
            try:
                target.sink.file.append(encoded)
            except OSError:
                container.torn = before
                self._mend(container)
                journal.forget(step.generation)
                raise
        if chunk:
            self._send(container, stream, piece.state.consumed - len(chunk), chunk)
            pipes.empty(target.streams[stream].b_read, self._null)
        journal.done = step.generation
        container.generation = step.generation
        container.states = states
        container.last_time = now
        if encoded:
            target.notifier.notify()

    def _mend(self, container: _Container) -> None:
        """Cut off what a write that failed has left of its records, which cannot be while the disk is read-only."""
        sink = container.target.sink
        if container.torn is None or sink is None:
            return
        if sink.file.identity()[2] > container.torn:
            sink.file.truncate(container.torn)
        container.torn = None

    def _send(self, container: _Container, stream: int, offset: int, chunk: bytes) -> None:
        feed = container.target.feed
        if feed is None or not feed.active:
            return
        feed.send(stream, offset, chunk)
        self._watch_feed(container, feed)

    def _watch_feed(self, container: _Container, feed: Feed) -> None:
        watched = feed.fileno() in self._feeds
        if feed.behind and not feed.broken and not watched:
            self._feeds[feed.fileno()] = container
            self._epoll.register(feed.fileno(), select.EPOLLOUT)
        elif watched and (not feed.behind or feed.broken):
            del self._feeds[feed.fileno()]
            self._epoll.unregister(feed.fileno())

    def _catch_up(self, container: _Container) -> None:
        feed = container.target.feed
        if feed is not None:
            feed.catch_up()
            self._watch_feed(container, feed)

    # -- commands, in the thread ----------------------------------------------------------------------------------

    def _add(self, target: LogTarget) -> None:
        journal = None
        try:
            if target.container_id in self._containers:
                raise OSError(f"the log of container {target.container_id} is being written already")
            for ends in target.streams.values():
                os.set_blocking(ends.a_read, False)
                os.set_blocking(ends.b_read, False)
            journal = Journal(target.journal_path)
            container = self._recover(target, journal)
        except BaseException:
            if journal is not None:
                journal.close()
            target.close()
            raise
        self._containers[target.container_id] = container
        for stream, ends in target.streams.items():
            self._by_descriptor[ends.a_read] = (container, stream)
            if stream in container.pending:
                self._guarded(container, stream)
        self._watch(container)
        if target.feed is not None:
            self._watch_feed(container, target.feed)

    def _recover(self, target: LogTarget, journal: Journal) -> _Container:
        last = journal.latest()
        if last.generation == 0 and target.sink is not None:
            target.sink.file.repair(target.sink.format)
        if last.generation != journal.done:
            if _was_written(target, last):
                self._complete(target, last)
                journal.done = last.generation
            else:
                if target.sink is not None and target.sink.file.identity()[2] > last.before:
                    target.sink.file.truncate(last.before)
                before = journal.before(last.generation)
                journal.forget(last.generation)
                last = before
        container = _Container(target, journal, list(last.streams), last.generation, last.time_ns)
        container.pending = {stream for stream, ends in target.streams.items() if pipes.waiting(ends.b_read)}
        return container

    def _complete(self, target: LogTarget, step: Step) -> None:
        """The step's records are in the log: do what comes after, as far as it is not done."""
        ends = target.streams.get(step.stream)
        if ends is None or not pipes.waiting(ends.b_read):
            return
        if target.feed is not None:
            chunk = pipes.peek(ends.b_read, self._scratch)
            target.feed.send(step.stream, step.streams[step.stream - 1].consumed - step.length, chunk)
        pipes.empty(ends.b_read, self._null)

    def _find(self, container_id: str) -> _Container:
        container = self._containers.get(container_id)
        if container is None:
            raise UnknownContainer(f"the log of container {container_id} is not being written")
        return container

    def _drain(self, container_id: str) -> tuple[int, bool, bool]:
        """Take what is there, or a turn's worth of it.

        Returns how many bytes have come so far, whether nothing is there now, and whether nothing more can come.
        """
        container = self._find(container_id)
        dry = True
        for stream in container.target.streams:
            for _ in range(TURN):
                if not self._guarded(container, stream):
                    break
            else:
                dry = False
        ended = container.ended.issuperset(container.target.streams)
        return sum(state.consumed for state in container.states), dry, ended

    def _finish(self, container_id: str) -> bool:
        """Write what is left in memory and unfinished lines; False if that is not possible now."""
        container = self._find(container_id)
        self._drain(container_id)
        if (container.stalled and not self._write_waiting(container)) or container.pending:
            return False
        for stream in container.target.streams:
            state = container.states[stream - 1]
            if state.held:
                try:
                    self._process(container, stream, finish(state), b"")
                except OSError as error:
                    self._stall(container, error)
                    return False
        return True

    def _remove(self, container_id: str) -> None:
        container = self._containers.pop(container_id, None)
        if container is None:
            return
        self._retries.pop(container_id, None)
        for stream, ends in container.target.streams.items():
            self._by_descriptor.pop(ends.a_read, None)
            if stream in container.watched:
                self._epoll.unregister(ends.a_read)
        feed = container.target.feed
        if feed is not None and self._feeds.pop(feed.fileno(), None) is not None:
            self._epoll.unregister(feed.fileno())
        container.target.close_pipes()
        if container.target.sink is not None:
            # Waiting for the disk, and for an old file to be packed, is left to the thread that does nothing else.
            self._leaving.append(container.target.sink.file)
        container.journal.close()
        container.target.notifier.close()

    def _attach(self, container_id: str) -> dict[int, int]:
        container = self._find(container_id)
        if container.target.feed is not None:
            container.target.feed.active = True
        return self._offsets(container_id)

    def _detach(self, container_id: str) -> None:
        container = self._containers.get(container_id)
        if container is not None and container.target.feed is not None:
            container.target.feed.stop()
            self._watch_feed(container, container.target.feed)

    def _hand_over(self, container_id: str) -> int | None:
        container = self._find(container_id)
        feed = container.target.feed
        if feed is None:
            return None
        spill = feed.hand_over()
        self._watch_feed(container, feed)
        return spill

    def _offsets(self, container_id: str) -> dict[int, int]:
        container = self._find(container_id)
        return {stream: container.states[stream - 1].consumed for stream in container.target.streams}

    # -- fsync ----------------------------------------------------------------------------------------------------

    def _close_leaving(self) -> None:
        while self._leaving:
            file = self._leaving.popleft()
            try:
                file.finish()
            except OSError as error:
                log.error("the log %s may not be durable: %s", file.path, error)

    def _sync(self) -> None:
        while not self._sync_stop.wait(self._sync_interval):
            self._close_leaving()
            for container in list(self._containers.values()):
                sink = container.target.sink
                if sink is None:
                    continue
                try:
                    sink.file.sync()
                except OSError as error:
                    log.error("container %s: its log is not durable: %s", container.target.container_id, error)


def _was_written(target: LogTarget, step: Step) -> bool:
    """Whether the step's records are all in the log."""
    if step.after == step.before or target.sink is None:
        return True
    device, inode, size = target.sink.file.identity()
    if (device, inode) == (step.device, step.inode):
        return size >= step.after
    for path in history(target.sink.file.path):
        with contextlib.suppress(OSError):
            status = path.stat()
            if (status.st_dev, status.st_ino) == (step.device, step.inode):
                return status.st_size >= step.after
    return False
