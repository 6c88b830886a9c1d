"""What GET /containers/{id}/json and GET /containers/json show."""

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moorage_guest.api.types import EndpointSettings
from moorage_guest.engine import health
from moorage_guest.engine.health import timestamp
from moorage_guest.engine.record import Container
from moorage_guest.engine.states import Status
from moorage_guest.errors import InvalidParameter, NotFound

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers

FILTERS = frozenset(
    [
        "ancestor",
        "before",
        "exited",
        "expose",
        "health",
        "id",
        "isolation",
        "is-task",
        "label",
        "label!",
        "name",
        "network",
        "publish",
        "since",
        "status",
        "volume",
    ]
)


async def inspect(engine: "Containers", container: Container, *, size: bool = False) -> dict[str, Any]:
    """Return the full description of a container; with ``size`` the bytes its layer and its whole root take."""
    state = container.state
    folder = engine.data_root.container(container.id)
    mount = engine.data_root.mount(container.id)
    started = state.started_ns != 0 or container.sandbox_key != ""
    host = container.host_config.to_api()
    host["Links"] = _links(engine, container)
    _shape_host_config(host)
    answer: dict[str, Any] = {
        "Id": container.id,
        "Created": timestamp(container.created_ns),
        "Path": container.path,
        "Args": container.args,
        "State": state_to_api(container),
        "Image": container.image_id,
        "ResolvConfPath": str(folder / "resolv.conf") if started else "",
        "HostnamePath": str(folder / "hostname") if started else "",
        "HostsPath": str(folder / "hosts") if started else "",
        "LogPath": str(folder / f"{container.id}-json.log") if host["LogConfig"]["Type"] == "json-file" else "",
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": engine.settings.storage_driver,
        "Platform": container.platform,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": [each for each in container.exec_ids if (e := engine.execs.get(each)) and e.running] or None,
        "HostConfig": host,
        "GraphDriver": {
            "Name": engine.settings.storage_driver,
            "Data": {
                "ID": container.id,
                "MergedDir": str(mount / "merged"),
                "UpperDir": str(mount / "diff"),
                "WorkDir": str(mount / "work"),
                "LowerDir": _lower_folders(engine, container),
            },
        },
        "Mounts": [mount.to_api() for mount in container.mounts if mount.kind != "tmpfs" or mount.from_mounts],
        "Config": config_to_api(container),
        "NetworkSettings": network_settings(engine, container),
    }
    if size:
        answer["SizeRw"], answer["SizeRootFs"] = await engine.layers.sizes(container.id)
    return answer


def _lower_folders(engine: "Containers", container: Container) -> str:
    """Return the read-only layers' folders, top first; "" when the image is gone."""
    try:
        names = engine.images.layer_store.lower_names(engine.images.get(container.image_id).chain)
    except NotFound:
        return ""
    return ":".join(str(engine.data_root.layers / name) for name in names)


def _shape_host_config(host: dict[str, Any]) -> None:
    """Give empty values the form that clients know from dockerd."""
    for name in (
        "Binds", "VolumesFrom", "CapAdd", "CapDrop", "ExtraHosts", "GroupAdd", "Links", "SecurityOpt",
        "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps", "DeviceCgroupRules",
        "DeviceRequests", "Mounts",
    ):  # fmt: skip
        if not host[name]:
            host[name] = None
    for name in ("Annotations", "StorageOpt", "Tmpfs", "Sysctls", "KernelMemoryTCP", "Init", "Mounts"):
        if not host[name] and host[name] is not False:
            del host[name]
    for request in host["DeviceRequests"] or ():
        request.update({name: request[name] or None for name in ("DeviceIDs", "Capabilities", "Options")})
    if host.get("Mounts"):
        host["Mounts"] = [_without_empty(mount) for mount in host["Mounts"]]


def _without_empty(value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_empty(each) if isinstance(each, dict) else each
        for name, each in value.items()
        if each not in (None, "", False, 0, [], {})
    }


