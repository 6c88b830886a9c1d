"""Clients of the backend: the one door for the command line and the window.

`Client` blocks (use it in a worker thread); for asyncio there is `async_client`. Both start the backend when there is none,
and raise HostError with the backend's message and hint.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from moorage_contract import agent as protocol
from pydantic import BaseModel

from moorage_host.api import (
    PREFIX,
    BackendProcess,
    ConfigChange,
    ConfigFault,
    EngineConfigApplied,
    EngineConfigCheck,
    EngineConfigText,
    Line,
    MachineStatus,
    PublishedPort,
)
from moorage_host.backend_process import ensure_backend, running
from moorage_host.errors import ErrorCode, HostError
from moorage_host.paths import Paths, user_paths
from moorage_host.settings import Settings

__all__ = [
    "BackendProcess",
    "Client",
    "ConfigChange",
    "ConfigFault",
    "EngineConfigApplied",
    "EngineConfigCheck",
    "EngineConfigText",
    "HostError",
    "MachineStatus",
    "PublishedPort",
    "Settings",
]

Progress = Callable[[str], None]
M = TypeVar("M", bound=BaseModel)

ATTEMPTS = 4


def quiet(_step: str) -> None:
    """Progress that nobody watches."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("moorage", timeout=timeout or socket.getdefaulttimeout() or 3600)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """The backend's methods, blocking. Thread-safe: each call has a connection of its own."""

    def __init__(self, paths: Paths | None = None, *, start_backend: bool = True) -> None:
        self._paths = user_paths() if paths is None else paths
        self._start_backend = start_backend

    @property
    def paths(self) -> Paths:
        return self._paths

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        progress: Progress = quiet,
        *,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """One method; `progress` is called with each step. Without `timeout` an answer is waited for as long as it takes."""
        for line in self._lines(method, params, timeout):
            if line.progress is not None:
                progress(line.progress)
            elif line.error is not None:
                raise failure(line)
            elif line.result is not None:
                return line.result
        raise HostError(
            "the backend ended before it answered",
            hint="run the command again: the machine goes on",
            code=ErrorCode.UNAVAILABLE,
        )

    def _lines(self, method: str, params: dict[str, Any] | None, timeout: float | None) -> Iterator[Line]:
        connection, response = self._ask(method, params, timeout)
        with contextlib.closing(connection):
            try:
                while text := response.readline():
                    yield Line.model_validate_json(text)
            except TimeoutError as error:
                raise HostError(f"the backend did not answer {method} in time", code=ErrorCode.TIMEOUT) from error
            except (OSError, http.client.HTTPException) as error:
                raise _silent(error) from error

    def _ask(
        self, method: str, params: dict[str, Any] | None, timeout: float | None
    ) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        """Send the request. One that meets a backend on its way out is sent again, to the next: every method may be repeated."""
        for attempt in range(ATTEMPTS):
            if self._start_backend:
                ensure_backend(self._paths)
            connection = _UnixConnection(self._paths.backend_socket, timeout)
            try:
                connection.request(
                    "POST", PREFIX + method, json.dumps(params or {}), {"Content-Type": "application/json"}
                )
                return connection, connection.getresponse()
            except TimeoutError as error:
                connection.close()
                raise HostError(f"the backend did not answer {method} in time", code=ErrorCode.TIMEOUT) from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not self._start_backend or attempt == ATTEMPTS - 1:
                    raise _silent(error) from error
                time.sleep(0.1 * (attempt + 1))
        raise AssertionError("unreachable")

    def status(self) -> MachineStatus:
        """Where everything stands, the agent asked anew."""
        return MachineStatus.model_validate(self.call("status", timeout=60))

    def watch(self) -> Iterator[MachineStatus]:
        """The status now and on every change, until the backend ends (HostError). Close the iterator to stop."""
        for line in self._lines("watch", None, None):
            if line.event is not None:
                yield MachineStatus.model_validate(line.event)
        raise HostError("the backend ended", code=ErrorCode.UNAVAILABLE)

    def watch_settled(self) -> Iterator[MachineStatus]:
        """As `watch`, from the moment on at which a new backend has found the machine that an earlier one left."""
        self.status()
        yield from self.watch()

    def start(self, progress: Progress = quiet, **changes: Any) -> MachineStatus:
        """Start the machine, with changed settings if given, and wait until the engine answers."""
        return MachineStatus.model_validate(self.call("start", changes, progress))

    def stop(self, progress: Progress = quiet, timeout: float | None = None) -> None:
        """Stop containers and machine in order; containers get `timeout` seconds."""
        self.call("stop", {} if timeout is None else {"timeout": timeout}, progress)

    def restart(self, progress: Progress = quiet) -> None:
        """Stop, then start."""
        self.call("restart", None, progress)

    def kill(self, progress: Progress = quiet) -> None:
        """Cut the machine's power."""
        self.call("kill", None, progress)

    def delete(self, progress: Progress = quiet) -> None:
        """Remove the machine with its disk."""
        self.call("delete", None, progress)

    def settings(self) -> Settings:
        """The machine's settings."""
        return Settings.model_validate(self.call("settings.get"))

    def change_settings(self, **changes: Any) -> Settings:
        """Change settings; they hold from the machine's next start on."""
        return Settings.model_validate(self.call("settings.set", changes))

    def engine_config(self) -> EngineConfigText:
        """daemon.json; also with engine and machine down."""
        return EngineConfigText.model_validate(self.call("engine_config.get"))

    def check_engine_config(self, content: str) -> EngineConfigCheck:
        """Faults of a daemon.json, or the plan of applying it. Touches nothing."""
        return EngineConfigCheck.model_validate(self.call("engine_config.check", {"content": content}))

    def apply_engine_config(self, content: str, progress: Progress = quiet) -> EngineConfigApplied:
        """Put a daemon.json in force, or save it for the next start when the engine is down."""
        return EngineConfigApplied.model_validate(self.call("engine_config.apply", {"content": content}, progress))

    def pipes(self) -> list[protocol.PipeFill]:
        """The log pipes of all containers; works while moored is dead."""
        return protocol.Pipes.model_validate(self.call("pipes", timeout=60)).pipes

    def logs(self, what: str = "daemon", lines: int = 200, container: str | None = None) -> str:
        """The last lines of: daemon, agent, shim (with `container`), console, backend."""
        params: dict[str, Any] = {"what": what, "lines": lines}
        if container is not None:
            params["container"] = container
        return str(self.call("logs", params, timeout=60).get("text", ""))

    def daemon(self, verb: str) -> None:
        """`restart`, `reload` or `kill` (SIGKILL) moored; containers keep running."""
        self.call(f"daemon.{verb}")

    def stop_containers(self, ids: list[str], timeout: float | None = None) -> list[str]:
        """Stop containers without moored, also unmanaged ones; all of them for an empty list. The ids that were stopped."""
        params: dict[str, Any] = {"ids": ids}
        if timeout is not None:
            params["timeout"] = timeout
        return protocol.StoppedContainers.model_validate(self.call("containers.stop", params)).stopped

    def engine_versions(self) -> protocol.EngineVersions:
        """Engine versions in the machine."""
        return protocol.EngineVersions.model_validate(self.call("engine.versions"))

    def upgrade_engine(self, path: Path, progress: Progress = quiet) -> None:
        """Deliver an engine file into the running machine and switch to it; containers keep running."""
        self.call("engine.upgrade", {"path": str(path.absolute())}, progress)

    def rollback_engine(self) -> None:
        """Go back to the engine before."""
        self.call("engine.rollback")

    def stop_backend(self) -> None:
        """End the backend; the machine goes on. Quiet when there is none."""
        if running(self._paths):
            with contextlib.suppress(HostError):
                self.call("backend.stop", timeout=30)


def _silent(error: Exception) -> HostError:
    return HostError(
        f"the backend does not answer: {error}",
        hint="run the command again: the machine goes on",
        code=ErrorCode.UNAVAILABLE,
    )


def failure(line: Line) -> HostError:
    """The error that an answer's line tells."""
    assert line.error is not None
    try:
        code = ErrorCode(line.error.code)
    except ValueError:
        code = ErrorCode.FAILED
    return HostError(line.error.message, hint=line.error.hint, code=code)
