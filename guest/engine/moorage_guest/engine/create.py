"""Making a container: defaults, the image's configuration merged in, volumes, read-write layer, record."""

import asyncio
import copy
import posixpath
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage_guest.api.types import (
    ContainerConfig,
    EndpointSettings,
    HealthConfig,
    HostConfig,
    NetworkingConfig,
)
from moorage_guest.engine import unfinished, validate
from moorage_guest.engine.mounts import volume_options, wanted_mounts
from moorage_guest.engine.names import check_name
from moorage_guest.engine.record import Container, MountRecord
from moorage_guest.engine.settings import EngineSettings
from moorage_guest.errors import InvalidParameter, NotFound
from moorage_guest.images import platforms
from moorage_guest.images.image import Image
from moorage_guest.logs import drivers
from moorage_guest.oci import spec as oci_spec
from moorage_guest.oci.limits import drop_unsupported
from moorage_guest.sysinfo import cgroup_facts

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers


@dataclass(frozen=True)
class CreateRequest:
    """What POST /containers/create carries."""

    name: str
    config: ContainerConfig
    host_config: HostConfig
    networking: NetworkingConfig
    platform: str = ""
    read_only_non_recursive: bool = False
    """Whether read-only binds leave what is mounted below them writable, as clients older than API 1.44 expect."""
    token: str = ""
    """What tells the client's request from all others; "" when nobody will ask for it again."""
    chain: tuple[str, ...] | None = None
    """The layers of its root file system where it is made from no image: of a step of a build that nobody is to see."""


@dataclass(frozen=True)
class Created:
    """A new container and what the user should know about it."""

    container: Container
    warnings: list[str]


def merge_image(config: ContainerConfig, image: Mapping[str, Any]) -> ContainerConfig:
    """Return the configuration with everything that was left open taken from the image's. Raises InvalidParameter."""
    base = ContainerConfig.model_validate(image)
    merged = config.model_copy(deep=True)
    merged.user = merged.user or base.user
    merged.exposed_ports = {**base.exposed_ports, **merged.exposed_ports}
    merged.volumes = {**base.volumes, **merged.volumes}
    merged.labels = {**base.labels, **merged.labels}
    own = {entry.partition("=")[0] for entry in merged.env}
    merged.env = [*merged.env, *(entry for entry in base.env if entry.partition("=")[0] not in own)]
    if not merged.entrypoint:
        if not merged.cmd:
            merged.cmd = base.cmd
        if merged.entrypoint is None:
            merged.entrypoint = base.entrypoint
    if merged.healthcheck is None:
        merged.healthcheck = base.healthcheck
    elif base.healthcheck is not None:
        merged.healthcheck = _merge_health(merged.healthcheck, base.healthcheck)
    merged.working_dir = merged.working_dir or base.working_dir
    if merged.working_dir:
        merged.working_dir = posixpath.normpath(merged.working_dir).replace("//", "/")
    merged.stop_signal = merged.stop_signal or base.stop_signal
    if merged.stop_timeout is None:
        merged.stop_timeout = base.stop_timeout
    merged.shell = merged.shell or base.shell
    if merged.entrypoint == [""]:
        merged.entrypoint = None
    if not merged.entrypoint and not merged.cmd:
        raise InvalidParameter("no command specified")
    return merged


def _merge_health(own: HealthConfig, base: HealthConfig) -> HealthConfig:
    return HealthConfig(
        test=own.test or base.test,
        interval=own.interval or base.interval,
        timeout=own.timeout or base.timeout,
        start_period=own.start_period or base.start_period,
        start_interval=own.start_interval or base.start_interval,
        retries=own.retries or base.retries,
    )


def apply_defaults(host: HostConfig, settings: EngineSettings) -> HostConfig:
    """Return the host configuration with the daemon's defaults filled in, as inspect shows it afterwards."""
    host = host.model_copy(deep=True)
    if not host.network_mode or host.network_mode == "default":
        host.network_mode = "bridge"
    host.ipc_mode = host.ipc_mode or settings.ipc_mode
    if not host.cgroupns_mode:
        if host.privileged and settings.cgroup_version != "2":
            host.cgroupns_mode = "host"
        else:
            host.cgroupns_mode = settings.cgroupns_mode or oci_spec.default_cgroupns_mode(settings.cgroup_version)
    host.shm_size = host.shm_size or settings.shm_size
    host.restart_policy.name = host.restart_policy.name or "no"
    host.runtime = host.runtime or settings.default_runtime
    if host.memory > 0 and host.memory_swap == 0:
        host.memory_swap = host.memory * 2
    if host.oom_kill_disable is None and settings.cgroup_version == "1":
        host.oom_kill_disable = False
    if host.memory_swappiness == -1:
        host.memory_swappiness = None
    if host.pids_limit is not None and host.pids_limit <= 0:
        host.pids_limit = None
    if not host.log_config.type:
        host.log_config.type = settings.log_driver
        host.log_config.config = {**settings.log_options, **host.log_config.config}
    elif host.log_config.type == settings.log_driver:
        host.log_config.config = {**settings.log_options, **host.log_config.config}
    if host.masked_paths is None:
        host.masked_paths = [] if host.privileged else list(oci_spec.MASKED_PATHS)
    if host.readonly_paths is None:
        host.readonly_paths = [] if host.privileged else list(oci_spec.READONLY_PATHS)
    return host


