"""Requests to create networks and to join them: models and checks, with dockerd's texts. Touches nothing."""

import ipaddress
import re
from collections.abc import Iterable, Mapping

from pydantic import Field

from moorage_guest.api.types import ApiModel, EndpointSettings, List, Map
from moorage_guest.errors import Forbidden, InvalidParameter, NotFound
from moorage_guest.net.links import IFNAME_OPTION, MTU_OPTION, SYSCTLS_OPTION, check_child_options
from moorage_guest.net.netlink import Network
from moorage_guest.net.records import NetworkRecord

PREDEFINED = ("bridge", "host", "none", "default")
DRIVERS = ("bridge", "macvlan", "ipvlan", "host", "null")

BRIDGE_NAME = "com.docker.network.bridge.name"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
ICC = "com.docker.network.bridge.enable_icc"
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
INHIBIT = "com.docker.network.bridge.inhibit_ipv4"
MODE4 = "com.docker.network.bridge.gateway_mode_ipv4"
MODE6 = "com.docker.network.bridge.gateway_mode_ipv6"
SOURCE4 = "com.docker.network.host_ipv4"
SOURCE6 = "com.docker.network.host_ipv6"
DEFAULT_BRIDGE = "com.docker.network.bridge.default_bridge"
PREFIX = "com.docker.network.container_iface_prefix"
ENABLE4 = "com.docker.network.enable_ipv4"
ENABLE6 = "com.docker.network.enable_ipv6"

_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_SYSCTL = re.compile(r"net\.(ipv4|ipv6|mpls)\.[a-z]+\.IFNAME\.[a-z0-9_]+=[^=/]*")
_MODES = ("nat", "nat-unprotected", "routed", "isolated")
_BOOLEANS = {
    "1": True, "t": True, "T": True, "true": True, "TRUE": True, "True": True,
    "0": False, "f": False, "F": False, "false": False, "FALSE": False, "False": False,
}  # fmt: skip


class IpamConfig(ApiModel):
    """One subnet asked for."""

    subnet: str = ""
    ip_range: str = Field("", alias="IPRange")
    gateway: str = ""
    aux: Map[str] = Field(default_factory=dict, alias="AuxiliaryAddresses")


class Ipam(ApiModel):
    """How addresses are managed."""

    driver: str = ""
    options: dict[str, str] | None = None
    config: List[IpamConfig] = Field(default_factory=list)


class ConfigFrom(ApiModel):
    """Network whose configuration is taken over."""

    network: str = ""


