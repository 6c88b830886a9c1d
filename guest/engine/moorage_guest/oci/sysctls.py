"""Kernel parameters of a container's own namespaces (--sysctl): defaults and what is refused."""

from pathlib import Path

from moorage_guest.api.types import HostConfig
from moorage_guest.errors import InvalidParameter

_IPC = frozenset(
    "kernel." + name for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def _exists(name: str) -> bool:
    return Path("/proc/sys", *name.split(".")).exists()


def build_sysctls(
    host: HostConfig, *, domainname: str = "", joins_network: bool = False, all_groups: bool = True
) -> dict[str, str]:
    """Return the parameters to set. With a network namespace of its own a container may bind any port and ping.

    Where there are not ``all_groups``, as in a user namespace, only who has CAP_NET_RAW may ping.

    Raises InvalidParameter for a parameter that is not in a namespace of the container's own.
    """
    own_network = host.network_mode != "host" and not joins_network
    found: dict[str, str] = {}
    if own_network:
        if all_groups and _exists("net.ipv4.ping_group_range"):
            found["net.ipv4.ping_group_range"] = "0 2147483647"
        if _exists("net.ipv4.ip_unprivileged_port_start"):
            found["net.ipv4.ip_unprivileged_port_start"] = "0"
    if domainname and host.uts_mode != "host":
        found["kernel.domainname"] = domainname
    for name, value in host.sysctls.items():
        dotted = name.replace("/", ".")
        if dotted in _IPC or dotted.startswith("fs.mqueue."):
            if host.ipc_mode == "host":
                raise InvalidParameter(f'sysctl "{name}" is not allowed in the hosts ipc namespace')
        elif dotted.startswith("net."):
            if host.network_mode == "host":
                raise InvalidParameter(f'sysctl "{name}" not allowed in host network namespace')
        elif dotted in ("kernel.domainname", "kernel.hostname"):
            if host.uts_mode == "host" or dotted == "kernel.hostname":
                raise InvalidParameter(f'sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field')
        else:
            raise InvalidParameter(f'sysctl "{name}" is not in a separate kernel namespace')
        found[name] = value
    return found