def _make_home(engine: "Containers", container_id: str) -> None:
    home = engine.data_root.container(container_id)
    home.mkdir(0o710, parents=True, exist_ok=True)
    engine.ids.let_through(home.parent, home)


async def create(engine: "Containers", request: CreateRequest) -> Created:
    """Make a container. Raises the API's errors; on any of them nothing is left behind."""
    settings = engine.settings
    name = check_name(request.name) if request.name else ""
    validate.check_config(request.config)
    host = request.host_config
    validate.check_network_conflicts(request.config, host)
    validate.check_host_config(host, settings)
    if engine.ids:
        validate.check_remapped(host)
    if not request.config.image and not request.config.cmd and not request.config.entrypoint:
        raise InvalidParameter("no command specified")
    if request.chain is None:
        image = engine.images.resolve(request.config.image)
    else:
        image = Image("", {}, (), request.chain, "")
    _check_platform(request, image)
    config = merge_image(request.config, image.config)
    validate.check_config(config)
    host = apply_defaults(host, settings)
    if host.network_mode == "bridge" and not engine.network_id("bridge"):  # the daemon runs with --bridge none
        config.network_disabled = True
    drivers.check_options(host.log_config.type, host.log_config.config)
    warnings = [*drop_unsupported(host, cgroup_facts()), *_warnings(host, request.platform, image)]
    mounts = wanted_mounts(
        config, host, lambda reference: _mounts_of(engine, reference), data_root=engine.data_root.root
    )
    if request.read_only_non_recursive:
        mounts = [replace(m, read_only_non_recursive=m.kind == "bind" and not m.read_write) for m in mounts]
    for field_name in ("network_mode", "pid_mode", "ipc_mode"):
        _pin_reference(engine, host, field_name)
    _pin_links(engine, host)
    wanted = _endpoints(engine, config, host, request.networking)
    for each in mounts:
        if each.kind == "volume" and not each.anonymous:
            await engine.volumes.look_for(each.name, each.driver)

    container_id = secrets.token_hex(32)
    while container_id[:12].isdigit():  # a hostname of digits alone confuses programs
        container_id = secrets.token_hex(32)
    if name:
        engine.names.reserve(name, container_id)
    else:
        name = engine.names.make_up(container_id)
    words = [*(config.entrypoint or []), *(config.cmd or [])]
    _set_hostname(config, host, container_id)
    container = Container(
        id=container_id, name=name, created_ns=time.time_ns(), image_id=image.id, config=config, host_config=host,
        path=words[0], args=words[1:], wanted_endpoints=wanted, endpoints=copy.deepcopy(wanted),
        cgroup_path=oci_spec.cgroup_path(container_id, host.cgroup_parent or settings.cgroup_parent),
        token=request.token, hidden=request.chain is not None,
    )  # fmt: skip
    mounts = [
        replace(each, name=secrets.token_hex(32)) if each.anonymous and not each.name else each for each in mounts
    ]
    fresh = {each.name for each in mounts if each.kind == "volume" and not engine.volumes.has(each.name)}
    try:
        await engine.layers.create_rw(container_id, image.id, dict(host.storage_opt), chain=request.chain)
        await asyncio.to_thread(_make_home, engine, container_id)
        await unfinished.begin(engine, container, fresh)
        container.mounts = await _make_volumes(engine, container, mounts)
        await unfinished.created(engine, container, fresh)
    except BaseException:
        await engine.discard(container)
        unfinished.end(engine, container_id)
        raise
    engine.add(container)
    engine.publish(container, "create")
    return Created(container, warnings)


def _check_platform(request: CreateRequest, image: Image) -> None:
    """Raise NotFound, so that the client pulls, when the image is there for another platform than the one asked for."""
    if not request.platform:
        return
    wanted = platforms.parse(request.platform)
    variant = str(image.document.get("variant") or "")
    if not wanted.matches({"os": image.os, "architecture": image.architecture, "variant": variant}):
        actual = "/".join(filter(None, (image.os, image.architecture, variant)))
        raise NotFound(
            f"image with reference {request.config.image} was found but does not match the specified platform: "
            f"wanted {wanted}, actual: {actual}"
        )


def _mounts_of(engine: "Containers", reference: str) -> list[MountRecord]:
    try:
        return engine.find(reference).mounts
    except NotFound as error:
        raise InvalidParameter(str(error)) from None  # a 404 would make clients pull the image


