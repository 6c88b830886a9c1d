"""Where a container's namespaces come from: its own network sandbox, the host, or another container.

The sandbox itself is the Networks service's work.
"""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from moorage_guest import mountcalls
from moorage_guest.api.types import HostConfig
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.record import Container
from moorage_guest.errors import Conflict, NotFound, SystemError_
from moorage_guest.idmap import IdMap
from moorage_guest.net.sandboxes import SandboxRequest
from moorage_guest.oci.spec import Joined, MountPoint

_FILES = (("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"))


@dataclass(frozen=True)
class Place:
    """What the runtime spec needs to know of a container's surroundings."""

    netns: Path | None
    userns: Path | None
    hostname: str
    mounts: list[MountPoint]
    joined: Joined
    shm_path: Path | None
    environment: tuple[str, ...] = ()


async def enter(engine: Containers, container: Container) -> Place:
    """Make or find the namespaces of a container that is about to start. Raises the API's errors."""
    host = container.host_config
    remapped = bool(engine.ids) and host.userns_mode != "host"
    joined = Joined(pid=_joined(engine, host.pid_mode, "pid"), ipc=_joined(engine, host.ipc_mode, "ipc"))
    shm_path = await _shared_memory(engine, container)
    if remapped:
        _check_users(engine, host)
    netns, hostname, environment = None, container.config.hostname, tuple[str, ...]()
    shared = joined.pid or joined.ipc
    userns = shared.with_name("user") if shared is not None else None
    files_of = container
    if container.network_mode.startswith("container:"):
        other = engine.find(container.network_mode.removeprefix("container:"))
        if other is container:
            raise SystemError_("cannot join own network")
        if not other.status.alive:
            raise Conflict(f"cannot join network of a non running container: {other.id}")
        netns = Path(f"/proc/{other.state.pid}/ns/net")
        userns = userns or netns.with_name("user")  # whose root governs that network
        files_of = other
        while files_of.network_mode.startswith("container:"):  # who has the network has the files
            files_of = engine.find(files_of.network_mode.removeprefix("container:"))
        hostname = hostname or other.config.hostname or files_of.config.hostname
    else:
        request = replace(sandbox_request(container), userns=userns)
        if container.own_network:
            sandbox = await engine.networks.allocate(request)
            netns, userns = sandbox.netns_path, userns or sandbox.userns_path
            container.endpoints = dict(sandbox.endpoints)
            container.ports = dict(sandbox.ports)
            container.sandbox_key = str(netns)
            environment = link_environment(engine, container)
        else:
            await engine.networks.write_host_files(request, host_network=container.network_mode == "host")
            container.ports = {}
    folder = engine.data_root.container(files_of.id)
    read_only = container.host_config.readonly_rootfs
    taken = {mount.destination for mount in container.mounts}
    mounts = [
        MountPoint(str(folder / name), inside, "bind", ("rbind", "rprivate", "ro" if read_only else "rw"))
        for name, inside in _FILES
        if inside not in taken
    ]
    if container.host_config.uts_mode == "host" and not hostname:
        hostname = await asyncio.to_thread(Path("/proc/sys/kernel/hostname").read_text)
    return Place(netns, userns if remapped else None, hostname.strip(), mounts, joined, shm_path, environment)


def _check_users(engine: Containers, host: HostConfig) -> None:
    """Raise SystemError_ when a container with users of its own is to join one that has the machine's."""
    for mode, what in ((host.network_mode, "network"), (host.pid_mode, "PID"), (host.ipc_mode, "IPC")):
        if mode.startswith("container:"):
            other = engine.find(mode.removeprefix("container:"))
            if other.host_config.userns_mode == "host":
                raise SystemError_(
                    f"failed to join {what} namespace: container {other.id} has the machine's users: give this one "
                    "--userns=host, too"
                )


async def _shared_memory(engine: Containers, container: Container) -> Path | None:
    """Return what is to be /dev/shm: of a container that shares it, or of the one whose it is; None for its own."""
    host = container.host_config
    if host.ipc_mode.startswith("container:"):
        other = _donor(engine, host.ipc_mode, "IPC")
        return Path("/dev/shm") if other.host_config.ipc_mode == "host" else await _shared_memory(engine, other)
    if host.ipc_mode != "shareable":
        return None
    folder = engine.exec_root.root / "shm" / container.id
    options = f"nosuid,nodev,noexec,mode=1777,size={host.shm_size}"
    if engine.ids:
        options += ",uid={},gid={}".format(*engine.ids.root)
    await asyncio.to_thread(_mount_shared_memory, folder, options, engine.ids)
    return folder


