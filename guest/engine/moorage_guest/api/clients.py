"""Connections that outlive the daemon: accepted, given to the agent to hold, and taken over from the daemon before."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine
from typing import Any

from moorage_guest import web
from moorage_guest.api.kept import CUT_SHORT, Holder, Kept
from moorage_guest.api.protocol import Protocol

log = logging.getLogger(__name__)

#: Connections accepted at one go, so that those already open have their turn.
_AT_ONCE = 16

#: Seconds that a client may take to send the rest of what it will be refused.
_LINGER = 10.0

#: Seconds in which a client that has got its whole answer would ask for something else; who does not may wait for the rest.
_DOUBT = 1.0

#: Seconds until accepting is tried again when it has failed.
_PAUSE = 0.1


class Clients:
    """The connections of one server, all of them held."""

    def __init__(self, server: web.Server, holder: Holder) -> None:
        self._server = server
        self._holder = holder
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, listener: socket.socket) -> None:
        """Accept connections from now on until `leave`."""
        self._listeners.append(listener)
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    async def take_over(self) -> None:
        """Go on where the daemon before us was killed."""
        for client, kept in self._holder.held():
            if kept.answering and kept.whole():
                # Nobody knows how much of it has arrived; who asks for something else has got all.
                kept.clear()
                await self._adopt(client, kept, doubt=_DOUBT)
            elif kept.answering:
                self._end(client)
                self._holder.release(kept)
                kept.close()
            elif kept.too_long:
                self._holder.release(kept)
                kept.close()
                self._spawn(self._refuse(client))
            else:
                if request := kept.request():
                    kept.again()
                    log.info("going on with a client of the daemon before: %s", request[:200].split(b"\r\n")[0])
                await self._adopt(client, kept)

    def leave(self) -> None:
        """Accept no more, and close nothing that the daemon after us may go on with. Idempotent."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
        self._listeners.clear()
        for task in self._tasks:
            task.cancel()
        for protocol in self._server.connections:
            if isinstance(protocol, Protocol):
                protocol.leaving = True

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors left: those that wait are still there
                log.warning("cannot accept a connection: %s", error)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_PAUSE, self._accept_again, listener)
                return
            client.setblocking(False)
            self._spawn(self._adopt(client, self._holder.hold(client)))

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    async def _adopt(self, client: socket.socket, kept: Kept | None, doubt: float = 0.0) -> None:
        protocol = self._server()
        assert isinstance(protocol, Protocol)
        if kept is not None:
            protocol.keep(kept, self._holder, doubt)
        await self._loop.connect_accepted_socket(lambda: protocol, client)

    async def _refuse(self, client: socket.socket) -> None:
        """Answer somebody whose request was not kept, whatever of it is still to come."""
        body = b'{"message":"' + CUT_SHORT.encode() + b'"}\n'
        head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
        with contextlib.closing(client), contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER):
                await self._loop.sock_sendall(client, head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                client.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(client, 65536):
                    pass

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    def _end(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        client.close()