def config_to_api(container: Container) -> dict[str, Any]:
    """Return Config as inspect shows it."""
    config = container.config.to_api()
    config["Volumes"] = config["Volumes"] or None
    wanted = container.wanted_endpoints.get(container.network_mode)
    if wanted is not None and wanted.mac_address:
        config["MacAddress"] = wanted.mac_address
    config["OnBuild"] = config["OnBuild"] or None
    config["Healthcheck"] = _without_empty(config["Healthcheck"] or {})
    for name in (
        "ExposedPorts",
        "Healthcheck",
        "StopTimeout",
        "StopSignal",
        "Shell",
        "MacAddress",
        "NetworkDisabled",
        "ArgsEscaped",
    ):
        if (not config[name] and config[name] != 0) or config[name] is False:
            del config[name]
    return config


def state_to_api(container: Container) -> dict[str, Any]:
    """Return State as inspect shows it."""
    state = container.state
    answer: dict[str, Any] = {
        "Status": str(state.status),
        "Running": state.status.running,
        "Paused": state.status == Status.PAUSED,
        "Restarting": state.status == Status.RESTARTING,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == Status.DEAD,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": timestamp(state.started_ns),
        "FinishedAt": timestamp(state.finished_ns),
    }
    if (checks := health.to_api(container.health)) is not None:
        answer["Health"] = checks
    return answer


def endpoint_to_api(settings: EndpointSettings) -> dict[str, Any]:
    """Return one EndpointSettings with the null fields that clients expect."""
    answer = settings.to_api()
    if settings.ipam_config is not None:
        answer["IPAMConfig"] = {name: value for name, value in settings.ipam_config.to_api().items() if value}
    return answer


def network_settings(engine: "Containers", container: Container) -> dict[str, Any]:
    """Return NetworkSettings as inspect shows it, with the default bridge's endpoint repeated at the top."""
    networks = {name: endpoint_to_api(each) for name, each in sorted(container.endpoints.items())}
    if container.network_mode in ("host", "none") and container.network_mode in networks:
        networks[container.network_mode]["NetworkID"] = engine.network_id(container.network_mode)
    bridge = container.endpoints.get("bridge", EndpointSettings())
    return {
        "Bridge": "",
        "SandboxID": container.id if container.sandbox_key else "",
        "SandboxKey": container.sandbox_key,
        "Ports": container.ports if container.status.alive else {},
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.endpoint_id,
        "Gateway": bridge.gateway,
        "GlobalIPv6Address": bridge.global_ipv6_address,
        "GlobalIPv6PrefixLen": bridge.global_ipv6_prefix_len,
        "IPAddress": bridge.ip_address,
        "IPPrefixLen": bridge.ip_prefix_len,
        "IPv6Gateway": bridge.ipv6_gateway,
        "MacAddress": bridge.mac_address,
        "Networks": networks,
    }


# -- the list -----------------------------------------------------------------------------------------------------------


