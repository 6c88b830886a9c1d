"""What is known of one container, and its form in the state database (kind "container").

`Container` is the live object that the other modules of this package change; everything in it that must survive
the daemon goes through `to_record` and `from_record`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moorage_guest.api.types import ContainerConfig, EndpointSettings, HostConfig
from moorage_guest.engine.states import Status, check_move

RECORD_VERSION = 1

KIND = "container"


@dataclass(frozen=True)
class RunState:
    """Where a container is in its life. Times are nanoseconds since the epoch, 0 is never."""

    status: Status = Status.CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_ns: int = 0
    finished_ns: int = 0


@dataclass(frozen=True)
class Probe:
    """One run of a health check."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


@dataclass(frozen=True)
class Health:
    """Result of health checks so far; ``status`` is starting, healthy or unhealthy."""

    status: str = "starting"
    failing_streak: int = 0
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class MountRecord:
    """One mount asked for, resolved as far as it can be at create. ``kind`` is bind, volume, tmpfs or image."""

    kind: str
    destination: str
    source: str = ""
    name: str = ""
    driver: str = ""
    mode: str = ""
    read_write: bool = True
    propagation: str = ""
    no_copy: bool = False
    subpath: str = ""
    options: tuple[str, ...] = ()
    anonymous: bool = False
    create_source: bool = False
    non_recursive: bool = False
    read_only_non_recursive: bool = False
    from_mounts: bool = False

    def seen(self) -> dict[str, str]:
        """Return what the event of a mounted volume says of the container's view of it."""
        return {
            "destination": self.destination, "propagation": self.propagation, "read/write": str(self.read_write).lower(),
        }  # fmt: skip

    def to_api(self) -> dict[str, Any]:
        """Return the MountPoint object that inspect shows."""
        point: dict[str, Any] = {"Type": self.kind}
        if self.name:
            point["Name"] = self.name
        point["Source"] = self.source
        point["Destination"] = self.destination
        if self.driver:
            point["Driver"] = self.driver
        point["Mode"] = self.mode
        point["RW"] = self.read_write
        point["Propagation"] = self.propagation
        return point


class RecordError(Exception):
    """A record in the state database makes no sense; the text says which and why."""


