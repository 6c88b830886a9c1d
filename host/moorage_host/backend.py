"""The backend: one background process per user, started on demand, answering the control API on a unix socket.

It may die at any time: the machine goes on, and the next backend takes it over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, Any

from moorage_contract.postponed import postponed, quick_imports

# aiohttp's client, which reads the certificates of all authorities, is not needed; the version is what its modules ask for.
with quick_imports(), postponed("aiohttp", __version__=""):
    from aiohttp import web
    from moorage_contract import agent as protocol
    from pydantic import BaseModel, ValidationError

    from moorage_host.api import PREFIX, ErrorAnswer, Line
    from moorage_host.control import Controller
    from moorage_host.errors import ErrorCode, HostError
    from moorage_host.files import private_folder
    from moorage_host.link.forwarder import unix_listener
    from moorage_host.machine import console
    from moorage_host.machine.place import Progress
    from moorage_host.paths import Paths, docker_config, user_paths
    from moorage_host.session import AGENT_PATIENCE
    from moorage_host.settings import faults

logger = logging.getLogger(__name__)

IDLE = 60.0  # seconds without machine and client after which a backend ends
INCOMING = "/var/lib/moorage/engine.incoming"  # in the guest; gone once the engine has been unpacked

Params = dict[str, Any]
Method = Callable[[Params, Progress], Awaitable[BaseModel | Params | None]]


class Backend:
    """The control API over a controller."""

    def __init__(self, controller: Controller, idle: float) -> None:
        self._controller = controller
        self._idle = idle
        self._stop = asyncio.Event()
        self._clients = 0
        self._last = time.monotonic()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._methods: dict[str, Method] = {
            "status": self._status,
            "start": self._start,
            "stop": self._stop_machine,
            "restart": lambda _params, progress: controller.restart(progress),
            "kill": lambda _params, progress: controller.kill(progress),
            "delete": lambda _params, progress: controller.delete(progress),
            "settings.get": self._settings_get,
            "settings.set": self._settings_set,
            "engine_config.get": self._config_get,
            "engine_config.check": self._config_check,
            "engine_config.apply": self._config_apply,
            "pipes": self._relay(protocol.PipesParams, protocol.Pipes),
            "daemon.restart": self._relay(protocol.DaemonRestart, protocol.Done),
            "daemon.reload": self._relay(protocol.DaemonReload, protocol.Done),
            "daemon.kill": self._relay(protocol.DaemonKill, protocol.Done),
            "trim": self._relay(protocol.Trim, protocol.Trimmed),
            "containers.stop": self._relay(protocol.ContainersStop, protocol.StoppedContainers),
            "logs": self._logs,
            "engine.versions": self._relay(protocol.EngineVersionsGet, protocol.EngineVersions),
            "engine.rollback": self._relay(protocol.EngineRollback, protocol.Done),
            "engine.upgrade": self._upgrade,
            "backend.stop": self._stop_backend,
        }

    async def _status(self, _params: Params, _progress: Progress) -> BaseModel:
        return await self._controller.refresh()

    async def _start(self, params: Params, progress: Progress) -> BaseModel:
        if params:
            self._controller.change_settings(params)
        await self._controller.start(progress)
        return self._controller.status()

    async def _stop_machine(self, params: Params, progress: Progress) -> None:
        if "timeout" in params:
            await self._controller.stop(progress, float(params["timeout"]))
        else:
            await self._controller.stop(progress)

    async def _settings_get(self, _params: Params, _progress: Progress) -> BaseModel:
        return self._controller.settings()

    async def _settings_set(self, params: Params, _progress: Progress) -> BaseModel:
        return self._controller.change_settings(params)

    async def _config_get(self, _params: Params, _progress: Progress) -> BaseModel:
        return self._controller.config.get()

    async def _config_check(self, params: Params, _progress: Progress) -> BaseModel:
        return self._controller.config.check(_text(params, "content"))

    async def _config_apply(self, params: Params, progress: Progress) -> BaseModel:
        content = _text(params, "content")
        try:
            guest = await self._controller.guest()
        except HostError:
            return self._controller.config.save(content)
        progress("applying daemon.json")
        return await self._controller.config.apply(content, guest)

    async def _logs(self, params: Params, _progress: Progress) -> Params:
        lines = int(params.get("lines", 200))
        what = str(params.get("what", "daemon"))
        if what == "console":
            return {"text": console.tail(self._controller.paths.console_log, lines)}
        if what == "backend":
            return {"text": console.tail(self._controller.paths.backend_log, lines)}
        request = protocol.Logs.model_validate(params | {"what": what, "lines": lines})
        return (
            await (await self._controller.guest()).agent(request, protocol.LogText, patience=AGENT_PATIENCE)
        ).model_dump()

    async def _upgrade(self, params: Params, progress: Progress) -> BaseModel:
        path = Path(_text(params, "path"))
        guest = await self._controller.guest()
        digest = await asyncio.to_thread(_sha256, path)
        progress("copying the engine into the machine")
        await guest.upload(str(path), INCOMING)
        try:
            progress("switching to the new engine; containers keep running")
            request = protocol.EngineUpgrade(path=INCOMING, sha256=digest)
            await guest.agent(request, protocol.Done, timeout=300, patience=AGENT_PATIENCE)
            progress("waiting for the agent, which changes its own code too")
            return await guest.agent(protocol.EngineVersionsGet(), protocol.EngineVersions, patience=AGENT_PATIENCE)
        finally:
            await guest.run(f"rm -f {INCOMING}")

    async def _stop_backend(self, _params: Params, _progress: Progress) -> None:
        self._stop.set()

    def _relay(self, request: type[protocol.Message], result: type[protocol.Message]) -> Method:
        async def relay(params: Params, _progress: Progress) -> BaseModel:
            asked: Any = request.model_validate(params)
            return await (await self._controller.guest()).agent(asked, result, timeout=120, patience=AGENT_PATIENCE)

        return relay

    # -- HTTP

    def application(self) -> web.Application:
        """The aiohttp application: one route for the methods, one for watching."""
        application = web.Application(client_max_size=8 << 20)
        application.router.add_post(PREFIX + "watch", self._watch)
        application.router.add_post(PREFIX + "{method}", self._call)
        return application

    async def _call(self, request: web.Request) -> web.StreamResponse:
        method = self._methods.get(request.match_info["method"])
        async with self._client(request) as response:
            if method is None:
                error = HostError(
                    f"this backend knows no {request.match_info['method']}",
                    hint="is it of another release? `moorage backend stop` ends it",
                    code=ErrorCode.NOT_FOUND,
                )
                await response.write(_line(_error(error)))
                return response
            lines: asyncio.Queue[Line | None] = asyncio.Queue()
            # A task of its own: a client that goes away does not interrupt what it asked for.
            task = asyncio.create_task(self._answer(method, await request.read(), lines))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            while (line := await lines.get()) is not None:
                await response.write(_line(line))
        return response

    async def _answer(self, method: Method, body: bytes, lines: asyncio.Queue[Line | None]) -> None:
        try:
            params = json.loads(body or b"{}")
            if not isinstance(params, dict):
                raise HostError("parameters are a JSON object", code=ErrorCode.INVALID)
            result = await method(params, lambda step: lines.put_nowait(Line(progress=step)))
            content = result.model_dump(mode="json") if isinstance(result, BaseModel) else result or {}
            lines.put_nowait(Line(result=content))
        except HostError as error:
            lines.put_nowait(_error(error))
        except ValidationError as error:
            lines.put_nowait(_error(HostError(faults(error), code=ErrorCode.INVALID)))
        except (ValueError, TypeError) as error:
            lines.put_nowait(_error(HostError(f"these parameters are not understood: {error}", code=ErrorCode.INVALID)))
        except Exception as error:
            logger.exception("a request failed")
            lines.put_nowait(
                _error(HostError(f"the backend failed: {error}", hint="see `moorage logs --what backend`"))
            )
        finally:
            lines.put_nowait(None)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        async with self._client(request) as response:
            async for status in self._controller.watch():
                await response.write(_line(Line(event=status.model_dump(mode="json"))))
        return response

    @contextlib.asynccontextmanager
    async def _client(self, request: web.Request) -> AsyncIterator[web.StreamResponse]:
        self._clients += 1
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        try:
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                yield response
        finally:
            self._clients -= 1
            self._last = time.monotonic()

    async def serve(self, socket_path: Path) -> None:
        """Answer until told to stop, or until nothing has been wanted for a while and no machine runs."""
        runner = web.AppRunner(self.application(), handle_signals=False, access_log=None, shutdown_timeout=2)
        await runner.setup()
        try:
            await web.SockSite(runner, unix_listener(socket_path)).start()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._controller.run())
                await self._until_done()
                watching.cancel()
        finally:
            await runner.cleanup()
            socket_path.unlink(missing_ok=True)

    async def _until_done(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 1)
            if self._clients or self._tasks or self._controller.busy:
                self._last = time.monotonic()
            elif time.monotonic() - self._last > self._idle:
                return
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)


def _text(params: Params, key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str):
        raise HostError(f"{key} is missing", code=ErrorCode.INVALID)
    return value


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}", code=ErrorCode.INVALID) from error


def _error(error: HostError) -> Line:
    return Line(error=ErrorAnswer(code=error.code.value, message=error.message, hint=error.hint))


def _line(line: Line) -> bytes:
    return line.model_dump_json(exclude_none=True).encode() + b"\n"


def take_lock(path: Path) -> IO[str] | None:
    """The lock that makes the backend one per user, held as long as the file is open; None when another holds it."""
    file = path.open("a", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _log_to(paths: Paths) -> None:
    handler = logging.handlers.RotatingFileHandler(paths.backend_log, maxBytes=2 << 20, backupCount=1, encoding="utf-8")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # each failed attempt is told once, by us


def main() -> int:
    """Run the backend in the foreground; 0 also when another one is there already."""
    parser = argparse.ArgumentParser(
        prog="moorage-backend", description="Moorage's background process; started by moorage when needed."
    )
    parser.add_argument(
        "--idle", type=float, default=IDLE, help="seconds without machine and clients after which it ends"
    )
    options = parser.parse_args()
    os.umask(0o077)
    paths = user_paths()
    private_folder(paths.state)
    lock = take_lock(paths.backend_lock)
    if lock is None:
        return 0
    _log_to(paths)
    logger.info("backend %d starts", os.getpid())
    with lock:

        async def serve() -> None:
            await Backend(Controller(paths, docker_config()), options.idle).serve(paths.backend_socket)

        asyncio.run(serve())
    logger.info("backend %d ends", os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
