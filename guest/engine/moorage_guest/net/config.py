"""What the daemon's configuration says about networks, parsed and checked."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.net.hostalias import MARKER
from moorage_guest.net.netlink import Address, Interface, Network

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)


#: Interface of the default network.
DEFAULT_NAME = "docker0"


@dataclass(frozen=True)
class Pool:
    """A base network that is cut into subnets of ``size`` bits."""

    base: Network
    size: int


@dataclass(frozen=True)
class NetConfig:
    """Fields are daemon.json's; an empty ``bridge`` means docker0, "none" means no default network."""

    bridge: str = ""
    bip: Interface | None = None
    bip6: Interface | None = None
    fixed_cidr: Network | None = None
    fixed_cidr_v6: Network | None = None
    default_gateway: Address | None = None
    default_gateway_v6: Address | None = None
    pools: tuple[Pool, ...] = ()
    dns: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    host_gateway_ips: tuple[str, ...] = ()
    icc: bool = True
    iptables: bool = True
    ip6tables: bool = True
    ip_forward: bool = True
    ip_masq: bool = True
    ipv6: bool = False
    mtu: int = 1500
    default_bind: str = ""
    """Host address of ports published without one; empty means all, IPv4 and IPv6."""
    userland_proxy: bool = True
    default_network_opts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    resolv_conf: Path = Path("/etc/resolv.conf")
    hosts: Path = Path("/etc/hosts")
    machine_marker: Path = MARKER

    @property
    def bridge_name(self) -> str:
        """Interface of the default network."""
        return self.bridge or DEFAULT_NAME

    @property
    def has_default_bridge(self) -> bool:
        """Whether there is a default network at all."""
        return self.bridge != "none"


def parse_pools(entries: Iterable[tuple[str, int]]) -> tuple[Pool, ...]:
    """Check default-address-pools; raises InvalidParameter in dockerd's words."""
    pools = []
    for base, size in entries:
        try:
            network = ipaddress.ip_network(base, strict=False)
        except ValueError:
            raise InvalidParameter(f"invalid base pool {base!r}: invalid CIDR address: {base}") from None
        if not network.prefixlen <= size <= network.max_prefixlen:
            raise InvalidParameter(
                f"invalid default address pool {base}: size {size} does not fit prefix /{network.prefixlen}"
            )
        pools.append(Pool(network, size))
    return tuple(pools)
