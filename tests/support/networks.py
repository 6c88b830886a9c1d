"""A network of the test's own: namespaces, a neighbour outside, Networks with a real netd, and clients inside sandboxes."""

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moorage_guest.api.types import EndpointSettings, HostConfig
from moorage_guest.events import EventBus
from moorage_guest.net import namespaces
from moorage_guest.net.config import NetConfig
from moorage_guest.net.netlink import RouteSocket, add_address, add_veth, change_link, link_body
from moorage_guest.net.networks import Networks
from moorage_guest.net.requests import NetworkCreate
from moorage_guest.net.sandboxes import Sandbox, SandboxRequest
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.store import Store

DEADLINE = 30.0
_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

OUTSIDE = "192.0.2.2"
HOST = "192.0.2.1"


@contextlib.contextmanager
def private_network() -> Iterator[None]:
    """Move this thread, and with it the threads and children made meanwhile, into an empty network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare: these tests need root")
        try:
            with RouteSocket() as route:
                route.send([change_link(link_body(1, up=True), "start loopback")])
            yield
        finally:
            if _libc.setns(home, _NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


@dataclass
class Place:
    """Somewhere sockets can be opened: a namespace."""

    namespace: int

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Open a socket there, with a deadline."""
        with namespaces.inside(self.namespace):
            made = socket.socket(family, kind)
        made.settimeout(DEADLINE)
        return made

    def listen(self, port: int, host: str = "0.0.0.0") -> "Echo":
        """Serve an echo server that first says who its client is."""
        return Echo(self, host, port)

    def links(self) -> dict[str, Any]:
        """Return the interfaces there by name."""
        with namespaces.inside(self.namespace), RouteSocket() as route:
            return {link.name: link for link in route.links()}

    def connect(self, host: str, port: int) -> str:
        """Return what an `Echo` says to a connection: the client's address as it sees it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with self.socket(family) as client:
            client.connect((host, port))
            client.sendall(b"ping\n")
            data = b""
            while data.count(b"\n") < 2:
                chunk = client.recv(4096)
                assert chunk, f"connection to {host}:{port} ended early: {data!r}"
                data += chunk
        seen, echoed = data.decode().splitlines()
        assert echoed == "ping"
        return seen

    def refused(self, host: str, port: int, patience: float = 1.0) -> bool:
        """Whether no connection comes about, be it refused or ignored."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with self.socket(family) as client:
            client.settimeout(patience)
            try:
                client.connect((host, port))
            except OSError:
                return True
        return False

    def ask(self, name: str, kind: int = 1, *, tcp: bool = False, server: str = "127.0.0.11") -> tuple[int, list[str]]:
        """Ask a DNS server; returns the response code and the answers' data as text."""
        number = random.randrange(65536)
        query = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0)
        query += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
        query += struct.pack(">HH", kind, 1)
        with self.socket(kind=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as client:
            client.connect((server, 53))
            if tcp:
                client.sendall(struct.pack(">H", len(query)) + query)
                (length,) = struct.unpack(">H", _exactly(client, 2))
                answer = _exactly(client, length)
            else:
                client.send(query)
                answer = client.recv(4096)
        assert struct.unpack_from(">H", answer)[0] == number
        return answer[3] & 15, _answers(answer)


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = client.recv(count - len(data))
        assert chunk, "connection ended early"
        data += chunk
    return data


def _answers(message: bytes) -> list[str]:
    count = struct.unpack_from(">H", message, 6)[0]
    at = 12
    while message[at]:
        at += message[at] + 1
    at += 5
    found = []
    for _ in range(count):
        assert message[at] & 0xC0, "our answers point at the question"
        kind, _, _, length = struct.unpack_from(">HHIH", message, at + 2)
        data = message[at + 12 : at + 12 + length]
        at += 12 + length
        if kind == 1:
            found.append(socket.inet_ntop(socket.AF_INET, data))
        elif kind == 28:
            found.append(socket.inet_ntop(socket.AF_INET6, data))
        else:
            labels, i = [], 0
            while data[i]:
                labels.append(data[i + 1 : i + 1 + data[i]].decode())
                i += data[i] + 1
            found.append(".".join(labels))
    return sorted(found)


class Echo:
    """A TCP and UDP server in a namespace, on a thread; tells clients their address, then echoes."""

    def __init__(self, place: Place, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tcp = place.socket(family)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((host, port))
        self._tcp.listen(16)
        self._udp = place.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((host, port))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._serve_tcp), threading.Thread(target=self._serve_udp)]
        for sock in (self._tcp, self._udp):
            sock.settimeout(0.05)
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Echo":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)
        self._tcp.close()
        self._udp.close()

    def _serve_tcp(self) -> None:
        while not self._stop.is_set():
            try:
                connection, peer = self._tcp.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(DEADLINE)
                with contextlib.suppress(OSError):
                    connection.sendall(f"{peer[0]}\n".encode())
                    while data := connection.recv(65536):
                        connection.sendall(data)

    def _serve_udp(self) -> None:
        while not self._stop.is_set():
            try:
                data, peer = self._udp.recvfrom(65536)
            except TimeoutError:
                continue
            with contextlib.suppress(OSError):
                self._udp.sendto(f"{peer[0]} ".encode() + data, peer)


