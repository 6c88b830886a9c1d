"""A backend and an engine that answer from memory, with a switch for everything that can go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from moorage_contract.agent import AgentProcess, ConfigState, DaemonState, DaemonStatus, Memory, PipeFill, Status
from moorage_contract.daemon_config import check
from moorage_gui.views import Applied, ContainerView, Identity, MachineSettings, MachineState, MachineView

FILE = """{
  "debug": false,
  "log-opts": {
    "max-size": "10m",
    "max-file": "3"
  },
  "registry-mirrors": ["https://mirror.example.com"]
}
"""


def engine_status(state: DaemonState = DaemonState.RUNNING, **daemon: object) -> Status:
    facts = {"pid": 412, "since": 1000.0, "restarts": 1} | daemon
    return Status(
        engine_version="26.11.0",
        api_version="1.51",
        daemon=DaemonStatus.model_validate({"state": state, **facts}),
        agent=AgentProcess(pid=201, since=900.0),
        config=ConfigState(sha256="0" * 64),
        memory=Memory(total=2048 * 2**20, available=1900 * 2**20),
        clock=1360.0,
    )


@dataclass
class FakeBackend:
    """Attributes are set by tests before or between calls; `gate`, when closed, holds every call back."""

    state: MachineState = MachineState.RUNNING
    engine: Status | None = field(default_factory=engine_status)
    text: str = FILE
    fills: list[PipeFill] = field(default_factory=list)
    stored: MachineSettings = field(default_factory=lambda: MachineSettings(2, 2048, 32, 8, 16384))
    refuse: str = ""
    broken: str = ""
    calls: list[str] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    on_apply: Callable[[], object] = lambda: None
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.gate.wait(30)
        if self.broken:
            raise RuntimeError(self.broken)

    def status(self) -> MachineView:
        self._call("status")
        running = self.state is MachineState.RUNNING
        return MachineView(
            self.state,
            engine=self.engine if running else None,
            docker_socket=Path("/home/user/.local/state/moorage/docker.sock"),
            accelerator="tcg",
        )

    def start(self, progress: Callable[[str], None]) -> None:
        self._call("start")
        progress("Booting")
        self.state = MachineState.RUNNING

    def stop(self) -> None:
        self._call("stop")
        self.state = MachineState.OFF

    def restart(self, progress: Callable[[str], None]) -> None:
        self._call("restart")
        progress("Booting")

    def pipes(self) -> list[PipeFill]:
        self._call("pipes")
        return list(self.fills)

    def config(self) -> str:
        self._call("config")
        return self.text

    def apply_config(self, text: str) -> Applied:
        self._call("apply")
        self.applied.append(text)
        faults = check(text)
        if faults:
            return Applied(False, faults[0].message)
        if self.refuse:
            return Applied(False, self.refuse, rolled_back=True)
        self.text = text
        self.on_apply()
        return Applied(True, stored=self.state is not MachineState.RUNNING)

    def restart_daemon(self) -> None:
        self._call("daemon")
        self.on_apply()

    def settings(self) -> MachineSettings:
        self._call("settings")
        return self.stored

    def save_settings(self, settings: MachineSettings) -> None:
        self._call("save")
        self.stored = settings


@dataclass
class FakeEngine:
    """Containers by hand."""

    rows: list[ContainerView] = field(default_factory=list)
    who: list[Identity] = field(default_factory=list)
    text: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def containers(self) -> list[ContainerView]:
        return list(self.rows)

    def identities(self) -> list[Identity]:
        return list(self.who)

    def start(self, container_id: str) -> None:
        self.calls.append(f"start {container_id}")
        self.rows = [
            replace(row, state="running", status="Up 1 second") if row.id == container_id else row for row in self.rows
        ]

    def stop(self, container_id: str) -> None:
        self.calls.append(f"stop {container_id}")
        self.rows = [
            replace(row, state="exited", status="Exited (0) 1 second ago") if row.id == container_id else row
            for row in self.rows
        ]

    def logs(self, container_id: str, lines: int) -> str:
        return self.text.get(container_id, "")

    def close(self) -> None:
        self.calls.append("close")


def populated() -> tuple[FakeBackend, FakeEngine]:
    """Four containers, one of them blocked."""
    rows = [
        ContainerView("a1" * 32, "web", "nginx:1.27", "running", "Up 2 hours", "8080→80/tcp"),
        ContainerView("b2" * 32, "database", "postgres:17", "running", "Up 2 hours (healthy)", "5432→5432/tcp"),
        ContainerView("c3" * 32, "worker", "registry.example.com/team/worker:2.4", "running", "Up 12 minutes"),
        ContainerView("d4" * 32, "migrate", "postgres:17", "exited", "Exited (0) 2 hours ago"),
    ]
    who = [
        Identity(row.id, row.name, 700 + number, f"2026-11-24T09:1{number}:00.123456789Z")
        for number, row in enumerate(rows)
        if row.running
    ]
    fills = [
        PipeFill(
            container="a1" * 32,
            name="web",
            stream="stdout",
            bytes=12_288,
            capacity=65536,
            rate=900.0,
            seconds_to_full=59.0,
        ),
        PipeFill(container="a1" * 32, name="web", stream="stderr", bytes=0, capacity=65536),
        PipeFill(container="b2" * 32, name="database", stream="stdout", bytes=0, capacity=65536),
        PipeFill(
            container="b2" * 32,
            name="database",
            stream="stderr",
            bytes=52_000,
            capacity=65536,
            rate=2048.0,
            seconds_to_full=7.0,
        ),
        PipeFill(
            container="c3" * 32, name="worker", stream="stdout", bytes=65536, capacity=65536, rate=0.0, blocked=True
        ),
        PipeFill(
            container="c3" * 32,
            name="worker",
            stream="stderr",
            bytes=310,
            capacity=65536,
            rate=12.0,
            seconds_to_full=5435.0,
        ),
    ]
    lines = "\n".join(
        f"2026-11-24T10:{number // 60:02}:{number % 60:02}Z GET /items/{number} 200 {number % 9 + 1} ms"
        for number in range(120)
    )
    return FakeBackend(fills=fills), FakeEngine(rows, who, {"a1" * 32: lines})
