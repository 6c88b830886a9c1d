"""One client's connection, below HTTP: what is read from it is kept for the next daemon, and what belongs to nobody else.

Which connections are held by the agent meanwhile, and how a daemon takes them over, is `server`'s business.
"""

import asyncio
import logging
import select
import socket
from collections.abc import Callable
from typing import Any

from moorage_guest import web
from moorage_guest.api.kept import Holder, Kept
from moorage_guest.plugins.authorization import Peer

log = logging.getLogger(__name__)

#: Where bytes are read that nobody keeps; one for all connections, since it is emptied at once.
_SCRATCH = memoryview(bytearray(256 * 1024))

#: Seconds that a request still has when its client has ended its half of the connection; what takes longer is given up.
LAST_WORDS = 5.0


def asks_for_an_upgrade(data: bytes) -> bool:
    """Whether this piece of a request's head names an upgrade; what a body says does not count."""
    end = data.find(b"\r\n\r\n")
    return data.find(b"pgrade", 0, end if end >= 0 else len(data)) >= 0


class Protocol(web.RequestHandler, asyncio.BufferedProtocol):
    """Speaks HTTP with one client. ``malformed`` makes the answer to what is no HTTP.

    Keeps what arrives behind the head of a request that asks for an upgrade: aiohttp's parser throws such bytes away for any
    upgrade but websocket; a client that does not wait for the 101 would lose the beginning of its input.
    """

    __slots__ = ("_connection", "_doubt", "_ending", "_holder", "_malformed", "_room", "kept", "leaving", "peer", "raw")

    def __init__(
        self,
        manager: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        malformed: Callable[[str], web.StreamResponse],
        **settings: Any,
    ) -> None:
        super().__init__(manager, loop=loop, **settings)
        self.raw: bytes | None = None
        self.kept: Kept | None = None
        #: Who speaks, where TLS has told.
        self.peer: Peer | None = None
        #: Whether the daemon ends and another one comes: the client must not notice.
        self.leaving = False
        self._malformed = malformed
        self._holder: Holder | None = None
        self._room: memoryview | None = None
        self._doubt: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._connection: Any = None

    def keep(self, kept: Kept, holder: Holder, doubt: float = 0.0) -> None:
        """Keep this connection's requests, since ``holder`` holds it. To be called before the connection is made.

        With ``doubt`` the connection is closed after so many seconds unless the client says something.
        """
        self.kept = kept
        self._holder = holder
        if doubt:
            self._doubt = self._loop.call_later(doubt, self.force_close)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.kept is not None:
            self._connection = transport.get_extra_info("socket")
            if self.kept.tries:  # a daemon before us has read it
                self.data_received(self.kept.request())

    def connection_lost(self, exc: BaseException | None) -> None:
        self._leave_room()
        self._stop_doubting()
        if self._ending is not None:
            self._ending.cancel()
        kept, self.kept = self.kept, None
        if kept is not None:
            if not self.leaving or kept.answering:
                try:  # the agent has the connection, too: closing ours is not enough
                    self._connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the client was faster
            if self._holder is not None:
                self._holder.forget(kept)
            kept.close()
        super().connection_lost(exc)

    def give_away(self) -> None:
        """The connection becomes somebody else's, who was given a duplicate of it: it is no longer held, nor shut at its end."""
        self._leave_room()
        kept, self.kept = self.kept, None
        if kept is not None and self._holder is not None:
            self._holder.release(kept)
            kept.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        kept = self.kept
        if kept is not None and kept.answering and self._idle():
            kept.clear()
        self._leave_room()
        self._room = kept.room() if kept is not None else None
        return _SCRATCH if self._room is None else self._room

    def buffer_updated(self, nbytes: int) -> None:
        if self._room is None or self.kept is None:
            data = bytes(_SCRATCH[:nbytes])
        else:
            data = bytes(self._room[:nbytes])
            self.kept.received(nbytes)
        self._leave_room()
        self._stop_doubting()
        self.data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's closes at once and says None
        """The client sends no more. One that still listens (``nc -N``, socat) gets the answer it asked for, if that is quick."""
        waits = self._waiter is not None and not self._waiter.done()  # `_idle` is true while a request is only taken up
        if (self._idle() and waits) or self._gone():
            return False
        if self._ending is None:
            self._ending = self._loop.call_later(LAST_WORDS, self.force_close)
        return True

    def data_received(self, data: bytes) -> None:
        if self.raw is not None:
            self.raw += data
        elif self._idle() and asks_for_an_upgrade(data):
            self.raw = data
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float
    ) -> tuple[web.StreamResponse, bool]:
        result = await super().finish_response(request, resp, start_time)
        if self._ending is not None and not self._messages:
            self.close()  # all that was asked is answered
        # What the client has not taken yet is in this process's memory: then the next request's first byte will tell.
        transport = self.transport
        sent = isinstance(transport, asyncio.Transport) and transport.get_write_buffer_size() == 0
        if sent and self.kept is not None and not self._messages:
            self.kept.clear()
        return result

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP as every other error is answered; a client's mistake is nothing for the log."""
        if not isinstance(exc, web.HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        first = next((line.strip() for line in exc.message.splitlines() if line.strip()), "not HTTP")
        log.debug("a client sent no HTTP: %s", first)
        response = self._malformed(f"malformed HTTP request: {first.rstrip(':')}")
        response.force_close()
        return response

    def log_exception(self, *args: Any, **more: Any) -> None:
        if isinstance(more.get("exc_info"), web.HttpProcessingError):  # in what follows a request on its connection
            log.debug("a client sent no HTTP: %s", more["exc_info"])
        else:
            super().log_exception(*args, **more)

    def take_tail(self, body_length: int) -> bytes:
        """Return what came behind the current request's head and body."""
        raw, self.raw = self.raw, None
        self._message_tail = b""
        if raw is None:
            return b""
        _head, separator, rest = raw.partition(b"\r\n\r\n")
        return rest[body_length:] if separator else b""

    def _leave_room(self) -> None:
        """Let go of the memory to read into, which cannot be closed while anybody has it."""
        if self._room is not None:
            self._room.release()
            self._room = None

    def _stop_doubting(self) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None

    def _gone(self) -> bool:
        """Whether the client has closed both halves, so that nobody would read an answer."""
        transport = self.transport
        connection = None if transport is None else transport.get_extra_info("socket")
        if connection is None:
            return True
        poll = select.poll()
        poll.register(connection, 0)  # POLLHUP and POLLERR are always told
        return bool(poll.poll(0))

    def _idle(self) -> bool:
        return self._current_request is None and not self._messages
