"""What the window shows, as plain values that travel from worker threads to widgets by signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from moorage_contract.agent import Status


class MachineState(Enum):
    """The machine, in the words of the tray."""

    ABSENT = "absent"
    OFF = "off"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @property
    def busy(self) -> bool:
        """Whether it is on its way to another state."""
        return self in (MachineState.STARTING, MachineState.STOPPING)

    @property
    def tone(self) -> str:
        """Tone of the chip that says the state."""
        if self is MachineState.RUNNING:
            return "good"
        if self in (MachineState.FAILED, MachineState.UNKNOWN):
            return "bad"
        return "warning" if self.busy or self is MachineState.PAUSED else "plain"

    @property
    def words(self) -> str:
        """The state for a person."""
        return {
            MachineState.ABSENT: "Not created yet",
            MachineState.OFF: "Off",
            MachineState.STARTING: "Starting…",
            MachineState.RUNNING: "Running",
            MachineState.STOPPING: "Stopping…",
            MachineState.PAUSED: "Paused",
            MachineState.FAILED: "Failed",
            MachineState.UNKNOWN: "Backend silent",
        }[self]


@dataclass(frozen=True)
class MachineView:
    """The machine and, while it runs, its engine. `detail` is a sentence on the state, `warning` one on anything else."""

    state: MachineState = MachineState.UNKNOWN
    detail: str = ""
    warning: str = ""
    engine: Status | None = None
    docker_socket: Path | None = None
    accelerator: str = ""
    restart_needed: bool = False

    @property
    def engine_words(self) -> str:
        """The engine in a word or two."""
        if self.engine is None:
            return "Engine off" if self.state is not MachineState.RUNNING else "Engine not there yet"
        return f"Engine {self.engine.daemon.state.value}"


@dataclass(frozen=True)
class MachineSettings:
    """Resources of the machine and their bounds on this host. Memory in MiB, disk in GiB; a disk never shrinks.

    `saved_start`: whether it may start from a saved state instead of booting. `libvirt_uri`: on which host it runs, `auto` for this one.
    """

    cpus: int = 2
    memory_mib: int = 2048
    disk_gib: int = 32
    most_cpus: int = 64
    most_memory_mib: int = 262144
    saved_start: bool = True
    libvirt_uri: str = "auto"


@dataclass(frozen=True)
class ContainerView:
    """One row of the list."""

    id: str
    name: str
    image: str
    state: str
    status: str
    ports: str = ""

    @property
    def running(self) -> bool:
        """Whether it can be stopped."""
        return self.state in ("running", "paused", "restarting")


@dataclass(frozen=True)
class Identity:
    """What proves that a running container is the one it was: its process and when that started."""

    id: str
    name: str
    pid: int
    started_at: str


@dataclass(frozen=True)
class Kept:
    """One container before and after the daemon's configuration was applied; `after` is None when it no longer runs."""

    before: Identity
    after: Identity | None

    @property
    def kept(self) -> bool:
        """Whether the same process runs on."""
        return self.after is not None and (self.before.pid, self.before.started_at) == (
            self.after.pid,
            self.after.started_at,
        )


@dataclass(frozen=True)
class Applied:
    """The backend's answer to an apply. `stored` when the machine is off and the file waits for its next start."""

    ok: bool
    message: str = ""
    rolled_back: bool = False
    stored: bool = False


@dataclass(frozen=True)
class ApplyOutcome:
    """An apply with its proof."""

    applied: Applied
    text: str
    proof: Sequence[Kept] = ()

    @property
    def all_kept(self) -> bool:
        """Whether every container that ran before runs on."""
        return all(item.kept for item in self.proof)


def compare(before: Sequence[Identity], after: Sequence[Identity]) -> tuple[Kept, ...]:
    """Pair the containers that ran before with what they are now."""
    now = {item.id: item for item in after}
    return tuple(Kept(item, now.get(item.id)) for item in before)


def in_bytes(count: float) -> str:
    """A size for a person: 512 B, 12.0 KiB, 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes every size")


def in_seconds(seconds: float | None) -> str:
    """A span for a person: 12 s, 3 min, 2 h; a dash for none."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
