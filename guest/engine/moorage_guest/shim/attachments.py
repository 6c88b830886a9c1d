"""Clients attached to the container itself: who has got which part of the output, and when each of them is done."""

import os
import socket
import struct
from collections.abc import Callable

from moorage_guest.shim.backlog import Backlog
from moorage_guest.shim.clients import Client
from moorage_guest.shim.loop import READ, Loop

#: (stream, offset) before the bytes of one datagram of output.
FEED = struct.Struct("<BQ")

#: Length, stream and offset before the bytes of one frame in a spill file: output that clients were too slow for.
SPILLED = struct.Struct("!IBQ")

_MAX_FEED = 64 * 1024

#: Frames of a spill file that are passed on before others get their turn.
_TURN = 32


class Attachment:
    """One attached client: `next` is the offset it needs next, by stream. Feeds wait while it is `held`; then it is greeted
    with `head`.

    `behind` is its place in the backlog while others are further than it, else -1.
    """

    def __init__(self, client: Client, start: dict[int, int], head: bytes, held: bool) -> None:
        self.client = client
        self.head = head
        self.next = start
        self.held = held
        self.on_begin: Callable[[], None] | None = None
        self.behind = -1
        self._exact = bool(start)

    def begin(self, start: dict[int, int]) -> None:
        """Say where a held client begins."""
        self.next = start
        self._exact = bool(start)
        self.held = False
        self.client.greet(self.head)
        if self.on_begin is not None:
            self.on_begin()

    @property
    def ready(self) -> bool:
        """Whether it can take what comes next."""
        return self.behind < 0 and not self.client.slow

    def give(self, stream: int, offset: int, data: bytes) -> None:
        """Pass on what the client does not have yet. One that was so slow that output is missing is let go."""
        known = self.next.get(stream, 0)
        if offset > known and self._exact and stream in self.client.streams:
            self.client.finish()
            return
        end = offset + len(data)
        if end <= known:
            return
        self.next[stream] = end
        self.client.write(stream, data[known - offset :] if offset < known else data)

    def has(self, lengths: dict[int, int]) -> bool:
        """Whether the client has got everything it wants up to these offsets."""
        return not self.held and all(
            self.next.get(stream, 0) >= end for stream, end in lengths.items() if stream in self.client.streams
        )