@dataclass(eq=False)
class Container:
    """One container. Changed only in the event loop's thread, most of it under `lock`."""

    id: str
    name: str
    created_ns: int
    image_id: str
    config: ContainerConfig
    host_config: HostConfig
    path: str = ""
    args: list[str] = field(default_factory=list)
    mounts: list[MountRecord] = field(default_factory=list)
    endpoints: dict[str, EndpointSettings] = field(default_factory=dict)
    #: What the client asked for, by network name, kept to ask for it again at each start.
    wanted_endpoints: dict[str, EndpointSettings] = field(default_factory=dict)
    ports: dict[str, Any] = field(default_factory=dict)
    sandbox_key: str = ""
    state: RunState = field(default_factory=RunState)
    restart_count: int = 0
    #: Nanoseconds that the next restart waits (back-off).
    restart_delay_ns: int = 0
    manually_stopped: bool = False
    health: Health | None = None
    platform: str = "linux"
    #: Below each hierarchy's root.
    cgroup_path: str = ""
    #: Says why the daemon has no grip on a container that lives; empty when it has.
    unmanaged: str = ""
    #: Of the request that made it, so that the same request is not done twice.
    token: str = ""
    #: Whether it is the engine's own, made for a step of a build: users neither see it nor hear of it.
    hidden: bool = False

    # -- not persisted --
    #: Whether an unmanaged container belongs to another data root.
    foreign: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Variables that its process alone may know.
    secret_env: tuple[str, ...] = ()
    #: Set by stop, kill and rm: the end that follows is wanted, so no policy restarts it.
    stop_requested: bool = False
    removing: bool = False
    #: Whether clients have seen the end of the output while the end itself is still being dealt with under the lock.
    ending: bool = False
    #: How many `docker cp` look at the files right now.
    viewers: int = 0
    exec_ids: list[str] = field(default_factory=list)

    def move(self, status: Status, **changes: Any) -> None:
        """Go to another state; raises Conflict when there is no such move."""
        check_move(self.state.status, status)
        self.state = replace(self.state, status=status, **changes)

    @property
    def status(self) -> Status:
        """The state now."""
        return self.state.status

    @property
    def network_mode(self) -> str:
        """HostConfig.NetworkMode, "default" resolved."""
        mode = self.host_config.network_mode
        return "bridge" if mode in ("", "default") else mode

    @property
    def own_network(self) -> bool:
        """Whether it has a network sandbox of its own (neither host nor container:)."""
        mode = self.network_mode
        return mode not in ("host", "none") and not mode.startswith("container:") and not self.config.network_disabled

    def attributes(self, **more: str) -> dict[str, str]:
        """Return what events about this container carry: labels, image, name."""
        return {**self.config.labels, "image": self.config.image, "name": self.name, **more}

    def to_record(self) -> dict[str, Any]:
        """Return the versioned record for the state database."""
        return {
            "version": RECORD_VERSION,
            "id": self.id,
            "name": self.name,
            "created_ns": self.created_ns,
            "image_id": self.image_id,
            "config": self.config.model_dump(by_alias=True, mode="json", exclude_defaults=True),
            "host_config": self.host_config.model_dump(by_alias=True, mode="json", exclude_defaults=True),
            "path": self.path,
            "args": self.args,
            "mounts": [_changed(mount, MountRecord("", "")) for mount in self.mounts],
            "endpoints": _dump_endpoints(self.endpoints),
            "wanted_endpoints": _dump_endpoints(self.wanted_endpoints),
            "ports": self.ports,
            "sandbox_key": self.sandbox_key,
            "state": {**vars(self.state), "status": str(self.state.status)},
            "restart_count": self.restart_count,
            "restart_delay_ns": self.restart_delay_ns,
            "manually_stopped": self.manually_stopped,
            "health": None if self.health is None else _dump_health(self.health),
            "platform": self.platform,
            "cgroup_path": self.cgroup_path,
            "token": self.token,
            "hidden": self.hidden,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Container":
        """Rebuild from `to_record`'s output. Raises RecordError."""
        version = record.get("version")
        if version != RECORD_VERSION:
            raise RecordError(f"container record {record.get('id')} has version {version}, not {RECORD_VERSION}")
        try:
            state = record["state"]
            health = record["health"]
            return cls(
                id=record["id"],
                name=record["name"],
                created_ns=record["created_ns"],
                image_id=record["image_id"],
                config=ContainerConfig.model_validate(record["config"]),
                host_config=HostConfig.model_validate(record["host_config"]),
                path=record["path"],
                args=list(record["args"]),
                mounts=[
                    MountRecord(**{**each, "options": tuple(each.get("options", ()))}) for each in record["mounts"]
                ],
                endpoints=_load_endpoints(record["endpoints"]),
                wanted_endpoints=_load_endpoints(record["wanted_endpoints"]),
                ports=dict(record["ports"]),
                sandbox_key=record["sandbox_key"],
                state=RunState(**{**state, "status": Status(state["status"])}),
                restart_count=record["restart_count"],
                restart_delay_ns=record["restart_delay_ns"],
                manually_stopped=record["manually_stopped"],
                health=None if health is None else _load_health(health),
                platform=record["platform"],
                cgroup_path=record["cgroup_path"],
                token=record.get("token", ""),
                hidden=record.get("hidden", False),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"container record {record.get('id')} is damaged: {error!r}") from error


def _changed(value: MountRecord, default: MountRecord) -> dict[str, Any]:
    return {
        name: each
        for name, each in vars(value).items()
        if name in ("kind", "destination") or each != getattr(default, name)
    }


def _dump_endpoints(endpoints: Mapping[str, EndpointSettings]) -> dict[str, Any]:
    return {
        name: each.model_dump(by_alias=True, mode="json", exclude_defaults=True) for name, each in endpoints.items()
    }


def _load_endpoints(endpoints: Mapping[str, Any]) -> dict[str, EndpointSettings]:
    return {name: EndpointSettings.model_validate(each) for name, each in endpoints.items()}


def _dump_health(health: Health) -> dict[str, Any]:
    return {
        "status": health.status,
        "failing_streak": health.failing_streak,
        "probes": [vars(probe) for probe in health.probes],
    }


def _load_health(health: Mapping[str, Any]) -> Health:
    return Health(health["status"], health["failing_streak"], tuple(Probe(**each) for each in health["probes"]))
