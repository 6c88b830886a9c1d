"""agent.sock: JSON lines from the host. Each line is a request; replies carry its id and may come in any order.

`methods` does the work; here are framing, limits and errors alone.
"""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moorage_guest.shim import wire
from moorage_guest.shim.connection import Refused
from moorage_guest.shim.loop import READ, WRITE, Loop

#: Longest line in bytes; a daemon.json has to fit.
MAX_LINE = 4 * 1024 * 1024

#: Bytes that may wait for a host that does not read.
_MAX_WAITING = 16 * 1024 * 1024

Answer = Callable[[dict[str, Any]], None]
Fail = Callable[[str, str], None]
Method = Callable[[dict[str, Any], Answer, Fail], None]


class HostConnection:
    """One client of agent.sock."""

    def __init__(self, server: "HostServer", loop: Loop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._server = server
        self._loop = loop
        self._sock = sock
        self._in = bytearray()
        self._out = bytearray()
        self.watching = False
        self.closed = False
        loop.watch(sock.fileno(), READ, self._ready)

    def send(self, body: dict[str, Any]) -> None:
        """Send one line."""
        if self.closed:
            return
        self._out += json.dumps(body, separators=(",", ":")).encode() + b"\n"
        if len(self._out) > _MAX_WAITING:
            self.close()
        else:
            self._flush()

    def close(self) -> None:
        """Close at once. Idempotent."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._server.connections.remove(self)

    def _flush(self) -> None:
        try:
            while self._out:
                count = self._sock.send(memoryview(self._out)[:65536].tobytes(), socket.MSG_NOSIGNAL)
                del self._out[:count]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._loop.watch(self._sock.fileno(), READ | (WRITE if self._out else 0), self._ready)

    def _ready(self, ready: int) -> None:
        if ready & WRITE:
            self._flush()
        if self.closed or not ready & ~WRITE:
            return
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._in += data
        while not self.closed and (end := self._in.find(b"\n")) >= 0:
            line = bytes(self._in[:end])
            del self._in[: end + 1]
            if line.strip():
                self._server.handle(self, line)
        if len(self._in) > MAX_LINE:
            self.send(
                {"id": None, "error": {"code": "invalid", "message": f"a request is at most {MAX_LINE} bytes long"}}
            )
            self.close()


class HostServer:
    """Listens on agent.sock."""

    def __init__(
        self, loop: Loop, path: Path, methods: dict[str, Method], status: Callable[[], dict[str, Any]]
    ) -> None:
        self._loop = loop
        self._methods = methods
        self._status = status
        self.connections: list[HostConnection] = []
        self._listener = wire.listen(path, socket.SOCK_STREAM)
        loop.watch(self._listener.fileno(), READ, self._accept)

    def changed(self) -> None:
        """Tell everybody who watches."""
        watchers = [connection for connection in self.connections if connection.watching]
        if watchers:
            status = self._status()
            for connection in watchers:
                connection.send({"event": "status", "result": status})

    def close(self) -> None:
        """Stop listening and let go of everybody; the socket's name stays for who listens there next."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self.connections):
            connection.close()

    def handle(self, connection: HostConnection, line: bytes) -> None:
        """Act on one request line."""
        number: object = None

        def answer(result: dict[str, Any]) -> None:
            connection.send({"id": number, "result": result})

        def fail(code: str, message: str) -> None:
            connection.send({"id": number, "error": {"code": code, "message": message}})

        try:
            body = json.loads(line)
            if not isinstance(body, dict):
                raise ValueError("not an object")
            number = body.get("id")
            params = body.get("params") or {}
            if not isinstance(params, dict):
                raise ValueError("params is not an object")
        except (ValueError, RecursionError) as error:
            fail("invalid", f"a request is one JSON object a line: {error}")
            return
        name = body.get("method")
        if name == "watch":
            connection.watching = True
            answer({})
            connection.send({"event": "status", "result": self._status()})
            return
        method = self._methods.get(str(name))
        if method is None:
            fail("unknown_method", f"this agent does not know {name!r}; update the engine")
            return
        try:
            method(params, answer, fail)
        except Refused as error:
            fail(error.code, str(error))
        except (KeyError, TypeError, ValueError) as error:
            fail("invalid", f"{name}: {error}")
        except OSError as error:
            fail("failed", f"{name}: {error}")

    def _accept(self, _ready: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self.connections.append(HostConnection(self, self._loop, sock))
