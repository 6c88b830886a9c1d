"""The OCI runtime spec of a container, and the process object of an exec, from what the API was told.

Everything that needs other parts of the daemon (root file system, mounts, network namespace, hosts files, joined
containers) is resolved by the caller and handed in; nothing is started or mounted here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage_guest.api.types import ContainerConfig, DeviceRequest, HostConfig, Ulimit
from moorage_guest.errors import InvalidParameter
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.oci import capabilities, cdi, devices, resources, seccomp, sysctls
from moorage_guest.oci.security import SecurityOptions, parse_security_options
from moorage_guest.oci.users import ProcessUser, resolve_user

#: Where a container's cgroup goes unless --cgroup-parent says otherwise.
DEFAULT_CGROUP_PARENT = "/docker"

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: 64 MiB, as dockerd.
DEFAULT_SHM_SIZE = 64 * 1024 * 1024

#: Where --init's program appears in the container.
INIT_INSIDE = "/sbin/docker-init"

MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class MountPoint:
    """One mount below the container's root, resolved. ``kind`` is the file system type; "bind" needs rbind or bind
    among the options, added when missing."""

    source: str
    destination: str
    kind: str = "bind"
    options: tuple[str, ...] = ()

    def to_oci(self) -> dict[str, Any]:
        """Return the OCI ``mount`` object."""
        options = list(self.options)
        if self.kind == "bind" and not {"bind", "rbind"} & set(options):
            options.insert(0, "rbind")
        return {"destination": self.destination, "type": self.kind, "source": self.source, "options": options}


@dataclass(frozen=True)
class Joined:
    """Namespaces of other containers to enter (--pid, --ipc container:…): paths like /proc/<pid>/ns/pid."""

    pid: Path | None = None
    ipc: Path | None = None


@dataclass(frozen=True)
class SpecDefaults:
    """The daemon's own settings that take part."""

    init: bool = False
    init_path: Path = Path("/usr/bin/tini-static")
    no_new_privileges: bool = False
    #: "", "builtin", "unconfined" or the JSON text of a profile.
    seccomp_profile: str = ""
    ulimits: Mapping[str, Ulimit] = field(default_factory=dict)
    shm_size: int = DEFAULT_SHM_SIZE
    #: "private" or "host"; see `default_cgroupns_mode`.
    cgroupns_mode: str = ""
    #: Where devices by CDI are specified; none is that there are no such devices.
    cdi_folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpecRequest:
    """What `build_spec` needs.

    ``config`` is already merged with the image's. ``mounts`` hold volumes, binds, tmpfs and the hosts, hostname and
    resolv.conf files, later ones over earlier ones. ``netns_path`` is None for ``--network none`` (the runtime makes
    an empty one) and ignored for ``host``. ``shm_path`` is bound on /dev/shm instead of a tmpfs of the container's
    own: for ``--ipc container:…`` /proc/<pid>/root/dev/shm of the other one.
    """

    container_id: str
    config: ContainerConfig
    host_config: HostConfig
    rootfs: Path
    mounts: Sequence[MountPoint] = ()
    netns_path: Path | None = None
    hostname: str = ""
    domainname: str = ""
    extra_env: Sequence[str] = ()
    cgroup_parent: str = ""
    joined: Joined = Joined()
    shm_path: Path | None = None
    ids: IdMap = SAME
    userns_path: Path | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    defaults: SpecDefaults = SpecDefaults()

    @property
    def remapped(self) -> bool:
        """Whether the container's root is another user of the machine."""
        return bool(self.ids) and self.host_config.userns_mode != "host"

    @property
    def owner(self) -> tuple[int, int]:
        """The machine's numbers for the container's root."""
        return self.ids.root if self.remapped else (0, 0)


def default_cgroupns_mode(cgroup_version: str) -> str:
    """Return dockerd's default: private on cgroup v2, host on v1."""
    return "private" if cgroup_version == "2" else "host"


def cgroup_path(container_id: str, cgroup_parent: str) -> str:
    """Return the container's cgroup below each hierarchy's root."""
    parent = os.path.normpath(f"/{cgroup_parent or DEFAULT_CGROUP_PARENT}").strip("/")  # ".." leads nowhere
    return f"/{parent}/{container_id}" if parent else f"/{container_id}"


def uses_init(request: SpecRequest) -> bool:
    """Whether the first process is to be an init that reaps (--init)."""
    wanted = request.host_config.init if request.host_config.init is not None else request.defaults.init
    return wanted and request.host_config.pid_mode in ("", "private")


def merge_environment(*layers: Sequence[str]) -> list[str]:
    """Return the variables of all layers, later ones over earlier ones in the earlier one's place.

    An entry without "=" removes the variable, as for dockerd.
    """
    merged: dict[str, str] = {}
    for layer in layers:
        for entry in layer:
            name, has_value, _ = entry.partition("=")
            if has_value:
                merged[name] = entry
            else:
                merged.pop(name, None)
    return list(merged.values())


