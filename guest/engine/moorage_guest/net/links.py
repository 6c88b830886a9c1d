"""Interfaces of networks and containers: bridges, veth pairs, macvlan and ipvlan, and what is set on them.

Every function takes the sockets it works with and is synchronous. Which addresses are used belongs to `ipam`.
"""

import errno
import ipaddress
import logging
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moorage_guest.errors import InvalidParameter, NotImplementedByEngine, SystemError_
from moorage_guest.net import namespaces
from moorage_guest.net.netlink import (
    Address,
    Interface,
    Link,
    Message,
    NetlinkError,
    RouteSocket,
    add_address,
    add_link,
    add_route,
    add_veth,
    attribute,
    change_link,
    delete_address,
    delete_link,
    link_body,
)
from moorage_guest.net.records import EndpointRecord, NetworkRecord

log = logging.getLogger(__name__)

MTU_OPTION = "com.docker.network.driver.mtu"
IFNAME_OPTION = "com.docker.network.endpoint.ifname"
SYSCTLS_OPTION = "com.docker.network.endpoint.sysctls"

#: Length of the prefix that a link-local address is given with, by IP version; the network is everybody's own link.
LINK_LOCAL_PREFIX = {4: 16, 6: 64}

_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}

_SYSCTL = Path("/proc/sys/net")
_KERNELS = ipaddress.ip_network("fe80::/64")


def write_sysctl(name: str, value: str) -> bool:
    """Set net/… in the calling thread's namespace unless it has the value; False when the kernel has no such setting."""
    path = _SYSCTL / name
    try:
        if path.read_text().strip() == value:
            return True
        path.write_text(value)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SystemError_(f"cannot set sysctl net/{name} to {value}: {error.strerror}") from error
    return True


def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6."""
    return Path("/proc/net/if_inet6").exists()


def random_mac() -> str:
    """Return a random locally administered unicast address."""
    first, *rest = secrets.token_bytes(6)
    return bytes([(first | 2) & 0xFE, *rest]).hex(":")


def mac_for(address: Address) -> str:
    """Return the MAC that belongs to an IPv4 address; a neighbour's cache stays right when an address is used again."""
    if address.version == 4:
        return (b"\x02\x42" + address.packed).hex(":")
    return random_mac()


# -- bridges ------------------------------------------------------------------------------------------------------------


def ensure_bridge(
    route: RouteSocket, name: str, addresses: Iterable[Interface], *, mtu: int = 0, localnet: bool, tag: str
) -> Link:
    """Make a bridge, or adopt the one of that name, and give it the addresses. Changes nothing that already matches."""
    wanted = list(addresses)
    link = route.link(name)
    if link is None:
        # Without a MAC of its own a bridge takes that of its ports, and changes it as they come and go.
        route.send([add_link("bridge", name, link_body(name=name, mac=random_mac(), up=False)), _tagged(name, tag)])
        link = route.link(name)
        if link is None:
            raise SystemError_(f"bridge {name} vanished while it was made")
    elif link.kind != "bridge":
        raise SystemError_(
            f"interface {name} exists and is no bridge: choose another name with --bridge or the bridge.name option"
        )
    present = [interface for _, interface in route.addresses(link.index)]
    messages = [add_address(link.index, each) for each in wanted if not _is_among(each, present)]
    stale = [
        each
        for each in present
        if not _is_among(each, wanted)
        and not _is_kernels(each)
        and any(each.version == other.version for other in wanted)
    ]
    messages = [delete_address(link.index, interface) for interface in stale] + messages
    if not link.up or (mtu and link.mtu != mtu):
        messages.append(change_link(link_body(link.index, up=True, mtu=mtu or None), f"start bridge {name}"))
    if any(interface.version == 6 for interface in wanted):
        write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "0")
    route.send(messages)
    write_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
    if localnet:
        write_sysctl(f"ipv4/conf/{name}/route_localnet", "1")
    return link


def _is_among(interface: Interface, others: Sequence[Interface]) -> bool:
    """Whether an address is there; an IPv6 one of another prefix length is, too: to change that would cut connections."""
    return interface in others or (interface.version == 6 and any(interface.ip == other.ip for other in others))


