"""One side of a seqpacket conversation for the small event loop: requests come, replies and events go.

Used by shims towards daemons and by the agent towards moored and zygote.
"""

import mmap
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from moorage_guest.shim import wire
from moorage_guest.shim.loop import READ, WRITE, Loop

#: Where datagrams arrive in this process, which has one thread. Taken for each anew, so much memory would have the C library
#: put what it has in order again and again, which writes to many pages of it: a tenth of a megabyte in each shim.
_buffer = memoryview(mmap.mmap(-1, wire.MAX_DATAGRAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Refused(Exception):
    """A request cannot be done; code and text go to the daemon."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Connection:
    """One connected daemon. What it does not read in time is kept up to a limit, then it is cut off."""

    LIMIT = 4096

    def __init__(
        self, loop: Loop, sock: socket.socket, on_message: Callable[["Connection", wire.Message], None],
        on_close: Callable[["Connection"], None],
    ) -> None:  # fmt: skip
        sock.setblocking(False)
        self._loop = loop
        self.sock = sock
        self._on_message = on_message
        self._on_close = on_close
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self.closed = False
        self.received = 0
        loop.watch(sock.fileno(), READ, self._ready)

    def send(self, body: dict[str, Any], blob: bytes = b"", fds: "list[int] | None" = None) -> None:
        """Send; descriptors are duplicated when they have to wait."""
        if self.closed:
            return
        self._outbox.append((wire.pack(body, blob), [os.dup(number) for number in fds or []]))
        if len(self._outbox) == 1:
            self._flush()
        elif len(self._outbox) > self.LIMIT:
            self.close()

    def drain(self) -> None:
        """Act on everything that has arrived, to the end of the connection; for a peer that is known to be dead."""
        while not self.closed:
            before = self.received
            self._ready(READ)
            if self.received == before:
                self.close()

    def close(self) -> None:
        """Close at once. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self.sock.fileno())
        self.sock.close()
        for _, numbers in self._outbox:
            wire.close_all(numbers)
        self._outbox.clear()
        self._on_close(self)

    def _flush(self) -> None:
        while self._outbox:
            data, numbers = self._outbox[0]
            try:
                wire.send(self.sock, data, numbers)
            except BlockingIOError:
                self._loop.watch(self.sock.fileno(), READ | WRITE, self._ready)
                return
            except OSError:
                self.close()
                return
            wire.close_all(numbers)
            self._outbox.popleft()
        self._loop.watch(self.sock.fileno(), READ, self._ready)

    def _ready(self, ready: int) -> None:
        if ready & WRITE:
            self._flush()
        if ready & ~WRITE:
            for _ in range(16):
                if self.closed:
                    return
                try:
                    message = wire.receive(self.sock, _buffer)
                except BlockingIOError:
                    return
                except (OSError, ValueError):
                    message = None
                if message is None:
                    self.close()
                    return
                self.received += 1
                self._on_message(self, message)


class Request:
    """One request, to be answered once, now or later."""

    def __init__(self, connection: Connection, message: wire.Message) -> None:
        self.connection = connection
        self._number = message.body.get("id")
        self.params: dict[str, Any] = message.body.get("params") or {}
        self.blob = message.blob
        self.fds = message.fds

    @property
    def heard(self) -> bool:
        """Whether who asked is still there."""
        return not self.connection.closed

    def take_fd(self) -> int:
        """Take the next descriptor that came along."""
        if not self.fds:
            raise Refused("invalid", "a descriptor has to come with this request")
        return self.fds.pop(0)

    def answer(self, result: dict[str, Any], blob: bytes = b"", fds: list[int] | None = None) -> None:
        """Reply."""
        self.connection.send({"id": self._number, "result": result}, blob, fds)

    def refuse(self, code: str, message: str) -> None:
        """Reply with an error."""
        self.connection.send({"id": self._number, "error": {"code": code, "message": message}})
