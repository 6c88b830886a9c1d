"""Serves DNS inside the namespace of one container: names of its networks here, everything else from upstream servers."""

import contextlib
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable

from moorage_guest.net.netd import wire
from moorage_guest.net.netd.loop import READ, WRITE, Loop, Timer
from moorage_guest.net.netd.names import Names, Place
from moorage_guest.net.netd.switch import inside

log = logging.getLogger(__name__)

#: Where the resolver listens in a container; rules of its namespace lead 127.0.0.11:53 here, so that 53 stays free.
ADDRESS, PORT = "127.0.0.11", 61053

#: Seconds one upstream server may take.
PATIENCE = 4.0

#: Queries of one container that may be under way.
CROWD = 512

#: A client's TCP connection may be silent for so many seconds.
SILENCE = 20.0

Reply = Callable[[bytes], None]


class Resolver:
    """The sockets and upstream queries of one container."""

    def __init__(self, loop: Loop, names: Names, namespace: int) -> None:
        self._loop = loop
        self._names = names
        self.namespace = namespace
        self.places: list[Place] = []
        self.servers: list[str] = []
        self._pending: set[_Query] = set()
        self._clients: set[_Client] = set()
        with contextlib.ExitStack() as opened, inside(namespace):
            self._udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._udp.setblocking(False)
            self._udp.bind((ADDRESS, PORT))
            self._tcp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            self._tcp.setblocking(False)
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._tcp.bind((ADDRESS, PORT))
            self._tcp.listen(64)
            opened.pop_all()
        loop.watch(self._udp, READ, self._datagram)
        loop.watch(self._tcp, READ, self._accept)

    def close(self) -> None:
        """Close every socket and let go of the namespace."""
        self._loop.forget(self._udp)
        self._loop.forget(self._tcp)
        for query in list(self._pending):
            query.close()
        for client in list(self._clients):
            client.close()
        os.close(self.namespace)

    def _datagram(self, ready: int) -> None:
        for _ in range(32):
            try:
                message, source = self._udp.recvfrom(4096)
            except BlockingIOError:
                return
            self.ask(message, lambda answer, source=source: self._reply(answer, source), tcp=False)  # type: ignore[misc]

    def _reply(self, answer: bytes, source: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._udp.sendto(answer, source)

    def _accept(self, ready: int) -> None:
        try:
            connection, _ = self._tcp.accept()
        except OSError:
            return
        if len(self._clients) >= CROWD:
            connection.close()
            return
        self._clients.add(_Client(self._loop, connection, self))

    def left(self, client: "_Client") -> None:
        """Note that a TCP client is gone."""
        self._clients.discard(client)

    def finished(self, query: "_Query") -> None:
        """Note that an upstream query has ended."""
        self._pending.discard(query)

    def ask(self, message: bytes, reply: Reply, *, tcp: bool) -> None:
        """Answer a message, now or when an upstream server has answered."""
        try:
            question = wire.parse(message)
        except wire.BadMessage:
            refusal = wire.failure(message, wire.FORMERR)
            if refusal is not None:
                reply(refusal)
            return
        limit = 65535 if tcp else 1232 if _has_edns(message) else 512
        local = self._names.answer(self.places, question, limit)
        if local is not None:
            reply(local)
        elif not self.servers or len(self._pending) >= CROWD:
            reply(wire.answer(question, [], wire.SERVFAIL))
        else:
            query = _Query(self._loop, self, message, question, reply, tcp)
            self._pending.add(query)
            query.next_server()

    def upstream(self, server: str, kind: int) -> socket.socket:
        """Make a socket towards a server: from the container, or from the host for a server on the host's loopback."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        if ipaddress.ip_address(server.partition("%")[0]).is_loopback:
            return socket.socket(family, kind)
        with inside(self.namespace):
            return socket.socket(family, kind)


def _has_edns(message: bytes) -> bool:
    return len(message) >= 12 and struct.unpack_from(">H", message, 10)[0] > 0


class _Query:
    """One question on its way through the upstream servers."""

    def __init__(
        self, loop: Loop, owner: Resolver, message: bytes, question: wire.Question, reply: Reply, tcp: bool
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._message = message
        self._question = question
        self._reply = reply
        self._tcp = tcp
        self._servers = list(owner.servers)
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._unsent = b""
        self._received = b""
        self._refusal: bytes | None = None

    def close(self) -> None:
        """Give up without an answer."""
        self._drop()
        self._owner.finished(self)

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.forget(self._socket)
            self._socket = None

    def _finish(self, answer: bytes) -> None:
        self.close()
        self._reply(answer)

    def next_server(self) -> None:
        """Go to the next server, or report failure after the last."""
        self._drop()
        while self._servers:
            server = self._servers.pop(0)
            try:
                self._socket = self._owner.upstream(server, socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    self._socket.connect((server, 53))
                if self._tcp:
                    self._unsent = struct.pack(">H", len(self._message)) + self._message
                    self._received = b""
                else:
                    self._socket.send(self._message)
            except (OSError, ValueError):
                self._drop()
                continue
            self._loop.watch(self._socket, WRITE if self._tcp else READ, self._ready)
            self._timer = self._loop.later(PATIENCE, self.next_server)
            return
        self._finish(self._refusal or wire.answer(self._question, [], wire.SERVFAIL))

    def _ready(self, ready: int) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            if not self._tcp:
                self._judge(sock.recv(65535))
                return
            if ready & WRITE and self._unsent:
                self._unsent = self._unsent[sock.send(self._unsent) :]
                if not self._unsent:
                    self._loop.watch(sock, READ, self._ready)
                return
            data = sock.recv(65535)
        except BlockingIOError:
            return
        except OSError:
            self.next_server()
            return
        if not data:
            self.next_server()
            return
        self._received += data
        if len(self._received) >= 2:
            (length,) = struct.unpack_from(">H", self._received)
            if len(self._received) >= length + 2:
                self._judge(self._received[2 : length + 2])

    def _judge(self, answer: bytes) -> None:
        if len(answer) < 12 or answer[:2] != self._message[:2]:
            return
        if wire.code_of(answer) in (wire.SERVFAIL, wire.REFUSED, wire.NOTIMP) and self._servers:
            self._refusal = answer
            self.next_server()
        else:
            self._finish(answer)


class _Client:
    """A TCP connection from the container."""

    def __init__(self, loop: Loop, connection: socket.socket, owner: Resolver) -> None:
        self._loop = loop
        self._socket = connection
        self._owner = owner
        self._received = b""
        self._unsent = b""
        self._open = True
        connection.setblocking(False)
        loop.watch(connection, READ, self._ready)
        self._timer = loop.later(SILENCE, self.close)

    def close(self) -> None:
        """End the connection; quiet when it has ended."""
        if self._open:
            self._open = False
            self._timer.cancel()
            self._loop.forget(self._socket)
            self._owner.left(self)

    def _ready(self, ready: int) -> None:
        try:
            if ready & WRITE and self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            if ready & READ:
                data = self._socket.recv(65535)
                if not data:
                    self.close()
                    return
                self._received += data
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._timer.cancel()
        self._timer = self._loop.later(SILENCE, self.close)
        while len(self._received) >= 2:
            (length,) = struct.unpack_from(">H", self._received)
            if len(self._received) < length + 2:
                break
            message, self._received = self._received[2 : length + 2], self._received[length + 2 :]
            self._owner.ask(message, self._send, tcp=True)
        self._watch()

    def _send(self, answer: bytes) -> None:
        if self._open:
            self._unsent += struct.pack(">H", len(answer)) + answer
            self._watch()

    def _watch(self) -> None:
        if self._open:
            self._loop.watch(self._socket, READ | (WRITE if self._unsent else 0), self._ready)