def _is_kernels(interface: Interface) -> bool:
    """Whether an address is link-local as the kernel gives them, and stays."""
    return interface.ip.is_link_local and (interface.version == 4 or interface.ip in _KERNELS)


def _tagged(name: str, tag: str) -> Message:
    """Note on a link whose it is; sent with the message that makes it, so that none is without."""
    return change_link(link_body(name=name, alias=tag), f"mark {name}")


def remove_link(route: RouteSocket, name: str) -> None:
    """Remove an interface by name; quiet when there is none."""
    link = route.link(name)
    if link is not None:
        route.send([delete_link(link.index, name)])


# -- endpoints ----------------------------------------------------------------------------------------------------------


def plug(route: RouteSocket, network: NetworkRecord, endpoint: EndpointRecord, namespace: int) -> None:
    """Make a container's interface in its namespace and tie it to the network. It is not up yet."""
    mtu = int(network.options.get(MTU_OPTION, "0") or 0)
    try:
        if network.driver == "bridge":
            bridge = route.link(network.interface)
            if bridge is None:
                raise SystemError_(
                    f"bridge {network.interface} of network {network.name} is gone: remove the network and create it again"
                )
            peer = link_body(name=endpoint.link, mac=endpoint.mac, mtu=mtu, namespace=namespace)
            host = link_body(name=endpoint.host_link, up=True, mtu=mtu, master=bridge.index, mac=random_mac())
            route.send([add_veth(host, endpoint.host_link, peer)])
        else:
            route.send([_child(route, network, endpoint, mtu, namespace)])
    except NetlinkError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOENT) and network.driver in ("macvlan", "ipvlan"):
            raise SystemError_(
                f"the kernel has no {network.driver} links ({error.strerror}): use a bridge network, or a kernel with that driver"
            ) from error
        if error.errno == errno.EEXIST:
            raise SystemError_(
                f"failed to add interface {endpoint.link} to the container: the name is taken; choose another with {IFNAME_OPTION}"
            ) from error
        raise SystemError_(f"failed to add interface {endpoint.link} to the container: {error}") from error


def _child(route: RouteSocket, network: NetworkRecord, endpoint: EndpointRecord, mtu: int, namespace: int) -> Message:
    parent = route.link(network.interface)
    if parent is None:
        raise SystemError_(f"parent interface {network.interface} of network {network.name} is gone")
    mode = network.options.get(f"{network.driver}_mode", "")
    if network.driver == "macvlan":
        data = attribute(1, _MACVLAN_MODES[mode or "bridge"])
        body = link_body(name=endpoint.link, mac=endpoint.mac, mtu=mtu, link=parent.index, namespace=namespace)
    else:
        flag = _IPVLAN_FLAGS[network.options.get("ipvlan_flag", "") or "bridge"]
        data = attribute(1, struct.pack("=H", _IPVLAN_MODES[mode or "l2"])) + attribute(2, struct.pack("=H", flag))
        body = link_body(name=endpoint.link, mtu=mtu, link=parent.index, namespace=namespace)
    return add_link(network.driver, endpoint.link, body, data)


def check_child_options(driver: str, options: Mapping[str, str]) -> None:
    """Raise InvalidParameter for a mode that macvlan or ipvlan does not have."""
    modes = _MACVLAN_MODES if driver == "macvlan" else _IPVLAN_MODES
    mode = options.get(f"{driver}_mode", "")
    if mode and mode not in modes:
        raise InvalidParameter(
            f"requested {driver} mode '{mode}' is not valid, '{next(iter(modes))}' mode is the {driver} driver default"
        )
    if driver == "ipvlan" and (flag := options.get("ipvlan_flag", "")) and flag not in _IPVLAN_FLAGS:
        raise InvalidParameter(f"requested ipvlan flag '{flag}' is not valid")