@dataclass
class World:
    """The test's host: this thread's namespace, a neighbour with a wire to it, and a daemon's networks on it."""

    root: Path
    store: Store
    events: EventBus
    config: NetConfig = field(default_factory=NetConfig)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    current: Networks | None = None

    @property
    def data(self) -> DataRoot:
        return DataRoot(self.root / "data")

    @property
    def exec_root(self) -> ExecRoot:
        return ExecRoot(self.root / "exec")

    @property
    def networks(self) -> Networks:
        assert self.current is not None
        return self.current

    async def start_netd(self) -> Path:
        """As the agent does: a process that goes on when the daemon does not."""
        path = self.exec_root.net / "netd.sock"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(str(path))
            return path
        process = subprocess.Popen([sys.executable, "-m", "moorage_guest.net.netd.main", str(path)])
        self.started.append(process)
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                probe.connect(str(path))
                return path
            await asyncio.sleep(0.01)
        raise AssertionError("netd does not listen")

    async def start(self, live: Any = (), **config: Any) -> Networks:
        """Start a daemon's networks with some configuration."""
        self.config = replace(self.config, **config)
        self.current = Networks(self.store, self.events, self.data, self.exec_root, self.config, self.start_netd)
        await self.current.start(live)
        await self.current.settled()
        return self.current

    async def restart(self, live: Any, **config: Any) -> Networks:
        """Drop the daemon's networks as a kill would, and start again."""
        await self.networks.close()
        return await self.start(live, **config)

    async def run(
        self,
        name: str,
        *networks: str,
        host: HostConfig | None = None,
        endpoints: Mapping[str, EndpointSettings] | None = None,
        **more: Any,
    ) -> tuple[Sandbox, Place]:
        """Allocate a sandbox for a container and return a place in it."""
        wanted = dict(endpoints or {})
        for network in networks:
            wanted.setdefault(network, EndpointSettings())
        host = host or HostConfig(NetworkMode=next(iter(wanted), "bridge"))
        sandbox = await self.networks.allocate(
            SandboxRequest(container_id(name), name, f"{name}-host", host, wanted, **more)
        )
        return sandbox, self.place(sandbox)

    def place(self, sandbox: Sandbox) -> Place:
        """Return a place in a sandbox."""
        descriptor = namespaces.open_path(sandbox.netns_path)
        assert descriptor is not None
        self.opened.append(descriptor)
        return Place(descriptor)

    def here(self) -> Place:
        """The host itself."""
        descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.opened.append(descriptor)
        return Place(descriptor)

    def neighbour(self) -> Place:
        """A machine outside: 192.0.2.2 and 2001:db8:1::2, with the host as its gateway to nothing."""
        path = self.root / "neighbour"
        descriptor = namespaces.create(path)
        self.opened.append(descriptor)

        with RouteSocket() as route:
            peer = link_body(name="wan0", namespace=descriptor)
            route.send([add_veth(link_body(name="uplink", up=True), "uplink", peer)])
            uplink = route.link("uplink")
            assert uplink is not None
            route.send(
                [
                    add_address(uplink.index, ipaddress.ip_interface(f"{HOST}/24")),
                    add_address(uplink.index, ipaddress.ip_interface("2001:db8:1::1/64")),
                ]
            )
        with namespaces.inside(descriptor), RouteSocket() as inner:
            wan = inner.link("wan0")
            assert wan is not None
            inner.send(
                [
                    change_link(link_body(1, up=True), "lo"),
                    change_link(link_body(wan.index, up=True), "wan0"),
                    add_address(wan.index, ipaddress.ip_interface(f"{OUTSIDE}/24")),
                    add_address(wan.index, ipaddress.ip_interface("2001:db8:1::2/64")),
                ]
            )
        return Place(descriptor)

    async def create(self, name: str, **body: Any) -> str:
        """Create a network from API fields."""
        return await self.networks.create(NetworkCreate.model_validate({"Name": name, **body}))

    async def close(self) -> None:
        """End it all, also when a part of it fails to end."""
        try:
            if self.current is not None:
                await self.current.close()
        finally:
            for process in self.started:
                process.kill()
                process.wait(DEADLINE)
            for descriptor in self.opened:
                os.close(descriptor)
            pinned = self.exec_root.netns.iterdir() if self.exec_root.netns.is_dir() else ()
            for path in (*pinned, self.root / "neighbour"):
                namespaces.remove(path)
            self.store.close()


@contextlib.asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    """Make a `World` below ``root``, a short path, and end everything afterwards."""
    with private_network():
        # The machine's own name servers are out of reach here, and asking them would only cost time.
        config = NetConfig(resolv_conf=root / "resolv.conf.none")
        made = World(root, Store(root / "data" / "moorage.db"), EventBus(), config)
        try:
            yield made
        finally:
            await made.close()


def container_id(name: str) -> str:
    """A container's id that is easy to tell."""
    return name.encode().hex().ljust(64, "0")[:64]
