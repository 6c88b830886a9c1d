"""The engine's containers through docker-py, over the socket that the backend keeps on this computer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException

from moorage_gui.views import ContainerView, Identity

STOP_SECONDS = 60
API = "1.44"


class EngineUnreachable(Exception):
    """The engine did not answer; the text is for the user."""


class DockerEngine:
    """Each thread has a client of its own, as requests' sessions are not to be shared. `socket` is asked for at each call."""

    def __init__(self, socket: Callable[[], Path | None]) -> None:
        self._socket = socket
        self._lock = threading.Lock()
        self._clients: dict[int, tuple[Path, docker.DockerClient]] = {}

    def containers(self) -> Sequence[ContainerView]:
        """All containers, those that ended too. Raises EngineUnreachable."""
        return [view(entry) for entry in self._ask(lambda client: client.api.containers(all=True))]

    def identities(self) -> Sequence[Identity]:
        """Process and start time of every running container. Raises EngineUnreachable."""

        def work(client: docker.DockerClient) -> list[Identity]:
            found = []
            for entry in client.api.containers():
                try:
                    told = client.api.inspect_container(entry["Id"])
                except docker.errors.NotFound:
                    continue
                state = told["State"]
                found.append(
                    Identity(told["Id"], str(told["Name"]).lstrip("/"), int(state["Pid"]), str(state["StartedAt"]))
                )
            return found

        known: list[Identity] = self._ask(work)
        return known

    def start(self, container_id: str) -> None:
        """Start a container; one that runs is left alone."""
        self._ask(lambda client: client.api.start(container_id))

    def stop(self, container_id: str) -> None:
        """Stop a container with its own signal and timeout."""
        self._ask(lambda client: client.api.stop(container_id))

    def logs(self, container_id: str, lines: int) -> str:
        """The last lines of both streams, as text; bytes that are no UTF-8 are shown as replacement characters."""
        raw: bytes = self._ask(lambda client: client.api.logs(container_id, stdout=True, stderr=True, tail=lines))
        return raw.decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n")

    def close(self) -> None:
        """Close every thread's connections. The object can be used again."""
        with self._lock:
            held, self._clients = self._clients, {}
        for _, client in held.values():
            client.close()

    def _ask(self, work: Callable[[docker.DockerClient], Any]) -> Any:
        path = self._socket()
        if path is None:
            raise EngineUnreachable("the machine is not running; start it first")
        try:
            return work(self._client(path))
        except APIError as error:
            raise EngineUnreachable(str(error.explanation or error)) from error
        except (DockerException, OSError) as error:
            self._drop()
            raise EngineUnreachable(f"the engine does not answer at {path}: {error}") from error

    def _client(self, path: Path) -> docker.DockerClient:
        with self._lock:
            held = self._clients.get(threading.get_ident())
        if held is not None and held[0] == path:
            return held[1]
        self._drop()
        made = docker.DockerClient(base_url=f"unix://{path}", timeout=STOP_SECONDS, version=API)
        with self._lock:
            self._clients[threading.get_ident()] = (path, made)
        return made

    def _drop(self) -> None:
        with self._lock:
            held = self._clients.pop(threading.get_ident(), None)
        if held is not None:
            held[1].close()


def view(entry: dict[str, Any]) -> ContainerView:
    """One entry of `GET /containers/json` as a row."""
    names = entry.get("Names") or []
    name = str(names[0]).lstrip("/") if names else entry["Id"][:12]
    return ContainerView(
        entry["Id"],
        name,
        str(entry.get("Image", "")),
        str(entry.get("State", "")),
        str(entry.get("Status", "")),
        ports(entry.get("Ports") or []),
    )


def ports(entries: Sequence[dict[str, Any]]) -> str:
    """Published ports, each once though it is bound for IPv4 and IPv6: 8080→80/tcp."""
    shown = {
        f"{entry['PublicPort']}→{entry['PrivatePort']}/{entry.get('Type', 'tcp')}": None
        for entry in entries
        if entry.get("PublicPort")
    }
    return ", ".join(shown)