async def list_containers(
    engine: "Containers", *, everything: bool, limit: int, size: bool, filters: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """Return summaries, newest first. ``limit`` > 0 shows that many of whatever state. Raises InvalidParameter."""
    matches = matcher(engine, filters)
    everything = everything or limit > 0 or bool(filters.get("status")) or bool(filters.get("exited"))
    found = []
    for container in engine.all():
        if (everything or container.status.running) and matches(container):
            found.append(await summary(engine, container, size=size))
            if 0 < limit <= len(found):
                break
    return found


async def summary(engine: "Containers", container: Container, *, size: bool = False) -> dict[str, Any]:
    """Return the entry of a container in the list."""
    words = [container.path, *container.args]
    answer: dict[str, Any] = {
        "Id": container.id,
        "Names": [f"/{container.name}", *_link_names(engine, container)],
        "Image": _image_name(engine, container),
        "ImageID": container.image_id,
        "Command": " ".join(_quoted(word) for word in words),
        "Created": container.created_ns // 1_000_000_000,
        "Ports": ports_list(container),
        "Labels": dict(container.config.labels),
        "State": str(container.status),
        "Status": status_text(container),
        "HostConfig": {
            "NetworkMode": container.host_config.network_mode,
            **({"Annotations": container.host_config.annotations} if container.host_config.annotations else {}),
        },
        "NetworkSettings": {"Networks": {n: endpoint_to_api(e) for n, e in sorted(container.endpoints.items())}},
        "Mounts": [mount.to_api() for mount in container.mounts if mount.kind != "tmpfs" or mount.from_mounts],
    }
    if size:
        answer["SizeRw"], answer["SizeRootFs"] = await engine.layers.sizes(container.id)
    return answer


def _links(engine: "Containers", container: Container) -> list[str]:
    """Return links on the default bridge as inspect shows them; elsewhere they are a matter of the endpoint."""
    if container.network_mode != "bridge":
        return []
    found = []
    for link in container.host_config.links:
        target, _, alias = link.partition(":")
        with contextlib.suppress(NotFound, InvalidParameter):
            other = engine.find(target)
            found.append(f"/{other.name}:/{container.name}/{(alias or other.name).rsplit('/', 1)[-1]}")
    return found


def _link_names(engine: "Containers", container: Container) -> list[str]:
    names = []
    for other in engine:
        for link in other.host_config.links:
            target, _, alias = link.partition(":")
            if target.removeprefix("/") in (container.name, container.id):
                names.append(f"/{other.name}/{(alias or container.name).rsplit('/', 1)[-1]}")
    return names


def _image_name(engine: "Containers", container: Container) -> str:
    """Return the image as the user gave it, or its id when that name has gone to another image."""
    name = container.config.image
    try:
        if engine.images.resolve(name).id == container.image_id:
            return name
    except (NotFound, InvalidParameter):
        return container.image_id
    return container.image_id


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


def status_text(container: Container, now_ns: int | None = None) -> str:
    """Return the human text of `docker ps`, as dockerd words it."""
    now = time.time_ns() if now_ns is None else now_ns
    state = container.state
    match state.status:
        case Status.RUNNING | Status.PAUSED:
            text = f"Up {ago(now - state.started_ns)}"
            if state.status == Status.PAUSED:
                return f"{text} (Paused)"
            if container.health is not None:
                word = "health: starting" if container.health.status == "starting" else container.health.status
                return f"{text} ({word})"
            return text
        case Status.RESTARTING:
            return f"Restarting ({state.exit_code}) {ago(now - state.finished_ns)} ago"
        case Status.REMOVING:
            return "Removal In Progress"
        case Status.DEAD:
            return "Dead"
        case Status.CREATED:
            return "Created"
    return f"Exited ({state.exit_code}) {ago(now - state.finished_ns)} ago"


def ago(ns: int) -> str:
    """Return a duration the way the Docker clients read it: "Less than a second", "5 minutes", …"""
    seconds = max(ns, 0) // 1_000_000_000
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = round(seconds / 3600)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"


def ports_list(container: Container) -> list[dict[str, Any]]:
    """Return the Ports of a summary."""
    found: list[dict[str, Any]] = []
    if not container.status.alive:
        return found
    for port, bindings in container.ports.items():
        number, _, protocol = port.partition("/")
        if not bindings:
            found.append({"PrivatePort": int(number), "Type": protocol})
        for binding in bindings or []:
            entry = {"IP": binding["HostIp"], "PrivatePort": int(number), "PublicPort": int(binding["HostPort"])}
            found.append({**entry, "Type": protocol})
    return found


# -- filters ------------------------------------------------------------------------------------------------------------


def matcher(engine: "Containers", filters: Mapping[str, list[str]]) -> Callable[[Container], bool]:
    """Return whether a container matches all filters; checks their values first. Raises InvalidParameter or NotFound."""
    tests: list[Callable[[Container], bool]] = []
    for name, values in filters.items():
        if values:
            tests.append(_TESTS[name](engine, values))
    return lambda container: all(test(container) for test in tests)


Test = Callable[[Container], bool]


def _by_id(engine: "Containers", values: list[str]) -> Test:
    return lambda container: any(container.id.startswith(value) for value in values)


def _by_name(engine: "Containers", values: list[str]) -> Test:
    patterns = []
    for value in values:
        try:
            patterns.append(re.compile(value))
        except re.error:
            patterns.append(re.compile(re.escape(value)))
    return lambda container: any(p.search(f"/{container.name}") or p.search(container.name) for p in patterns)


def label_test(values: list[str]) -> Test:
    """Return whether a container has all of the labels (``key`` or ``key=value``)."""
    wanted = [value.partition("=") for value in values]
    return lambda container: all(
        key in container.config.labels and (not equals or container.config.labels[key] == value)
        for key, equals, value in wanted
    )


def _by_status(engine: "Containers", values: list[str]) -> Test:
    for value in values:
        if value not in set(Status):
            raise InvalidParameter(f"invalid filter 'status={value}'")
    return lambda container: str(container.status) in values


def _by_exit(engine: "Containers", values: list[str]) -> Test:
    try:
        codes = {int(value) for value in values}
    except ValueError:
        raise InvalidParameter(f"invalid filter 'exited={values[0]}'") from None
    return lambda container: (
        container.state.exit_code in codes and container.state.finished_ns > 0 and not container.status.running
    )


def _by_health(engine: "Containers", values: list[str]) -> Test:
    for value in values:
        if value not in ("starting", "healthy", "unhealthy", "none"):
            raise InvalidParameter(f"invalid filter 'health={value}'")
    return lambda container: (container.health.status if container.health else "none") in values


def _by_age(newer: bool) -> Callable[["Containers", list[str]], Test]:
    def build(engine: "Containers", values: list[str]) -> Test:
        borders = [engine.find(value).created_ns for value in values]
        if newer:
            return lambda container: all(container.created_ns > border for border in borders)
        return lambda container: all(container.created_ns < border for border in borders)

    return build


def _by_ancestor(engine: "Containers", values: list[str]) -> Test:
    ids: set[str] = set()
    for value in values:
        try:
            ids.add(engine.images.resolve(value).id)
        except (NotFound, InvalidParameter):
            continue
    made_from: dict[str, list[str]] = {}
    for image in engine.images.all() if ids else ():
        made_from.setdefault(image.parent, []).append(image.id)
    todo = list(ids)
    while todo:
        fresh = set(made_from.get(todo.pop(), ())) - ids
        ids |= fresh
        todo += fresh
    return lambda container: container.image_id in ids


def _by_network(engine: "Containers", values: list[str]) -> Test:
    ids = {engine.network_id(value) or value for value in values}

    def test(container: Container) -> bool:
        if any(name in values for name in container.endpoints):
            return True
        return any(e.network_id and e.network_id in ids for e in container.endpoints.values())

    return test


def _by_volume(engine: "Containers", values: list[str]) -> Test:
    return lambda container: any(
        value in (mount.name, mount.destination, mount.source) for mount in container.mounts for value in values
    )


def _by_port(published: bool) -> Callable[["Containers", list[str]], Test]:
    def build(engine: "Containers", values: list[str]) -> Test:
        wanted: set[tuple[int, str]] = set()
        for value in values:
            numbers, _, protocol = value.partition("/")
            first, dash, last = numbers.partition("-")
            try:
                start, end = int(first), int(last) if dash else int(first)
            except ValueError:
                name = "publish" if published else "expose"
                raise InvalidParameter(f"invalid filter '{name}={value}'") from None
            wanted |= {(number, protocol or "tcp") for number in range(start, end + 1)}

        def test(container: Container) -> bool:
            if published:
                return any(
                    (int(binding["HostPort"]), port.partition("/")[2]) in wanted
                    for port, bindings in container.ports.items()
                    for binding in bindings or []
                )
            ports = [*container.config.exposed_ports, *container.ports]
            return any((int(p.split("/")[0].split("-")[0]), p.partition("/")[2] or "tcp") in wanted for p in ports)

        return test

    return build


_TESTS: dict[str, Callable[["Containers", list[str]], Test]] = {
    "id": _by_id,
    "name": _by_name,
    "label": lambda engine, values: label_test(values),
    "label!": lambda engine, values: lambda container: not any(label_test([v])(container) for v in values),
    "status": _by_status,
    "exited": _by_exit,
    "health": _by_health,
    "before": _by_age(False),
    "since": _by_age(True),
    "ancestor": _by_ancestor,
    "network": _by_network,
    "volume": _by_volume,
    "expose": _by_port(False),
    "publish": _by_port(True),
    "isolation": lambda engine, values: lambda container: container.host_config.isolation in values,
    "is-task": lambda engine, values: lambda container: "true" not in values,
}


def prune_test(filters: Mapping[str, list[str]], until_ns: int | None) -> Test:
    """Return whether prune may take a container: labels, and made before ``until``."""
    tests: list[Test] = []
    if filters.get("label"):
        tests.append(label_test(filters["label"]))
    if filters.get("label!"):
        unwanted = [label_test([value]) for value in filters["label!"]]
        tests.append(lambda container: not any(test(container) for test in unwanted))
    if until_ns is not None:
        tests.append(lambda container: container.created_ns < until_ns)
    return lambda container: all(test(container) for test in tests)
