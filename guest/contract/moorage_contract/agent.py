"""What the host and the agent say to each other over agent.sock: JSON lines, one request or reply each.

The models are the host's side; the agent itself uses the standard library alone and keeps to the same shapes
(docs/architecture.md). Fields that a newer agent adds are kept out of the way, not refused.
"""

from __future__ import annotations

import functools
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Message(BaseModel):
    """Base of all: unknown fields are ignored, so that host and guest may be of different patch releases."""

    # Validators are built at first use, which for most of these is never: a command would wait a tenth of a second for them.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class DaemonState(StrEnum):
    """Where moored stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class DaemonStatus(Message):
    """moored as the agent sees it. `since` is in seconds since the epoch; `last_error` is the daemon's own last message."""

    state: DaemonState
    pid: int | None = None
    since: float | None = None
    restarts: int = 0
    last_exit: int | str | None = None
    last_error: str | None = None


class AgentProcess(Message):
    pid: int
    since: float | None = None


class RolledBack(Message):
    """Why the file in force is not the one last applied, and when that was found (seconds since the epoch)."""

    message: str
    at: float


class ConfigState(Message):
    sha256: str = ""
    rolled_back: RolledBack | None = None


class Memory(Message):
    """Bytes."""

    total: int = 0
    available: int = 0


class Status(Message):
    """Result of `status`, also carried by `watch`. `warnings` say what has run out; `clock` is the guest's, in seconds since the epoch."""

    engine_version: str
    api_version: str
    daemon: DaemonStatus
    agent: AgentProcess
    config: ConfigState = ConfigState()
    memory: Memory = Memory()
    warnings: list[str] = []
    clock: float = 0.0


class PipeFill(Message):
    """One log pipe: `bytes` waiting of `capacity`, `rate` in bytes a second, `seconds_to_full` None when it does not fill."""

    container: str
    name: str = ""
    stream: Literal["stdout", "stderr"]
    bytes: int
    capacity: int
    rate: float = 0.0
    seconds_to_full: float | None = None
    blocked: bool = False

    @property
    def fraction(self) -> float:
        """Fill from 0 to 1."""
        return min(1.0, self.bytes / self.capacity) if self.capacity else 0.0


class Pipes(Message):
    """Result of `pipes`."""

    pipes: list[PipeFill] = []


class ConfigText(Message):
    """Result of `config.get`."""

    content: str


class ConfigVerdict(Message):
    """Result of `config.validate`."""

    ok: bool
    message: str = ""


class ConfigApplied(Message):
    """Result of `config.apply`. When `rolled_back`, the file before is in force again and `message` is the daemon's own."""

    ok: bool
    message: str = ""
    rolled_back: bool = False


class Trimmed(Message):
    """Result of `trim`."""

    bytes: int


class LogText(Message):
    """Result of `logs`."""

    text: str


class StoppedContainers(Message):
    """Result of `containers.stop`."""

    stopped: list[str] = []


class EngineVersions(Message):
    """Result of `engine.versions`."""

    current: str
    previous: str | None = None
    versions: list[str] = []


class Done(Message):
    """Result of a method that has nothing to tell."""


class StatusParams(Message):
    method: Literal["status"] = "status"


class PipesParams(Message):
    method: Literal["pipes"] = "pipes"


class ConfigGet(Message):
    method: Literal["config.get"] = "config.get"


class ConfigValidate(Message):
    method: Literal["config.validate"] = "config.validate"
    content: str


class ConfigApply(Message):
    method: Literal["config.apply"] = "config.apply"
    content: str
    mode: Literal["reload", "restart"] = "reload"


class DaemonRestart(Message):
    method: Literal["daemon.restart"] = "daemon.restart"


class DaemonReload(Message):
    method: Literal["daemon.reload"] = "daemon.reload"


class DaemonKill(Message):
    method: Literal["daemon.kill"] = "daemon.kill"


class ClockSet(Message):
    """`ns` since the epoch."""

    method: Literal["clock.set"] = "clock.set"
    ns: int


class Release(Message):
    """To a held guest alone. `ns` since the epoch; `random`: 32 bytes or more, base64, that no other start has been given."""

    method: Literal["release"] = "release"
    ns: int
    random: str


class Trim(Message):
    method: Literal["trim"] = "trim"


class Logs(Message):
    method: Literal["logs"] = "logs"
    what: Literal["daemon", "agent", "shim"] = "daemon"
    container: str | None = None
    lines: int = Field(default=200, ge=1, le=100_000)


class ContainersStop(Message):
    """An empty list stops every container. `timeout` in seconds; None leaves each its own."""

    method: Literal["containers.stop"] = "containers.stop"
    ids: list[str] = []
    timeout: float | None = None


class EngineUpgrade(Message):
    """`path` is a file in the guest."""

    method: Literal["engine.upgrade"] = "engine.upgrade"
    path: str
    sha256: str


class EngineRollback(Message):
    method: Literal["engine.rollback"] = "engine.rollback"


class EngineVersionsGet(Message):
    method: Literal["engine.versions"] = "engine.versions"


class Poweroff(Message):
    method: Literal["poweroff"] = "poweroff"
    timeout: float = 30.0


class Watch(Message):
    method: Literal["watch"] = "watch"


Request = Annotated[
    StatusParams
    | PipesParams
    | ConfigGet
    | ConfigValidate
    | ConfigApply
    | DaemonRestart
    | DaemonReload
    | DaemonKill
    | ClockSet
    | Release
    | Trim
    | Logs
    | ContainersStop
    | EngineUpgrade
    | EngineRollback
    | EngineVersionsGet
    | Poweroff
    | Watch,
    Field(discriminator="method"),
]

RESULTS: dict[str, type[Message]] = {
    "status": Status,
    "pipes": Pipes,
    "config.get": ConfigText,
    "config.validate": ConfigVerdict,
    "config.apply": ConfigApplied,
    "daemon.restart": Done,
    "daemon.reload": Done,
    "daemon.kill": Done,
    "clock.set": Done,
    "release": Done,
    "trim": Trimmed,
    "logs": LogText,
    "containers.stop": StoppedContainers,
    "engine.upgrade": Done,
    "engine.rollback": Done,
    "engine.versions": EngineVersions,
    "poweroff": Done,
    "watch": Done,
}
"""The model of each method's result."""


class AgentError(Message):
    code: str
    message: str


class Reply(Message):
    """Answer to one request, or an event of `watch` (then `event` is set and there is no id)."""

    id: int | None = None
    event: str | None = None
    result: dict[str, object] | None = None
    error: AgentError | None = None


def request_line(number: int, request: Request) -> bytes:
    """Encode a request for the wire, newline included. Fields that are None are left out."""
    params = request.model_dump(mode="json", exclude={"method"}, exclude_none=True)
    return Envelope(id=number, method=request.method, params=params).model_dump_json().encode() + b"\n"


class Envelope(Message):
    """A request as it stands on its line."""

    id: int
    method: str
    params: dict[str, object] = {}

    def request(self) -> Request:
        """The typed request; raises pydantic's ValidationError for an unknown method or wrong parameters."""
        return _requests().validate_python({**self.params, "method": self.method})


@functools.cache
def _requests() -> TypeAdapter[Request]:
    """Return the validator of all requests, which takes longer to build than most commands of the host to run."""
    return TypeAdapter(Request)
