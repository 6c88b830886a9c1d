"""Requests, replies and events over one seqpacket connection, for asyncio: how moored speaks to agent and shims."""

import asyncio
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from moorage_guest.shim import wire

log = logging.getLogger(__name__)

#: Seconds that an answer may take unless the caller says otherwise; the machine may be slow and busy.
REQUEST_DEADLINE = 60.0


class ChannelClosed(Exception):
    """The other side is gone; what was asked may or may not have been done."""


class RequestFailed(Exception):
    """The other side answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Channel:
    """One connection. Owns the socket. `on_event` gets what is no reply; both callbacks run in the event loop."""

    def __init__(
        self,
        sock: socket.socket,
        on_event: Callable[[wire.Message], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._on_close = on_close
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[wire.Message]] = {}
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    async def request(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        blob: bytes = b"",
        fds: Iterable[int] = (),
        deadline: float = REQUEST_DEADLINE,
    ) -> wire.Message:
        """Ask and return the reply, whose descriptors then belong to the caller; `fds` are duplicated at once.

        Raises RequestFailed, ChannelClosed or TimeoutError (after `deadline` seconds).
        """
        if self.closed:
            raise ChannelClosed("the connection is closed")
        number = next(self._numbers)
        answer: asyncio.Future[wire.Message] = self._loop.create_future()
        self._waiting[number] = answer
        try:
            self.post({"id": number, "method": method, "params": params or {}}, blob=blob, fds=fds)
            async with asyncio.timeout(deadline):
                reply = await answer
        finally:
            self._waiting.pop(number, None)
        error = reply.body.get("error")
        if error is not None:
            wire.close_all(reply.fds)
            raise RequestFailed(str(error.get("code", "")), str(error.get("message", "")))
        return reply

    def post(self, body: dict[str, Any], *, blob: bytes = b"", fds: Iterable[int] = ()) -> None:
        """Send without awaiting an answer; waits in memory while the other side's queue is full."""
        if self.closed:
            raise ChannelClosed("the connection is closed")
        self._outbox.append((wire.pack(body, blob), [os.dup(number) for number in fds]))
        if len(self._outbox) == 1:
            self._flush()

    def close(self) -> None:
        """Close at once; everybody who waits gets ChannelClosed. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, numbers in self._outbox:
            wire.close_all(numbers)
        self._outbox.clear()
        for answer in list(self._waiting.values()):
            if not answer.done():
                answer.set_exception(ChannelClosed("the other side closed the connection"))
        self._waiting.clear()
        self._on_close()

    def _flush(self) -> None:
        while self._outbox:
            data, numbers = self._outbox[0]
            try:
                wire.send(self._sock, data, numbers)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self.close()
                return
            wire.close_all(numbers)
            self._outbox.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(32):
            if self.closed:
                return
            try:
                message = wire.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                log.warning("connection given up: %s", error)
                message = None
            if message is None:
                self.close()
                return
            number = message.body.get("id")
            if number is None:
                self._on_event(message)
                continue
            answer = self._waiting.pop(number, None)
            if answer is None or answer.done():
                wire.close_all(message.fds)
            else:
                answer.set_result(message)