def _pin_reference(engine: "Containers", host: HostConfig, field_name: str) -> None:
    """Replace a name in container:NAME by the id, so that a rename does not break the tie.

    A container whose network is to be joined may be made until the start.
    """
    mode: str = getattr(host, field_name)
    if not mode.startswith("container:"):
        return
    try:
        other = engine.find(mode.removeprefix("container:"))
    except NotFound as error:
        if field_name == "network_mode":
            return
        raise InvalidParameter(str(error)) from None
    setattr(host, field_name, f"container:{other.id}")


def _pin_links(engine: "Containers", host: HostConfig) -> None:
    """Replace names in links on the default bridge by ids: who is linked may be renamed. Raises InvalidParameter."""
    if host.network_mode != "bridge":  # user-defined networks resolve links when they are asked
        return
    for position, link in enumerate(host.links):
        target, _, alias = link.partition(":")
        try:
            other = engine.find(target)
            while other.network_mode.startswith("container:"):  # whose network it is has the address
                other = engine.find(other.network_mode.removeprefix("container:"))
        except NotFound as error:
            raise InvalidParameter(f"could not get container for {target}: {error}") from None
        if other.host_config.network_mode == "host":
            raise InvalidParameter(
                "conflicting options: host type networking can't be used with links. This would result in undefined behavior"
            )
        host.links[position] = f"{other.id}:{alias or target.removeprefix('/')}"


def _set_hostname(config: ContainerConfig, host: HostConfig, container_id: str) -> None:
    if host.uts_mode == "host" or host.network_mode == "host":
        config.hostname = config.hostname or Path("/proc/sys/kernel/hostname").read_text().strip()
    elif not host.network_mode.startswith("container:"):
        config.hostname = config.hostname or container_id[:12]


def _warnings(host: HostConfig, platform: str, image: Image) -> list[str]:
    warnings: list[str] = []
    own = platforms.this_platform()
    if not platform and image.architecture and image.architecture != own.architecture:
        warnings.append(
            f"The requested image's platform (linux/{image.architecture}) does not match the detected host platform "
            f"({own}) and no specific platform was requested"
        )
    if host.network_mode == "host" and (host.port_bindings or host.publish_all_ports):
        warnings.append("Published ports are discarded when using host network mode")
    for bindings in host.port_bindings.values():
        if host.network_mode == "none" and bindings:
            break
    if host.oom_kill_disable and not host.memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system "
            "running out of resources."
        )
    return warnings


def _endpoints(
    engine: "Containers", config: ContainerConfig, host: HostConfig, networking: NetworkingConfig
) -> dict[str, EndpointSettings]:
    """Return the endpoints to make at start, by network name; the one of NetworkMode is always among them."""
    mode = host.network_mode
    for name, settings in networking.endpoints_config.items():
        if name in ("none", "host"):
            engine.networks.check_settings(name, settings)
    if mode == "host" or mode.startswith("container:") or config.network_disabled:
        names = [name for name in networking.endpoints_config if name not in (mode, "default")]
        if names and mode.startswith("container:"):
            raise InvalidParameter("conflicting options: cannot attach a container: network mode to other networks")
        return {mode: EndpointSettings()} if mode == "host" else {}
    wanted: dict[str, EndpointSettings] = {}
    for name, asked in networking.endpoints_config.items():
        key = mode if name in ("default", mode) else name
        wanted[key] = asked or EndpointSettings()
    wanted.setdefault(mode, EndpointSettings())
    if config.mac_address:
        if wanted[mode].mac_address and wanted[mode].mac_address != config.mac_address:
            raise InvalidParameter(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network, "
                "or should be left empty"
            )
        wanted[mode].mac_address = config.mac_address
    for name, settings in wanted.items():
        if name not in ("none", "host") and engine.network_id(name):
            engine.networks.check(name, settings)
    if mode == "none" and len(wanted) > 1:
        raise InvalidParameter(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )
    return wanted


async def _make_volumes(engine: "Containers", container: Container, mounts: list[MountRecord]) -> list[MountRecord]:
    """Make the volumes that are not there and fill them from the image; returns the mounts with sources."""
    made: list[MountRecord] = []
    options = volume_options(container.host_config)
    rootfs: Path | None = None
    try:
        for mount in mounts:
            if mount.kind != "volume":
                made.append(mount)
                continue
            driver_options, labels = options.get(mount.destination, ({}, {}))
            if mount.anonymous:
                labels = {**labels, "com.docker.volume.anonymous": ""}
            volume = await engine.volumes.create(mount.name or None, mount.driver, dict(driver_options), dict(labels))
            mount = replace(mount, name=volume.name, source=volume.source, driver=volume.driver)
            await engine.volumes.reference(volume.name, container.id)
            if not mount.no_copy:
                rootfs = rootfs or await engine.layers.mount(container.id)
                await engine.volumes.populate(volume.name, rootfs, mount.destination, mount.subpath)
            made.append(mount)
    finally:
        container.mounts = made
        if rootfs is not None:
            await engine.layers.unmount(container.id)
    return made