def _mount_shared_memory(folder: Path, options: str, ids: IdMap) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.parent.chmod(0o700)
    ids.let_through(folder.parent)
    if not mountcalls.is_mounted(folder):
        ids.let_through(folder)
        mountcalls.mount("shm", folder, "tmpfs", options)


def _unmount_shared_memory(folder: Path) -> None:
    if folder.is_dir():
        if mountcalls.is_mounted(folder):
            mountcalls.unmount(folder)
        folder.rmdir()


async def leave(engine: Containers, container: Container) -> None:
    """Release the sandbox; what was asked for stays for the next start. Idempotent."""
    if container.own_network:
        await engine.networks.release(container.id)
    if container.host_config.ipc_mode == "shareable":
        await asyncio.to_thread(_unmount_shared_memory, engine.exec_root.root / "shm" / container.id)
    forget_place(container)


def forget_place(container: Container) -> None:
    """Clear what a container had of networks while it ran."""
    container.ports = {}
    container.sandbox_key = ""
    container.endpoints = {
        name: settings.model_copy(
            update={
                "endpoint_id": "", "gateway": "", "ip_address": "", "ip_prefix_len": 0, "ipv6_gateway": "",
                "global_ipv6_address": "", "global_ipv6_prefix_len": 0,
                "mac_address": container.wanted_endpoints[name].mac_address if name in container.wanted_endpoints else "",
            }
        )
        for name, settings in container.endpoints.items()
    }  # fmt: skip


def sandbox_request(container: Container) -> SandboxRequest:
    """Return what a container asks of networks."""
    return SandboxRequest(
        container_id=container.id, name=container.name, hostname=container.config.hostname,
        host_config=container.host_config, endpoints=container.wanted_endpoints,
        domainname=container.config.domainname, exposed_ports=tuple(container.config.exposed_ports),
        mac_address=container.config.mac_address,
    )  # fmt: skip


def _joined(engine: Containers, mode: str, kind: str) -> Path | None:
    if not mode.startswith("container:"):
        return None
    other = _donor(engine, mode, kind.upper())
    if (
        kind == "ipc"
        and other.host_config.ipc_mode not in ("shareable", "host")
        and not (other.host_config.ipc_mode.startswith("container:"))
    ):
        raise SystemError_(
            f"failed to join IPC namespace: container {other.id}: non-shareable IPC "
            "(hint: use IpcMode:shareable for the donor container)"
        )
    return Path(f"/proc/{other.state.pid}/ns/{kind}")


def _donor(engine: Containers, mode: str, kind: str) -> Container:
    """Return the container whose namespace is joined. Raises SystemError_: only the start can tell, as in dockerd."""
    try:
        other = engine.find(mode.removeprefix("container:"))
    except NotFound as error:
        raise SystemError_(f"failed to join {kind} namespace: {error}") from None
    if not other.status.alive:
        raise SystemError_(f"failed to join {kind} namespace: container {other.id} is not running")
    return other


def link_environment(engine: Containers, container: Container) -> tuple[str, ...]:
    """Return the variables that a link on the default bridge gives: address, ports and environment of the other one.

    Raises NotFound or Conflict when somebody who is linked is not there or does not run.
    """
    if container.network_mode != "bridge":
        return ()
    found: list[str] = []
    for link in container.host_config.links:
        target, _, alias = link.partition(":")
        other = engine.find(target)
        alias = (alias or other.name).rsplit("/", 1)[-1]
        prefix = alias.upper().replace("-", "_")
        endpoint = other.endpoints.get("bridge")
        if endpoint is None or not endpoint.ip_address:
            raise Conflict(f"Cannot link to a non running container: /{other.name} AS /{container.name}/{alias}")
        found.append(f"{prefix}_NAME=/{container.name}/{alias}")
        ports = sorted(other.config.exposed_ports, key=lambda each: (int(each.split("/")[0].split("-")[0]), each))
        for position, port in enumerate(ports):
            number, _, protocol = port.partition("/")
            protocol = protocol or "tcp"
            url = f"{protocol}://{endpoint.ip_address}:{number}"
            name = f"{prefix}_PORT_{number}_{protocol.upper()}"
            if position == 0:
                found.append(f"{prefix}_PORT={url}")
            found += [
                f"{name}={url}", f"{name}_ADDR={endpoint.ip_address}", f"{name}_PORT={number}",
                f"{name}_PROTO={protocol}",
            ]  # fmt: skip
        found += [f"{prefix}_ENV_{entry}" for entry in other.config.env if not entry.startswith("PATH=")]
    return tuple(found)
