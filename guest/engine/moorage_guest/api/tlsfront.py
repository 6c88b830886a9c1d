"""Speaks TLS with clients, so that the server sees an ordinary socket for each: one that can leave HTTP and be given away.

asyncio's own TLS ends a connection when the client has sent its last byte, which `docker run -i` does long before it has read
everything. Here each direction ends by itself.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from moorage_guest.plugins.authorization import Peer

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds that a client may take for its part of the handshake.
_HANDSHAKE = 30.0

_CHUNK = 65536


class TlsFront:
    """Accepts connections on a listening socket. ``adopt`` is given the plain end of each, owned by it from then on, and who the client is."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        adopt: Callable[[socket.socket, Peer | None], Awaitable[None]],
    ) -> None:
        self._listener = listener
        self._context = context
        self._adopt = adopt
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._listener.listen(4096)
        self._spawn(self._accept())

    async def close(self) -> None:
        """End all connections at once; the listening socket is closed, too."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors left, or the client has gone meanwhile
                log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            self._spawn(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            stack.enter_context(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = stack.enter_context(
                self._context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
            )
            connection = _Connection(secured)
            try:
                async with asyncio.timeout(_HANDSHAKE):
                    await connection.do(secured.do_handshake)
                ours, theirs = socket.socketpair()
                stack.enter_context(ours)
                ours.setblocking(False)
                await self._adopt(theirs, _peer(secured))
                inward = loop.create_task(connection.read_into(ours))
                try:
                    await connection.write_from(ours)
                finally:
                    inward.cancel()
                    await asyncio.gather(inward, return_exceptions=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await connection.do(secured.unwrap)
            except (OSError, TimeoutError) as error:  # ssl.SSLError is one
                log.info("a connection over TLS ended: %s", error or type(error).__name__)


def _peer(secured: ssl.SSLSocket) -> Peer | None:
    """Return who has shown a certificate that was checked; None when nobody had to."""
    certificate, details = secured.getpeercert(binary_form=True), secured.getpeercert()
    if not certificate or not details:
        return None
    subject: Any = details.get("subject", ())
    return Peer(next((value for part in subject for key, value in part if key == "commonName"), ""), certificate)


class _Connection:
    """A non-blocking TLS socket that several tasks use at once."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self._secured = secured
        self._waiting: dict[str, set[asyncio.Future[None]]] = {"reader": set(), "writer": set()}

    async def do(self, operation: Callable[[], T]) -> T:
        """Return an operation's result, waiting for the socket as long as it says so."""
        while True:
            try:
                return operation()
            except ssl.SSLWantReadError:
                await self._wait("reader")
            except ssl.SSLWantWriteError:
                await self._wait("writer")

    async def read_into(self, inner: socket.socket) -> None:
        """Copy from the client until it has sent its last byte, and pass the end on."""
        loop = asyncio.get_running_loop()
        try:
            while data := await self.do(lambda: self._secured.recv(_CHUNK)):
                await loop.sock_sendall(inner, data)
            inner.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone: it will not read either
            with contextlib.suppress(OSError):
                inner.shutdown(socket.SHUT_RDWR)

    async def write_from(self, inner: socket.socket) -> None:
        """Copy to the client until the server has sent its last byte."""
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(inner, _CHUNK):
            view = memoryview(data)
            while view:
                part = view
                view = view[await self.do(lambda part=part: self._secured.send(part)) :]  # type: ignore[misc]

    async def _wait(self, kind: str) -> None:
        loop = asyncio.get_running_loop()
        number = self._secured.fileno()
        add, remove = (
            (loop.add_reader, loop.remove_reader) if kind == "reader" else (loop.add_writer, loop.remove_writer)
        )
        future: asyncio.Future[None] = loop.create_future()
        waiting = self._waiting[kind]

        def ready() -> None:
            for each in waiting:
                if not each.done():
                    each.set_result(None)

        waiting.add(future)
        add(number, ready)
        try:
            await future
        finally:
            waiting.discard(future)
            if not waiting:
                remove(number)
