"""Published ports of running containers, forwarded from the host to the guest over SSH.

One thread follows the engine's container events through docker-py and brings the listening sockets in line.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from moorage_contract.postponed import postponed

from moorage_host.api import PublishedPort
from moorage_host.errors import HostError
from moorage_host.link.datagrams import Datagrams, started
from moorage_host.link.forwarder import Forwarder, tcp_listener
from moorage_host.session import Session

with postponed("docker", "requests"):
    import docker
    import requests

logger = logging.getLogger(__name__)

ACTIONS = ("start", "die", "destroy", "pause", "unpause", "update", "rename")


def prepare() -> None:
    """Import what following the engine takes: a quarter of a second, better spent while the guest boots. Blocks."""
    _ = docker.APIClient, requests.Session


@dataclass(frozen=True)
class Wanted:
    """A published port as the engine lists it."""

    address: str
    port: int
    protocol: str
    container: str
    container_port: int


def wanted(containers: list[dict[str, Any]]) -> list[Wanted]:
    """The published ports in the engine's list of containers, one entry each address, port and protocol, in order."""
    found: dict[tuple[str, int, str], Wanted] = {}
    for container in containers:
        name = next(iter(container.get("Names") or [container.get("Id", "")])).lstrip("/")
        for entry in container.get("Ports") or []:
            if entry.get("PublicPort"):
                address = str(entry.get("IP") or "0.0.0.0")
                port = Wanted(
                    address,
                    int(entry["PublicPort"]),
                    str(entry.get("Type", "tcp")),
                    name,
                    int(entry.get("PrivatePort", 0)),
                )
                found[(port.address, port.port, port.protocol)] = port
    return sorted(found.values(), key=lambda one: (one.port, one.protocol, one.address))


class PortForwards:
    """The forwards of one session. `changed` is called, from its thread, with the whole list whenever it differs."""

    def __init__(self, socket: Path, session: Session, changed: Callable[[list[PublishedPort]], None]) -> None:
        self._base = f"unix://{socket}"
        self._session = session
        self._changed = changed
        self._open: dict[tuple[str, int, str], Callable[[], None]] = {}  # each with what closes it
        self._datagrams: Datagrams | None = None  # made for the first UDP port
        self._told: list[PublishedPort] = []
        self._closed = threading.Event()
        self._client: docker.APIClient | None = None
        self._thread = threading.Thread(target=self._follow, name="published-ports", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                with contextlib.closing(docker.APIClient(base_url=self._base, version="1.44", timeout=60)) as client:
                    self._client = client
                    events = client.events(decode=True, filters={"type": ["container"], "event": list(ACTIONS)})
                    try:
                        self.bring_in_line(client.containers())
                        for _event in events:
                            if self._closed.is_set():
                                break
                            self.bring_in_line(client.containers())
                    finally:
                        with contextlib.suppress(OSError, AttributeError):  # of a connection that has ended already
                            events.close()
            except (docker.errors.DockerException, requests.RequestException, OSError, ValueError) as error:
                logger.debug("published ports: %s", error)
            self._closed.wait(1)

    def bring_in_line(self, containers: list[dict[str, Any]]) -> None:
        """Open what is missing, close what is gone, tell what changed."""
        ports = wanted(containers)
        keep = {(port.address, port.port, port.protocol) for port in ports}
        for key in [key for key in self._open if key not in keep]:
            self._open.pop(key)()
        told = [PublishedPort(**vars(port), error=self._ensure(port)) for port in ports]
        if told != self._told:
            self._told = told
            self._changed(told)

    def _ensure(self, port: Wanted) -> str:
        if port.protocol not in ("tcp", "udp"):
            return f"{port.protocol} ports are not forwarded to the host; the guest itself serves them"
        key = (port.address, port.port, port.protocol)
        if key in self._open:
            return ""
        inside = (
            "::1" if port.address == "::" else "127.0.0.1" if port.address in ("0.0.0.0", "127.0.0.1") else port.address
        )
        try:
            if port.protocol == "udp":
                self._open[key] = self._udp().bind(port.address, port.port, (inside, port.port))
                return ""
            listener = tcp_listener(port.address, port.port)
        except HostError as error:
            return str(error)

        def opener(host: str = inside, number: int = port.port) -> Any:
            return self._session.link(5).tcp(host, number, ("127.0.0.1", 0))

        self._open[key] = Forwarder(listener, cast("Any", opener), name=f"{port.address}:{port.port}").close
        return ""

    def _udp(self) -> Datagrams:
        if self._datagrams is None:
            self._datagrams = Datagrams(lambda: started(self._session.link(5).session()))
        return self._datagrams

    def close(self) -> None:
        """Stop following and close every forward. Idempotent."""
        self._closed.set()
        if self._client is not None:
            with contextlib.suppress(OSError, docker.errors.DockerException):
                self._client.close()
        if self._datagrams is not None:
            self._datagrams.close()
            self._datagrams = None
        for close in self._open.values():
            close()
        self._open.clear()