def ensure_parent(route: RouteSocket, network_id: str, parent: str, tag: str) -> tuple[str, bool]:
    """Find or make the parent of macvlan and ipvlan links; returns its name and whether it was made here.

    "eth0.10" makes VLAN 10 on eth0; without a name a dummy interface is made.
    """
    name = parent or f"dm-{network_id[:12]}"
    if route.link(name) is not None:
        return name, False
    try:
        if not parent:
            route.send([add_link("dummy", name, link_body(name=name, up=True)), _tagged(name, tag)])
            return name, True
        base, dot, tag = parent.rpartition(".")
        below = route.link(base) if dot else None
        if below is None or not tag.isdigit() or not 1 <= int(tag) <= 4094:
            raise InvalidParameter(
                f"the parent interface {parent} was not found on this host: name one that `ip link` lists"
            )
        data = attribute(1, struct.pack("=H", int(tag)))
        route.send([add_link("vlan", name, link_body(name=name, link=below.index, up=True), data), _tagged(name, tag)])
    except NetlinkError as error:
        text = f"the kernel refused the parent interface {name}: {error.strerror}"
        if error.errno == errno.EOPNOTSUPP:
            raise NotImplementedByEngine(text) from error
        raise SystemError_(text) from error
    return name, True


def probe_child(route: RouteSocket, driver: str, parent: int) -> None:
    """Make and remove a link of a driver on a parent; raises NetlinkError when the kernel has no such driver.

    A parent that is busy or cannot carry such links at the moment is no reason to refuse the network.
    """
    name = f"mp{secrets.token_hex(4)}"
    try:
        route.send([add_link(driver, name, link_body(name=name, link=parent))])
    except NetlinkError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT):
            raise
        log.debug("probe of %s: %s", driver, error)
        return
    remove_link(route, name)


def prepare_namespace(route: RouteSocket) -> None:
    """Set up a fresh namespace that the calling thread is in: loopback up, no IPv6 on interfaces that come."""
    route.send([change_link(link_body(1, up=True), "start loopback")])
    write_sysctl("ipv6/conf/default/disable_ipv6", "1")
    # Neighbours that remember who had an address before are told who has it now.
    write_sysctl("ipv4/conf/default/arp_notify", "1")
    write_sysctl("ipv6/conf/default/ndisc_notify", "1")
    write_sysctl("ipv4/ip_unprivileged_port_start", "0")
    write_sysctl("ipv4/ping_group_range", "0 2147483647")


def configure(route: RouteSocket, endpoint: EndpointRecord) -> None:
    """Give a container's interface its addresses and start it, with the calling thread in its namespace."""
    link = route.link(endpoint.link)
    if link is None:
        raise SystemError_(f"interface {endpoint.link} vanished from its namespace")
    if endpoint.ipv6:
        write_sysctl(f"ipv6/conf/{endpoint.link}/disable_ipv6", "0")
    interfaces = [i for i in (endpoint.interface4, endpoint.interface6) if i is not None]
    for local in (endpoint.asked.get("IPAMConfig") or {}).get("LinkLocalIPs") or ():
        address = ipaddress.ip_address(local)
        interfaces.append(ipaddress.ip_interface((address, LINK_LOCAL_PREFIX[address.version])))
    route.send(
        [
            *(add_address(link.index, interface) for interface in interfaces),
            change_link(link_body(link.index, up=True), f"start {endpoint.link}"),
        ]
    )
    for entry in endpoint.driver_opts.get(SYSCTLS_OPTION, "").split(","):
        name, equals, value = entry.strip().partition("=")
        if equals:
            path = name.removeprefix("net.").replace(".", "/").replace("IFNAME", endpoint.link)
            if not write_sysctl(path, value):
                raise InvalidParameter(f"unable to set sysctl {name}: the kernel has no such setting")


def default_routes(route: RouteSocket, endpoints: Iterable[EndpointRecord]) -> None:
    """Point the default routes at the endpoint with the highest priority, then the first by network name."""
    ordered = sorted(endpoints, key=lambda e: (-e.priority, e.network_name))
    for version in (4, 6):
        for endpoint in ordered:
            gateway = endpoint.gateway4 if version == 4 else endpoint.gateway6
            device = endpoint.device_route and (endpoint.ipv4 if version == 4 else endpoint.ipv6)
            if not gateway and not device:
                continue
            link = route.link(endpoint.link)
            if link is not None:
                target = ipaddress.ip_address(gateway) if gateway else None
                route.send([add_route(None, target, link.index, version)])
                break


def unplug(endpoint: EndpointRecord, namespace: int) -> None:
    """Remove a container's interface from its namespace; its host end goes with it. Quiet when it is gone."""
    with namespaces.inside(namespace), RouteSocket() as inner:
        remove_link(inner, endpoint.link)
