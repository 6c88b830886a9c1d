"""The ways into a running guest: one SSH connection, and over it the engine's socket and the published ports on the host."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from moorage_host.api import PublishedPort
from moorage_host.errors import HostError
from moorage_host.link import keys
from moorage_host.link.forwarder import Forwarder, unix_listener
from moorage_host.paths import Paths
from moorage_host.ports import PortForwards
from moorage_host.session import Session


class Ways:
    """What is open of them. `ports_changed` is called in a thread with every new list of published ports."""

    def __init__(self, paths: Paths, ports_changed: Callable[[list[PublishedPort]], None]) -> None:
        self._paths = paths
        self._ports_changed = ports_changed
        self._docker: Forwarder | None = None
        self._ports: PortForwards | None = None
        self.session: Session | None = None

    @property
    def connected(self) -> bool:
        """Whether the guest can be asked something."""
        return self.session is not None and self.session.connected

    def open(self, ssh_port: Callable[[], Awaitable[int]]) -> Session:
        """The session, made but not connected when there was none, with the engine's socket leading into it."""
        if self.session is None:
            self.session = Session(keys.ensure(self._paths.client_key, self._paths.host_key), ssh_port)
        if self._docker is None:
            self._docker = Forwarder(
                unix_listener(self._paths.docker_socket), self.session.open_engine, name="docker.sock", refusal=_refusal
            )
        return self.session

    def follow_ports(self) -> None:
        """Forward from now on what containers publish. Idempotent."""
        if self._ports is None and self.session is not None:
            self._ports = PortForwards(self._paths.docker_socket, self.session, self._ports_changed)

    def close(self) -> None:
        """Close all. Idempotent."""
        if self._docker is not None:
            self._docker.close()
            self._docker = None
            self._paths.docker_socket.unlink(missing_ok=True)
        if self.session is not None:
            self.session.close()  # first: nobody waits for the connection from then on
            self.session = None
        if self._ports is not None:
            self._ports.close()
            self._ports = None


def _refusal(error: HostError) -> bytes:
    """What a client of the engine is told, in the engine's form, when it cannot be reached."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    body = json.dumps({"message": f"the machine cannot be reached: {text}"}).encode() + b"\n"
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
