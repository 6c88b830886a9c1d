"""The methods of agent.sock, each by its name in docs/architecture.md."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moorage_guest.agent.config import Applied, Config
from moorage_guest.agent.containers import Containers
from moorage_guest.agent.daemon import Daemon
from moorage_guest.agent.engines import Engines
from moorage_guest.agent.forking import in_child
from moorage_guest.agent.host import Answer, Fail, Method
from moorage_guest.agent.logfile import LogFile
from moorage_guest.agent.shims import Shims
from moorage_guest.agent.upgrade import Upgrade
from moorage_guest.room import shortages
from moorage_guest.shim import kernel
from moorage_guest.shim.connection import Refused
from moorage_guest.shim.loop import Loop

#: Longest tail of a log that is sent, in lines.
MAX_LINES = 100_000


class Methods:
    """Everything the host can ask for. Long work is done elsewhere; nothing here blocks."""

    def __init__(
        self,
        loop: Loop,
        roots: tuple[Path, Path],
        parts: tuple[Daemon, Config, Containers, Shims, Engines, Upgrade],
        logs: dict[str, LogFile],
        power_off: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._loop = loop
        self._data_root, self._exec_root = roots
        self._daemon, self._config, self._containers, self._shims, self._engines, self._upgrade = parts
        self._logs = logs
        self._power_off = power_off
        self._since = time.time()
        self.table: dict[str, Method] = {
            "status": self._status, "pipes": self._pipes, "config.get": self._config_get,
            "config.validate": self._config_validate, "config.apply": self._config_apply,
            "daemon.restart": self._restart, "daemon.reload": self._reload, "daemon.kill": self._kill,
            "clock.set": self._clock, "trim": self._trim, "logs": self._log_tail, "containers.stop": self._stop,
            "engine.upgrade": self._engine_upgrade, "engine.rollback": self._engine_rollback,
            "engine.versions": self._engine_versions, "poweroff": self._poweroff,
        }  # fmt: skip

    def status(self) -> dict[str, Any]:
        """Return the result of `status`."""
        daemon = self._daemon
        return {
            "engine_version": daemon.engine_version or self._engines.version_of(self._engines.current),
            "api_version": daemon.api_version,
            "daemon": {
                "state": daemon.state.value, "pid": daemon.pid or None, "since": daemon.since, "restarts": daemon.restarts,
                "last_exit": daemon.last_exit, "last_error": daemon.last_error or None,
            },
            "agent": {"pid": os.getpid(), "since": self._since},
            "config": {"sha256": self._config.sha256(), "rolled_back": self._config.rolled_back},
            "memory": _memory(),
            "warnings": shortages(self._data_root, self._exec_root),
            "clock": time.time(),
        }  # fmt: skip

    def _status(self, _params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        answer(self.status())

    def _pipes(self, _params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        self._containers.pipes(lambda pipes: answer({"pipes": pipes}))

    def _config_get(self, _params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        answer({"content": self._config.content()})

    def _config_validate(self, params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        self._config.validate(_text(params, "content"), lambda ok, message: answer({"ok": ok, "message": message}))

    def _config_apply(self, params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        mode = params.get("mode", "reload")
        if mode not in ("reload", "restart"):
            raise ValueError(f"mode is {mode!r}: it has to be reload or restart")

        def applied(result: Applied) -> None:
            answer({"ok": result.ok, "message": result.message, "rolled_back": result.rolled_back})

        self._config.apply(_text(params, "content"), mode == "restart", applied)

    def _restart(self, _params: dict[str, Any], answer: Answer, fail: Fail) -> None:
        def ready(up: bool) -> None:
            if up:
                answer({})
            else:
                fail("failed", f"the daemon does not start: {self._daemon.last_error or 'see its log'}")

        self._daemon.restart(ready)

    def _reload(self, _params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        if not self._daemon.pid:
            raise Refused("not_running", "the daemon does not run: it reads daemon.json when it starts")
        self._daemon.reload()
        answer({})

    def _kill(self, _params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        if not self._daemon.signal(signal.SIGKILL):
            raise Refused("not_running", "the daemon does not run")
        answer({})

    def _clock(self, params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, int(params["ns"]))
        answer({})

    def _trim(self, _params: dict[str, Any], answer: Answer, fail: Fail) -> None:
        def done(count: object, error: str) -> None:
            if error:
                fail("failed", f"cannot trim {self._data_root}: {error}")
            else:
                answer({"bytes": count})

        in_child(self._loop, lambda: kernel.trim(self._data_root), self._exec_root / "engine.log", done)

    def _log_tail(self, params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        lines = max(1, min(MAX_LINES, int(params.get("lines", 200))))
        what = str(params.get("what", "daemon"))
        if what == "shim":
            container = params.get("container")
            if not container:
                raise ValueError("name the container whose shim's log is wanted")
            log = LogFile(self._shims.folder(str(container)) / "shim.log")
        elif what in self._logs:
            log = self._logs[what]
        else:
            raise ValueError(f"there is no log {what!r}: ask for daemon, agent or shim")
        answer({"text": log.tail(lines)})

    def _stop(self, params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        timeout = params.get("timeout")
        ids = [str(item) for item in params.get("ids") or []]
        self._containers.stop(ids, None if timeout is None else float(timeout), lambda done: answer({"stopped": done}))

    def _engine_upgrade(self, params: dict[str, Any], answer: Answer, fail: Fail) -> None:
        path = Path(_text(params, "path"))
        self._upgrade.upgrade(path, _text(params, "sha256"), lambda why: fail("upgrade", why) if why else answer({}))

    def _engine_rollback(self, _params: dict[str, Any], answer: Answer, fail: Fail) -> None:
        self._upgrade.rollback(lambda why: fail("rollback", why) if why else answer({}))

    def _engine_versions(self, _params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        engines = self._engines
        previous = engines.previous
        built_in = engines.version_of("built-in")
        answer({
            "current": engines.version_of(engines.current),
            "previous": engines.version_of(previous) if previous else None,
            "versions": sorted({built_in, *engines.names()}, key=lambda text: [int(part) for part in text.split(".")]),
        })  # fmt: skip

    def _poweroff(self, params: dict[str, Any], answer: Answer, _fail: Fail) -> None:
        self._power_off(float(params.get("timeout", 30.0)), lambda: answer({}))


def _text(params: dict[str, Any], name: str) -> str:
    value = params[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} has to be a text")
    return value


def _memory() -> dict[str, int]:
    """Return bytes in all and available."""
    found: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            found[key] = int(value.split()[0]) * 1024
    return {"total": found.get("MemTotal", 0), "available": found.get("MemAvailable", 0)}
