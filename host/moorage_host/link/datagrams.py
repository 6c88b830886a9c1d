"""UDP ports on the host whose datagrams reach ports in the guest, all through one SSH channel to a relay there.

As with UDP itself, what finds no room or no connection to the guest is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any, Protocol

from moorage_contract.postponed import postponed

from moorage_host.errors import ErrorCode, HostError
from moorage_host.link import datagram_relay
from moorage_host.link.datagram_relay import CLOSE, DATA, MOST, OPEN, Frames, frame

with postponed("paramiko"):
    import paramiko

logger = logging.getLogger(__name__)

IDLE = 90.0  # seconds without a datagram after which a client is forgotten; dockerd's proxy has the same
TICK = 15.0
AT_ONCE = 32


class Stream(Protocol):
    """What is needed of an SSH channel."""

    def sendall(self, data: bytes, /) -> Any: ...

    def recv(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass
class _Flow:
    """One client of one port."""

    listener: socket.socket
    client: Any
    last: float


def command() -> str:
    """The relay as a command for the guest's shell."""
    return f"exec python3 -I -c {shlex.quote(Path(datagram_relay.__file__).read_text(encoding='utf-8'))}"


def started(channel: paramiko.Channel) -> paramiko.Channel:
    """The relay started in a session of the guest."""
    channel.exec_command(command())
    return channel


class Datagrams:
    """Any number of UDP ports. `connect` starts the relay and gives its streams; it may block, and raises HostError."""

    def __init__(self, connect: Callable[[], Stream]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._targets: dict[socket.socket, tuple[str, int]] = {}
        self._leaving: list[tuple[socket.socket, threading.Event]] = []
        self._flows: dict[int, _Flow] = {}
        self._known: dict[tuple[socket.socket, Any], int] = {}
        self._numbers = itertools.count(1)
        self._stream: Stream | None = None
        self._closed = False
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="datagrams", daemon=True)
        self._thread.start()

    def bind(self, address: str, port: int, inside: tuple[str, int]) -> Callable[[], None]:
        """Carry what arrives at a UDP port to `inside`, and answers back; what is returned ends that.

        Raises HostError with what the system says when the port cannot be had.
        """
        listener = udp_socket(address, port)
        with self._lock:
            self._targets[listener] = inside
        self._wake()

        def end() -> None:
            with self._lock:
                if self._closed:
                    return
                self._targets.pop(listener, None)
                for number in [number for number, flow in self._flows.items() if flow.listener is listener]:
                    self._forget(number)
                last = not self._targets
                gone = threading.Event()
                self._leaving.append((listener, gone))
            # Closed by the thread that waits for it: a port stays taken as long as somebody waits for datagrams.
            self._wake()
            gone.wait(10)
            if last:
                self._drop(self._stream)

        return end

    def close(self) -> None:
        """Give up every port. Idempotent."""
        with self._lock:
            self._closed = True
            listeners = list(self._targets)
            self._targets.clear()
        self._wake()
        self._thread.join(timeout=10)
        for listener in listeners:
            listener.close()
        self._drop(self._stream)
        self._waker.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def _listen(self) -> None:
        swept = time.monotonic()
        while True:
            with self._lock:
                leaving, self._leaving = self._leaving, []
                listeners = list(self._targets)
                closed = self._closed
            for listener, gone in leaving:
                listener.close()
                gone.set()
            if closed:
                self._woken.close()
                return
            ready, _, _ = select([self._woken, *listeners], [], [], TICK)
            for one in ready:
                if one is self._woken:
                    with contextlib.suppress(OSError):
                        self._woken.recv(4096)
                else:
                    self._take(one)
            if time.monotonic() - swept > TICK:
                swept = time.monotonic()
                self._sweep(swept - IDLE)

    def _take(self, listener: socket.socket) -> None:
        for _turn in range(AT_ONCE):
            try:
                payload, client = listener.recvfrom(MOST)
            except OSError:
                return
            try:
                self._carry(listener, client, payload)
            except (HostError, OSError, EOFError, paramiko.SSHException) as error:
                logger.info("datagrams: %s", error)
                self._drop(self._stream)

    def _carry(self, listener: socket.socket, client: Any, payload: bytes) -> None:
        stream = self._stream or self._begin()
        opening = b""
        with self._lock:
            if listener not in self._targets:
                return
            number = self._known.get((listener, client))
            if number is None:
                number = next(self._numbers) & 0xFFFFFFFF
                self._known[(listener, client)] = number
                self._flows[number] = _Flow(listener, client, 0)
                host, port = self._targets[listener]
                opening = frame(number, OPEN, f"{host} {port}".encode("ascii"))
            self._flows[number].last = time.monotonic()
        stream.sendall(opening + frame(number, DATA, payload))

    def _begin(self) -> Stream:
        stream = self._connect()
        with self._lock:
            self._stream = stream
        threading.Thread(target=self._answer, args=(stream,), name="datagrams-back", daemon=True).start()
        return stream

    def _answer(self, stream: Stream) -> None:
        frames = Frames()
        with contextlib.suppress(OSError, EOFError):
            while data := stream.recv(1 << 16):
                for number, kind, payload in frames.take(data):
                    with self._lock:
                        flow = self._flows.get(number) if kind == DATA else None
                        if flow is not None:
                            flow.last = time.monotonic()
                    if flow is not None:
                        with contextlib.suppress(OSError):
                            flow.listener.sendto(payload, flow.client)
        self._drop(stream)

    def _sweep(self, before: float) -> None:
        with self._lock:
            stream = self._stream
            idle = [number for number, flow in self._flows.items() if flow.last < before]
            for number in idle:
                self._forget(number)
        if stream is not None:
            with contextlib.suppress(OSError, EOFError):
                stream.sendall(b"".join(frame(number, CLOSE) for number in idle))

    def _forget(self, number: int) -> None:
        flow = self._flows.pop(number)
        self._known.pop((flow.listener, flow.client), None)

    def _drop(self, stream: Stream | None) -> None:
        """Give up a relay that is gone or not wanted any more; the next datagram starts another."""
        if stream is None:
            return
        with self._lock:
            if self._stream is stream:
                self._stream = None
                self._flows.clear()
                self._known.clear()
        with contextlib.suppress(OSError, EOFError):
            stream.close()


def udp_socket(address: str, port: int) -> socket.socket:
    """A bound UDP socket; raises HostError with what the system says when the port cannot be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
    except OSError as error:
        made.close()
        raise HostError(
            f"port {port}/udp on {address} cannot be had: {error.strerror}",
            hint="another program uses it, or it needs more rights",
            code=ErrorCode.CONFLICT,
        ) from error
    return made