class Attachments:
    """All attached clients and the feeds that bring them output. Feeds are read one after the other, oldest first.

    They are read as fast as the fastest client takes them: what the others cannot take yet waits in the backlog.
    """

    def __init__(self, loop: Loop, on_count: Callable[[int], None], backlog: Backlog) -> None:
        self._loop = loop
        self._backlog = backlog
        self._catching_up = False
        self._on_count = on_count
        self._members: list[Attachment] = []
        self._feeds: list[socket.socket] = []
        self._lengths: dict[int, int] | None = None
        self._spill = -1
        self._spilling = False
        self._on_empty: Callable[[], None] | None = None

    @property
    def count(self) -> int:
        """Clients that want output."""
        return sum(1 for member in self._members if member.client.streams)

    def clients(self) -> list[Client]:
        """Everybody, also those that only send input."""
        return [member.client for member in self._members]

    def add(
        self, client: Client, start: dict[int, int], on_gone: Callable[[], None], head: bytes = b"", held: bool = False
    ) -> Attachment:
        """Serve a client until it leaves or the output is complete; nobody gets anything while it is ``held``."""
        member = Attachment(client, start, head, held)

        def gone() -> None:
            self._members.remove(member)
            if member.behind >= 0 and not self._catching_up:
                self._catch_up()
            on_gone()
            if client.streams:
                self._on_count(self.count)
            self._tell_empty()

        client.on_gone = gone
        client.on_room = self._resume
        self._members.append(member)
        if client.streams:
            self._on_count(self.count)
        if not held:
            client.greet(head)
        if self._lengths is not None:
            self._finish(idle=False)
        return member

    def begin(self, member: Attachment, start: dict[int, int]) -> None:
        """Let a held client have the output from these offsets on."""
        member.begin(start)
        self._finish(idle=False)
        self._resume()

    def forget(self, member: Attachment) -> None:
        """Leave a client that was held to whoever else has its connection: it was told nothing and nothing was read of it."""
        if member in self._members:
            member.client.release()
            self._members.remove(member)
            if member.client.streams:
                self._on_count(self.count)
            self._tell_empty()
            self._resume()

    def add_feed(self, sock: socket.socket) -> None:
        """Take output from this socket once those before it have ended."""
        sock.setblocking(False)
        self._feeds.append(sock)
        self._resume()

    def finish(self, lengths: dict[int, int], spill: int | None = None) -> None:
        """The output is complete at these offsets: close each client that has it all, and the others as soon as they do.

        ``spill`` is a file, owned from now on, with what clients were too slow for; it follows the feeds.
        """
        self._lengths = lengths
        self._close_spill()
        if spill is not None:
            self._spill = spill
        self._resume()
        if self._feeds:
            self._read(0)
        self._finish(idle=not self._feeds)

    def when_empty(self, callback: Callable[[], None]) -> None:
        """Call back once every client has got what it is to get, or has left; at once if there is none."""
        self._on_empty = callback
        if self._lengths is None:
            for member in list(self._members):
                member.client.finish()
        self._tell_empty()

    def close(self) -> None:
        """Let go of all clients and feeds at once."""
        for member in list(self._members):
            member.client.close()
        for feed in self._feeds:
            self._loop.unwatch(feed.fileno())
            feed.close()
        self._feeds.clear()
        self._close_spill()

    def _tell_empty(self) -> None:
        if self._on_empty is not None and not self._members:
            self._close_spill()
            self._on_empty()

    def _finish(self, idle: bool) -> None:
        if self._lengths is None:
            return
        for member in list(self._members):
            if member.has(self._lengths) if self._lengths else idle and not member.held and member.behind < 0:
                member.client.finish()

    def _give_up(self) -> None:
        """Nothing more will come: what a client lacks by now is lost."""
        for member in list(self._members):
            if not member.held and member.behind < 0:
                member.client.finish()

    def _waits(self) -> bool:
        """Whether nothing is to be read for now: a client's beginning is not known yet, or none can take anything."""
        if any(member.held for member in self._members):
            return True
        takers = [member for member in self._members if member.client.takes]
        return bool(takers) and not any(member.ready for member in takers)

    def _deliver(self, stream: int, offset: int, data: bytes) -> None:
        """Give output to all who can take it and keep it for the others."""
        late = False
        for member in list(self._members):
            if member.ready or not member.client.takes:
                member.give(stream, offset, data)
            else:
                late = True
                if member.behind < 0:
                    member.behind = self._backlog.end
        if late:
            try:
                self._backlog.add(stream, offset, data)
            except OSError as error:
                self._loop.report(f"clients are too slow and are let go: {error}")
                for member in list(self._members):
                    if member.behind >= 0:
                        member.client.finish()
        self._finish(idle=False)

    def _catch_up(self) -> None:
        """Give those who are behind what they have room for."""
        self._catching_up = True
        more = False
        try:
            for member in [each for each in self._members if each.behind >= 0]:
                more |= self._advance(member)
        finally:
            self._catching_up = False
        if not any(member.behind >= 0 for member in self._members):
            self._backlog.clear()
        if more:
            self._loop.later(0, self._resume)

    def _advance(self, member: Attachment) -> bool:
        """Give one client what it has room for; say whether it could take more."""
        try:
            for _ in range(_TURN):
                if member.client.slow or not member.client.takes or member.behind >= self._backlog.end:
                    break
                stream, offset, data, member.behind = self._backlog.read(member.behind)
                member.give(stream, offset, data)
        except OSError as error:
            self._loop.report(f"a slow client is let go: {error}")
            member.client.finish()
        if member.behind >= self._backlog.end or not member.client.takes:
            member.behind = -1
        return member.behind >= 0 and not member.client.slow

    def _resume(self) -> None:
        if self._backlog.end and not self._catching_up:
            self._catch_up()
            self._finish(idle=False)
        if self._waits():
            return
        if self._feeds:
            self._loop.watch(self._feeds[0].fileno(), READ, self._read)
        elif self._lengths is not None:
            self._read_spill()

    def _read_spill(self) -> None:
        if self._spilling:
            return
        self._spilling = True
        try:
            for _ in range(_TURN):
                if self._spill < 0:
                    if self._lengths:
                        self._give_up()
                    return
                if self._waits():
                    return
                head = os.read(self._spill, SPILLED.size)
                length, stream, offset = SPILLED.unpack(head) if len(head) == SPILLED.size else (0, 0, 0)
                data = os.read(self._spill, length) if length else b""
                if not data or len(data) < length:
                    self._close_spill()
                    continue
                self._deliver(stream, offset, data)
        finally:
            self._spilling = False
        self._loop.later(0, self._resume)

    def _close_spill(self) -> None:
        if self._spill >= 0:
            os.close(self._spill)
            self._spill = -1

    def _read(self, _ready: int) -> None:
        for _ in range(32):
            if not self._feeds:
                return
            feed = self._feeds[0]
            if self._waits():
                self._loop.unwatch(feed.fileno())
                return
            try:
                data = feed.recv(_MAX_FEED)
            except BlockingIOError:
                if len(self._feeds) == 1:
                    self._finish(idle=self._lengths == {})
                return
            except OSError:
                data = b""
            if not data:
                self._loop.unwatch(feed.fileno())
                feed.close()
                del self._feeds[0]
                self._resume()
                continue
            if len(data) < FEED.size:
                continue
            stream, offset = FEED.unpack_from(data)
            self._deliver(stream, offset, data[FEED.size :])


def client_from(fd: int) -> socket.socket:
    """Make a socket object of a received descriptor; the descriptor is closed when it is no socket."""
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise
