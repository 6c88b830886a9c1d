"""Asks the API whether it answers, without blocking the agent."""

import socket
from collections.abc import Callable
from pathlib import Path

from moorage_guest.shim import wire
from moorage_guest.shim.loop import READ, Loop, Timer

_REQUEST = b"GET /_ping HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"


class Probe:
    """One question. `done(True)` when /_ping answers 200 in time, else `done(False)`; then it is over."""

    def __init__(self, loop: Loop, path: Path, deadline: float, done: Callable[[bool], None]) -> None:
        self._loop = loop
        self._done = done
        self._answer = b""
        self._timer: Timer = loop.later(deadline, lambda: self._end(False))
        self._sock = socket.socket(socket.AF_UNIX)
        self._over = False
        try:
            self._sock.setblocking(False)
            with wire.short_path(path) as short:
                self._sock.connect(short)
            self._sock.send(_REQUEST, socket.MSG_NOSIGNAL)
            loop.watch(self._sock.fileno(), READ, self._ready)
        except OSError:
            loop.later(0.2, lambda: self._end(False))

    def cancel(self) -> None:
        """Ask no more. `done` is not called."""
        self._done = lambda _: None
        self._end(False)

    def _ready(self, _mask: int) -> None:
        try:
            data = self._sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._answer += data
        if not data or b"\r\n" in self._answer:
            self._end(self._answer.startswith(b"HTTP/1.1 200"))

    def _end(self, answered: bool) -> None:
        if self._over:
            return
        self._over = True
        self._timer.cancel()
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._done(answered)
