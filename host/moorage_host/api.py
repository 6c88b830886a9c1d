"""What goes over the control API: models of requests and answers, shared by the backend and its clients.

Every method is `POST /v1/<method>` on the backend's unix socket with its parameters as a JSON object. The answer is a
stream of JSON lines: any number of `progress` and `event`, then one `result` or `error`. `watch` sends events for ever.
"""

from __future__ import annotations

from typing import Any, Literal

from moorage_contract import agent
from pydantic import BaseModel, ConfigDict

VERSION = 1
PREFIX = f"/v{VERSION}/"

StateName = Literal["absent", "stopped", "starting", "booted", "ready", "stopping", "paused", "failed"]


class Model(BaseModel):
    """Base of all: what a newer backend adds is ignored by an older client."""

    # Validators are built at first use, as those of `moorage_contract.agent`.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class PublishedPort(Model):
    """One published port of a running container. `error` says why it cannot be reached on the host; empty when it can."""

    address: str
    port: int
    protocol: str
    container: str
    container_port: int
    error: str = ""


class BackendProcess(Model):
    pid: int
    version: str
    since: float


class MachineStatus(Model):
    """Where everything stands. `step` is what is being done now, `message` why the last thing failed, `warning` what one should know;
    `accelerator_note` is why the accelerator is not the one that the hardware seems to offer.

    `ready` means that the engine answered /_ping through the tunnel. `engine` is the agent's own status, None while it
    cannot be asked. Times are in seconds since the epoch.
    """

    state: StateName
    since: float
    step: str = ""
    message: str = ""
    warning: str = ""
    name: str
    accelerator: str = ""
    accelerator_note: str = ""
    libvirt_uri: str = ""
    cpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    restart_needed: bool = False
    ssh_port: int = 0
    docker_socket: str = ""
    docker_context: str = ""
    image_version: str = ""
    engine: agent.Status | None = None
    ports: list[PublishedPort] = []
    config_pending: bool = False
    config_problem: str = ""
    backend: BackendProcess


class EngineConfigText(Model):
    """daemon.json as the user edits it. `pending`: saved while the engine was down, applied when it starts."""

    content: str
    pending: bool = False


class ConfigFault(Model):
    """One fault of a daemon.json; `line` and `column` count from 1, 0 when it has no place."""

    message: str
    key: str = ""
    line: int = 0
    column: int = 0


class ConfigChange(Model):
    key: str
    old: Any = None
    new: Any = None
    cost: str
    sentence: str


class EngineConfigCheck(Model):
    """What a daemon.json would mean: its faults, or, without any, what applying it changes and costs."""

    ok: bool
    faults: list[ConfigFault] = []
    changes: list[ConfigChange] = []
    mode: str = "reload"
    sentence: str = ""


class EngineConfigApplied(Model):
    """How applying went. Not `ok` and `rolled_back`: the daemon refused (`message` is its own) and the previous file is in force.

    `pending`: the engine is down, the file is saved and takes effect at its next start.
    """

    ok: bool
    message: str = ""
    rolled_back: bool = False
    pending: bool = False
    mode: str = "reload"


class ErrorAnswer(Model):
    code: str
    message: str
    hint: str = ""


class Line(Model):
    """One line of an answer; exactly one of the fields is set."""

    progress: str | None = None
    event: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: ErrorAnswer | None = None