def build_environment(
    config: ContainerConfig, hostname: str, *, tty: bool, extra: Sequence[str] = (), more: Sequence[str] = ()
) -> list[str]:
    """Return the environment of a process: defaults, links, the container's own, then the exec's (``more``)."""
    base = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}"]
    if tty:
        base.append("TERM=xterm")
    return merge_environment(base, extra, config.env, more)


def _with_home(environment: list[str], user: ProcessUser) -> list[str]:
    if any(entry.startswith("HOME=") and entry != "HOME=" for entry in environment):
        return environment
    return [*(entry for entry in environment if entry != "HOME="), f"HOME={user.home}"]


def _process(request: SpecRequest, security: SecurityOptions, bounding: list[str]) -> dict[str, Any]:
    config, host = request.config, request.host_config
    user = resolve_user(request.rootfs, config.user, host.group_add)
    arguments = [*(config.entrypoint or []), *(config.cmd or [])]
    if not arguments:
        raise InvalidParameter("no command specified")
    if uses_init(request):
        arguments = [INIT_INSIDE, "--", *arguments]
    environment = build_environment(config, request.hostname, tty=config.tty, extra=request.extra_env)
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": user.to_oci(),
        "args": arguments,
        "env": _with_home(environment, user),
        "cwd": config.working_dir or "/",
        "capabilities": capabilities.process_capabilities(bounding, user.uid),
        "noNewPrivileges": security.no_new_privileges,
        "oomScoreAdj": host.oom_score_adj,
    }
    limits = resources.rlimits(host.ulimits, request.defaults.ulimits)
    if limits:
        process["rlimits"] = limits
    if config.tty and any(host.console_size):
        process["consoleSize"] = {"height": host.console_size[0], "width": host.console_size[1]}
    return process


def _namespaces(request: SpecRequest, cgroupns: str) -> list[dict[str, str]]:
    host = request.host_config
    found: list[dict[str, str]] = [{"type": "mount"}]

    def add(kind: str, mode: str, path: Path | None) -> None:
        if mode == "host":
            return
        found.append({"type": kind} if path is None else {"type": kind, "path": str(path)})

    add("network", host.network_mode, request.netns_path)
    add("uts", host.uts_mode, None)
    add("pid", host.pid_mode, request.joined.pid)
    add("ipc", host.ipc_mode, request.joined.ipc)
    add("cgroup", cgroupns, None)
    if request.remapped:
        add("user", "", request.userns_path)
    return found