class NetworkCreate(ApiModel):
    """Body of POST /networks/create."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigFrom | None = None
    ipam: Ipam | None = Field(None, alias="IPAM")
    enable_ipv4: bool | None = Field(None, alias="EnableIPv4")
    enable_ipv6: bool | None = Field(None, alias="EnableIPv6")
    options: Map[str] = Field(default_factory=dict)
    labels: Map[str] = Field(default_factory=dict)


class NetworkConnect(ApiModel):
    """Body of POST /networks/{id}/connect."""

    container: str = ""
    endpoint_config: EndpointSettings | None = None


class NetworkDisconnect(ApiModel):
    """Body of POST /networks/{id}/disconnect."""

    container: str = ""
    force: bool = False


def boolean(options: Mapping[str, str], name: str, default: bool) -> bool:
    """Read a boolean driver option."""
    text = options.get(name)
    if text is None or text == "":
        return default
    if text not in _BOOLEANS:
        raise InvalidParameter(
            f'failed to parse {name} value: "{text}" (strconv.ParseBool: parsing "{text}": invalid syntax)'
        )
    return _BOOLEANS[text]


def check_create(request: NetworkCreate) -> None:
    """Raise for everything that is wrong with a request by itself."""
    if not request.name.strip():
        raise InvalidParameter("invalid network name: name is empty")
    if request.name != request.name.strip() or not request.name.isprintable() or "/" in request.name:
        raise InvalidParameter(
            f"invalid network name: {request.name!a}: spaces at its ends, slashes and control characters are not "
            "allowed"
        )
    if request.name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {request.name} network")
    driver = request.driver or "bridge"
    if driver == "overlay" or request.ingress or request.scope in ("swarm", "global"):
        raise Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
        )
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver not in DRIVERS:
        raise NotFound(f'plugin "{driver}" not found')
    if request.ipam and request.ipam.driver not in ("", "default", "null"):
        raise NotFound(f'plugin "{request.ipam.driver}" not found')
    if request.config_only:
        if request.internal or request.attachable or request.ingress:
            raise Forbidden(
                "configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported."
            )
        if request.config_from and request.config_from.network:
            raise Forbidden("a configuration network cannot depend on another configuration network")
    check_options(driver, request.options)
    if request.ipam:
        check_ipam(request.ipam.config, ipv6=bool(request.enable_ipv6) or boolean(request.options, ENABLE6, False))


def check_options(driver: str, options: Mapping[str, str]) -> None:
    """Raise for options of the driver that cannot work."""
    mtu = options.get(MTU_OPTION, "")
    if mtu and (not mtu.isdigit() or not 68 <= int(mtu) <= 65535):
        raise InvalidParameter(f"invalid MTU {mtu}: it has to be a number from 68 to 65535")
    if driver in ("macvlan", "ipvlan"):
        check_child_options(driver, options)
    for name in (MASQUERADE, ICC, INHIBIT, ENABLE4, ENABLE6):
        boolean(options, name, False)
    for name in (MODE4, MODE6):
        mode = options.get(name, "")
        if mode and mode not in _MODES:
            raise InvalidParameter(f"unknown gateway mode {mode}: {', '.join(_MODES)} are known")
    for name in (HOST_BINDING, SOURCE4, SOURCE6):
        text = options.get(name, "")
        try:
            if text:
                ipaddress.ip_address(text)
        except ValueError:
            raise InvalidParameter(f"invalid {name} value: {text} is no IP address") from None
    interface = options.get(BRIDGE_NAME, "")
    for name, text in ((BRIDGE_NAME, interface), ("parent", options.get("parent", ""))):
        if text and not is_interface_name(text):
            raise InvalidParameter(
                f"invalid {name} value {text!a}: an interface's name has at most 15 letters, digits, dots, dashes "
                "and underscores"
            )
    prefix = options.get(PREFIX, "")
    if prefix and (not is_interface_name(prefix) or len(prefix) > 10):
        raise InvalidParameter(
            f"invalid {PREFIX} value {prefix!a}: at most 10 letters, digits, dots, dashes and underscores"
        )


def check_ipam(configs: Iterable[IpamConfig], *, ipv6: bool) -> None:
    """Raise one InvalidParameter that lists every fault. What an IPv4 network is told of IPv6 is not looked at, as in dockerd."""
    faults: list[str] = []
    seen: list[Network] = []
    for config in configs:
        try:
            loose = ipaddress.ip_interface(config.subnet) if "/" in config.subnet else None
        except ValueError:
            loose = None
        if loose is None:
            if config.subnet or config.gateway or config.ip_range:
                faults.append(f"invalid subnet {config.subnet}: invalid CIDR block notation")
            continue
        network = loose.network
        if network.version == 6 and not ipv6:
            continue
        if loose.ip != network.network_address:
            faults.append(f"invalid subnet {config.subnet}: it should be {network}")
        if network.prefixlen == 0 or network.is_loopback or network.is_multicast or network.is_unspecified:
            faults.append(f"invalid subnet {config.subnet}: it has to be a network of unicast addresses")
        if any(other.version == network.version and other.overlaps(network) for other in seen):
            faults.append(f"invalid subnet {config.subnet}: it overlaps another subnet of this network")
        seen.append(network)
        faults += _range_faults(config.ip_range, network)
        fault = _address_fault(config.gateway, network)
        if fault:
            faults.append(f"invalid gateway {config.gateway}: {fault}")
        for name, address in config.aux.items():
            fault = _address_fault(address, network)
            if fault:
                faults.append(f"invalid auxiliary address {name}: {fault}")
    if faults:
        raise InvalidParameter("invalid network config:\n" + "\n".join(faults))


def _range_faults(text: str, network: Network) -> list[str]:
    if not text:
        return []
    try:
        loose = ipaddress.ip_interface(text) if "/" in text else None
    except ValueError:
        loose = None
    if loose is None:
        return [f"invalid ip-range {text}: invalid CIDR block notation"]
    area = loose.network
    if area.version != network.version:
        return [f"invalid ip-range {text}: parent subnet is an IPv{network.version} block"]
    faults = []
    if area.prefixlen < network.prefixlen:
        faults.append(f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {network}")
    if loose.ip != area.network_address:
        faults.append(f"invalid ip-range {text}: it should be {area}")
    if not area.overlaps(network):
        faults.append(f"invalid ip-range {text}: parent subnet {network} doesn't contain ip-range")
    return faults


def _address_fault(text: str, network: Network) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "invalid address"
    if address.version != network.version:
        return f"parent subnet is an IPv{network.version} block"
    if address not in network:
        return f"parent subnet {network} doesn't contain this address"
    return ""


def check_endpoint(network: NetworkRecord, settings: EndpointSettings) -> None:
    """Raise InvalidParameter, every fault in one, when a container cannot join a network with these settings."""
    faults: list[str] = []
    asked = settings.ipam_config
    static = [] if asked is None else [a for a in (asked.ipv4_address, asked.ipv6_address) if a]
    predefined = network.is_default or network.driver in ("host", "null")
    if asked is not None:
        for address, version in ((asked.ipv4_address, 4), (asked.ipv6_address, 6)):
            if address and not _is_unicast(address, version):
                faults.append(f"invalid IPv{version} address: {address}")
        for address in asked.link_local_ips:
            if not _is_unicast(address, None) or not ipaddress.ip_address(address).is_link_local:
                faults.append(f"invalid link-local IP address: {address}")
    if static and predefined:
        faults.append("user specified IP address is supported on user defined networks only")
    elif asked is not None and not faults:
        for text, version in ((asked.ipv4_address, 4), (asked.ipv6_address, 6)):
            subnets = [s for s in (*network.subnets, *network.idle_subnets) if s.version == version]
            if not text:
                continue
            if not any(s.by_user for s in subnets):
                faults.append(
                    "user specified IP address is supported only when connecting to networks with user configured subnets"
                )
            elif not any(ipaddress.ip_address(text) in s.network for s in subnets):
                faults.append(f"no configured subnet contains IP address {ipaddress.ip_address(text)}")
    if settings.mac_address and not _is_mac(settings.mac_address):
        faults.append(f"invalid MAC address: {settings.mac_address}")
    options = settings.driver_opts or {}
    interface = options.get(IFNAME_OPTION, "")
    if interface and (not is_interface_name(interface) or interface == "lo"):
        faults.append(f"invalid {IFNAME_OPTION} value {interface!a}: it cannot be the name of an interface")
    for entry in options.get(SYSCTLS_OPTION, "").split(","):
        if entry.strip() and not _SYSCTL.fullmatch(entry.strip()):
            faults.append(
                f"invalid {SYSCTLS_OPTION} value {entry!a}: settings of the interface are set as net.X.Y.IFNAME.Z=value"
            )
    if settings.aliases and predefined:
        faults.append("network-scoped alias is supported only for containers in user defined networks")
    if faults:
        raise InvalidParameter(
            f"invalid config for network {network.name}: invalid endpoint settings:\n" + "\n".join(faults)
        )


def is_interface_name(text: str) -> bool:
    """Whether the kernel and nftables take it as an interface's name."""
    return _INTERFACE.fullmatch(text) is not None and text not in (".", "..")


def _is_unicast(text: str, version: int | None) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return False
    return (version is None or address.version == version) and not address.is_multicast and not address.is_unspecified


def _is_mac(text: str) -> bool:
    parts = text.replace("-", ":").split(":")
    return len(parts) == 6 and all(len(p) == 2 and all(c in "0123456789abcdefABCDEF" for c in p) for p in parts)
