"""Holds published ports of the host, and carries the connections that the kernel does not translate.

Most packets never get here: nftables sends them to the container. What arrives is IPv6 for a container without IPv6,
loopback IPv6, and everything where iptables is false.
"""

import contextlib
import errno
import logging
import socket
from typing import Any

from moorage_guest.net.netd.loop import READ, WRITE, Loop, Timer

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_UDP_IDLE = 90.0
_UDP_CLIENTS = 1024
_SCTP = 132

#: Address of a datagram's sender, as the kernel gives it.
Source = tuple[Any, ...]


class HeldPort:
    """One bound socket. Raises OSError from the constructor when the port is taken."""

    def __init__(self, loop: Loop, proto: str, host: str, port: int, target: tuple[str, int], *, carry: bool) -> None:
        self._loop = loop
        self.target = target
        self.carry = carry
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        self._relays: set[_Relay] = set()
        self._flows: dict[Source, _Flow] = {}
        self._socket: socket.socket | None = None
        try:
            sock = self._socket = _open(family, proto)
        except OSError as error:
            # A kernel without SCTP has nobody who could take the port either.
            if proto != "sctp" or error.errno not in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
                raise
            return
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if proto != "udp":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            self.port = int(sock.getsockname()[1])
            if proto == "tcp":
                sock.listen(512)
                if carry:
                    loop.watch(sock, READ, self._accept)
            elif proto == "udp" and carry:
                loop.watch(sock, READ, self._datagram)
        except OSError:
            sock.close()
            raise

    def close(self) -> None:
        """Free the port and end what is carried."""
        if self._socket is not None:
            self._loop.forget(self._socket)
        for relay in list(self._relays):
            relay.close()
        for flow in list(self._flows.values()):
            flow.close()

    def _accept(self, ready: int) -> None:
        assert self._socket is not None
        try:
            client, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log.error("netd: out of file descriptors, a connection waits")
            return
        try:
            server = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError:
            client.close()
            return
        self._relays.add(_Relay(self._loop, client, server, self.target, self._relays))

    def _datagram(self, ready: int) -> None:
        assert self._socket is not None
        for _ in range(64):
            try:
                data, source = self._socket.recvfrom(_CHUNK)
            except OSError:
                return
            flow = self._flows.get(source)
            if flow is None:
                if len(self._flows) >= _UDP_CLIENTS:
                    return
                try:
                    flow = self._flows[source] = _Flow(self._loop, self, source)
                except OSError:
                    continue
            flow.outward(data)

    def backward(self, source: Source, data: bytes) -> None:
        """Return a datagram to a client."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(data, source)

    def ended(self, source: Source) -> None:
        """Note that a client's flow is over."""
        self._flows.pop(source, None)


def _open(family: int, proto: str) -> socket.socket:
    if proto == "udp":
        return socket.socket(family, socket.SOCK_DGRAM)
    return socket.socket(family, socket.SOCK_STREAM, _SCTP if proto == "sctp" else 0)


class _Flow:
    """Datagrams of one client of a carried UDP port."""

    def __init__(self, loop: Loop, port: HeldPort, source: Source) -> None:
        self._loop = loop
        self._port = port
        self._source = source
        family = socket.AF_INET6 if ":" in port.target[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.connect(port.target)
        except OSError:
            self._socket.close()
            raise
        self._timer: Timer = loop.later(_UDP_IDLE, self.close)
        loop.watch(self._socket, READ, self._inward)

    def outward(self, data: bytes) -> None:
        """Send a datagram to the container."""
        self._touch()
        with contextlib.suppress(OSError):
            self._socket.send(data)

    def _inward(self, ready: int) -> None:
        self._touch()
        for _ in range(64):
            try:
                data = self._socket.recv(_CHUNK)
            except OSError:
                return
            self._port.backward(self._source, data)

    def _touch(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.later(_UDP_IDLE, self.close)

    def close(self) -> None:
        """End the flow."""
        self._timer.cancel()
        self._loop.forget(self._socket)
        self._port.ended(self._source)


class _Relay:
    """Two TCP connections joined, each direction ended on its own."""

    def __init__(
        self, loop: Loop, client: socket.socket, server: socket.socket, target: tuple[str, int], among: "set[_Relay]"
    ) -> None:
        self._loop = loop
        self._ends = (client, server)
        self._waiting = [b"", b""]
        """Bytes read from end i that the other end has not taken."""
        self._ended = [False, False]
        self._connected = False
        self._open = True
        self._among = among
        for end in self._ends:
            end.setblocking(False)
        try:
            server.connect(target)
        except BlockingIOError:
            loop.watch(server, WRITE, self._established)
            return
        except OSError:
            self._open = False
            client.close()
            server.close()
            loop.later(0, lambda: among.discard(self))
            return
        loop.watch(server, WRITE, self._established)

    def close(self) -> None:
        """End both connections; quiet when they have ended."""
        if self._open:
            self._open = False
            for end in self._ends:
                self._loop.forget(end)
            self._among.discard(self)

    def _established(self, ready: int) -> None:
        if self._ends[1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            self.close()
            return
        self._watch()

    def _watch(self) -> None:
        for i, end in enumerate(self._ends):
            wanted = 0
            if not self._ended[i] and not self._waiting[i]:
                wanted |= READ
            if self._waiting[1 - i]:
                wanted |= WRITE
            self._loop.watch(end, wanted, lambda ready, i=i: self._ready(i, ready))  # type: ignore[misc]

    def _ready(self, i: int, ready: int) -> None:
        try:
            if ready & WRITE and self._waiting[1 - i]:
                self._push(1 - i)
            if ready & READ and not self._ended[i] and not self._waiting[i]:
                data = self._ends[i].recv(_CHUNK)
                if data:
                    self._waiting[i] = data
                    self._push(i)
                else:
                    self._ended[i] = True
            for side in (0, 1):
                if self._ended[side] and not self._waiting[side]:
                    with contextlib.suppress(OSError):
                        self._ends[1 - side].shutdown(socket.SHUT_WR)
        except BlockingIOError:
            log.debug("relay: not ready after all")
        except OSError:
            self.close()
            return
        if all(self._ended) and not any(self._waiting):
            self.close()
        else:
            self._watch()

    def _push(self, i: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._waiting[i] = self._waiting[i][self._ends[1 - i].send(self._waiting[i]) :]