def _default_mounts(request: SpecRequest, security: SecurityOptions) -> list[dict[str, Any]]:
    host = request.host_config
    system = "rw" if host.privileged else "ro"
    # What there is belongs to the machine's root, not to a remapped one; and crun cannot remount it there.
    cgroup = "rw" if host.privileged or security.writable_cgroups or request.remapped else "ro"
    mounts = [
        MountPoint("proc", "/proc", "proc", ("nosuid", "noexec", "nodev")),
        MountPoint("tmpfs", "/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        MountPoint(
            "devpts", "/dev/pts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
        ),
        MountPoint("sysfs", "/sys", "sysfs", ("nosuid", "noexec", "nodev", system)),
        MountPoint("cgroup", "/sys/fs/cgroup", "cgroup", (cgroup, "nosuid", "noexec", "nodev")),
        MountPoint("mqueue", "/dev/mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ]
    if host.network_mode == "host":
        # A sysfs can be mounted only by whoever owns the network namespace: the machine's own is bound instead.
        mounts[3] = MountPoint("/sys", "/sys", "bind", ("rbind", "nosuid", "noexec", "nodev", system))
    if host.ipc_mode == "host" and request.shm_path is None:
        mounts.append(MountPoint("/dev/shm", "/dev/shm", "bind", ("rbind", "rprivate")))
    elif request.shm_path is not None:
        mounts.append(MountPoint(str(request.shm_path), "/dev/shm", "bind", ("rbind", "rprivate")))
    elif host.ipc_mode != "none":
        size = host.shm_size or request.defaults.shm_size
        mounts.append(
            MountPoint("shm", "/dev/shm", "tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", f"size={size}"))
        )
    return [each.to_oci() for each in mounts]


def _all_mounts(request: SpecRequest, security: SecurityOptions) -> list[dict[str, Any]]:
    own = [each.to_oci() for each in request.mounts]
    if uses_init(request):
        own.append(MountPoint(str(request.defaults.init_path), INIT_INSIDE, "bind", ("bind", "ro")).to_oci())
    taken = {each["destination"].rstrip("/") or "/" for each in own}
    defaults = [each for each in _default_mounts(request, security) if each["destination"] not in taken]
    # A mount on a folder must come before mounts below it.
    own.sort(key=lambda each: each["destination"].rstrip("/").count("/"))
    return defaults + own


def _propagation(mounts: Sequence[MountPoint]) -> str:
    options = {option for each in mounts for option in each.options}
    if options & {"shared", "rshared"}:
        return "shared"
    if options & {"slave", "rslave"}:
        return "slave"
    return ""


def _seccomp(request: SpecRequest, security: SecurityOptions, bounding: list[str]) -> dict[str, Any] | None:
    if request.host_config.privileged and not security.seccomp:
        return None
    profile = security.seccomp or request.defaults.seccomp_profile
    if profile == "unconfined":
        return None
    if profile in ("", "builtin"):
        return seccomp.default_profile(bounding)
    return seccomp.load_profile(profile, bounding)


def build_spec(request: SpecRequest) -> dict[str, Any]:
    """Return the content of config.json for crun.

    Reads the container's passwd and group files and the nodes of asked-for devices, so it may block on the disk: call
    it in a thread. Raises InvalidParameter or SystemError_ with dockerd's texts.
    """
    host = request.host_config
    security = parse_security_options(host.security_opt, no_new_privileges=request.defaults.no_new_privileges)
    bounding = capabilities.granted(host.cap_add, host.cap_drop, privileged=host.privileged)
    cgroupns = host.cgroupns_mode or request.defaults.cgroupns_mode or "host"
    if host.privileged:
        nodes, rules = devices.host_devices(), [{"allow": True, "access": "rwm"}]
    else:
        nodes, asked = devices.mapped_devices(host.devices)
        rules = [*devices.default_rules(), *asked, *(devices.parse_rule(rule) for rule in host.device_cgroup_rules)]
    linux: dict[str, Any] = {
        "namespaces": _namespaces(request, cgroupns),
        "cgroupsPath": cgroup_path(request.container_id, request.cgroup_parent or host.cgroup_parent),
        "resources": resources.build_resources(host, rules),
        "devices": nodes,
        "sysctl": sysctls.build_sysctls(
            host,
            domainname=request.domainname,
            joins_network=host.network_mode.startswith("container:"),
            all_groups=not request.remapped,
        ),
    }
    if request.remapped:
        linux |= request.ids.to_oci()
    if not host.privileged:
        linux["maskedPaths"] = list(MASKED_PATHS if host.masked_paths is None else host.masked_paths)
        linux["readonlyPaths"] = list(READONLY_PATHS if host.readonly_paths is None else host.readonly_paths)
    propagation = _propagation(request.mounts)
    if propagation:
        linux["rootfsPropagation"] = propagation
    filter_ = _seccomp(request, security, bounding)
    if filter_ is not None:
        linux["seccomp"] = filter_
    spec: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": _process(request, security, bounding),
        "root": {"path": str(request.rootfs), "readonly": host.readonly_rootfs},
        "mounts": _all_mounts(request, security),
        "annotations": {**host.annotations, **request.annotations},
        "linux": linux,
    }
    if host.uts_mode != "host" and request.hostname:
        spec["hostname"] = request.hostname
    for asked_for in host.device_requests:
        _add_devices(spec, asked_for, request.defaults.cdi_folders)
    return spec


def _add_devices(spec: dict[str, Any], request: DeviceRequest, folders: Sequence[str]) -> None:
    if request.count:
        raise InvalidParameter("unexpected count in CDI device request")
    if request.options:
        raise InvalidParameter("unexpected options in CDI device request")
    if request.device_ids:
        cdi.inject(spec, request.device_ids, folders)


@dataclass(frozen=True)
class ExecSpecRequest:
    """What `build_exec_process` needs: the container's own configuration and what the exec asks for."""

    config: ContainerConfig
    host_config: HostConfig
    rootfs: Path
    hostname: str
    args: Sequence[str]
    env: Sequence[str] = ()
    extra_env: Sequence[str] = ()
    user: str = ""
    working_dir: str = ""
    tty: bool = False
    privileged: bool = False
    console_size: tuple[int, int] | None = None
    defaults: SpecDefaults = SpecDefaults()


def build_exec_process(request: ExecSpecRequest) -> dict[str, Any]:
    """Return the OCI ``process`` of an exec in a running container. Blocks and raises as `build_spec` does."""
    host = request.host_config
    if not request.args:
        raise InvalidParameter("No exec command specified")
    security = parse_security_options(host.security_opt, no_new_privileges=request.defaults.no_new_privileges)
    bounding = capabilities.granted(host.cap_add, host.cap_drop, privileged=host.privileged or request.privileged)
    user = resolve_user(request.rootfs, request.user or request.config.user, host.group_add)
    environment = build_environment(
        request.config, request.hostname, tty=request.tty, extra=request.extra_env, more=request.env
    )
    process: dict[str, Any] = {
        "terminal": request.tty,
        "user": user.to_oci(),
        "args": list(request.args),
        "env": _with_home(environment, user),
        "cwd": request.working_dir or request.config.working_dir or "/",
        "capabilities": capabilities.process_capabilities(bounding, user.uid),
        "noNewPrivileges": security.no_new_privileges,
        "oomScoreAdj": host.oom_score_adj,
    }
    limits = resources.rlimits(host.ulimits, request.defaults.ulimits)
    if limits:
        process["rlimits"] = limits
    if request.tty and request.console_size is not None and any(request.console_size):
        process["consoleSize"] = {"height": request.console_size[0], "width": request.console_size[1]}
    return process
