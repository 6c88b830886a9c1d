"""Everything the network thread works with, and networks made real: their links and their firewall rules.

Synchronous; one thread at a time. Containers' places in networks belong to `sandboxes`, the asynchronous face to `networks`.
"""

import hashlib
import ipaddress
import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from moorage_guest.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotImplementedByEngine,
    SystemError_,
)
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.net import links, requests
from moorage_guest.net.config import DEFAULT_POOLS, NetConfig, Pool, parse_pools
from moorage_guest.net.firewall import Change, Firewall, NetworkRules, merge, network_change, port_change, removal
from moorage_guest.net.ipam import Ipam
from moorage_guest.net.netd_client import NetdClient
from moorage_guest.net.netlink import Address, NetlinkError, Network, RouteSocket
from moorage_guest.net.nftables import NftablesError
from moorage_guest.net.ports import PortTable
from moorage_guest.net.records import (
    EndpointRecord,
    NetworkRecord,
    PortBindingRecord,
    SandboxFiles,
    SandboxRecord,
    Subnet,
)
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.store import Store

log = logging.getLogger(__name__)

KIND = "network"


class Fabric:
    """State of all networks and sandboxes, with the sockets that change the kernel's."""

    def __init__(
        self,
        config: NetConfig,
        store: Store,
        data: DataRoot,
        exec_root: ExecRoot,
        start_netd: Callable[[], Path],
        ids: IdMap = SAME,
    ) -> None:
        self.config = config
        self.store = store
        self.data = data
        self.exec_root = exec_root
        self.ids = ids
        self.networks: dict[str, NetworkRecord] = {}
        self.sandboxes: dict[str, SandboxRecord] = {}
        self.ipam = Ipam(config.pools or default_pools())
        self.ports = PortTable()
        self.files = SandboxFiles(exec_root.net / "sandbox")
        self.netd = NetdClient(start_netd)
        self.route = RouteSocket()
        self.firewall: Firewall | None = None
        self.ipv6 = links.has_ipv6()
        self.link_prefix = f"veth{hashlib.sha256(str(exec_root.root).encode()).hexdigest()[:4]}"
        """Of host ends of veth pairs: tells this daemon's from another's on the same bridge."""
        self.link_tag = f"moorage {self.link_prefix.removeprefix('veth')}"
        """Alias of links that were made for networks, for the same purpose."""

    def close(self) -> None:
        """Let go of sockets; everything in the kernel and netd goes on."""
        self.netd.close()
        self.route.close()
        if self.firewall is not None:
            self.firewall.close()

    # -- lookups

    def find(self, reference: str) -> NetworkRecord:
        """Return a network by id, name or unambiguous prefix of its id, in this order."""
        if reference in self.networks:
            return self.networks[reference]
        named = [record for record in self.networks.values() if record.name == reference]
        if len(named) == 1:
            return named[0]
        if len(named) > 1:
            raise InvalidParameter(f"network {reference} is ambiguous ({len(named)} matches found on name)")
        matching = [record for record in self.networks.values() if reference and record.id.startswith(reference)]
        if len(matching) == 1:
            return matching[0]
        if len(matching) > 1:
            raise InvalidParameter(
                f"network {reference} is ambiguous ({len(matching)} matches found based on ID prefix)"
            )
        raise NotFound(f"network {reference} not found")

    def users(self, network_id: str) -> list[SandboxRecord]:
        """Return the sandboxes that are in a network."""
        return [sandbox for sandbox in self.sandboxes.values() if sandbox.endpoint(network_id) is not None]

    def give_back(self, endpoints: Iterable[EndpointRecord]) -> None:
        """Free the addresses of endpoints."""
        for endpoint in endpoints:
            network = self.networks.get(endpoint.network_id)
            if network is not None:
                self.give_back_addresses(network, [ipaddress.ip_address(address) for address in endpoint.addresses])

    def give_back_addresses(self, network: NetworkRecord, addresses: Iterable[Address]) -> None:
        """Free addresses of a network."""
        for address in addresses:
            subnet = network.subnet_of(address)
            if subnet is not None:
                self.ipam.release(subnet, address)

    # -- firewall

    def start_firewall(self) -> None:
        """Load the table, unless the configuration says to leave the firewall alone."""
        if not self.config.iptables:
            return
        table = table_name(self.exec_root)
        try:
            self.firewall = Firewall(table, ipv6=self.config.ip6tables)
            self.firewall.load()
        except NftablesError as error:
            raise SystemError_(
                f"failed to set up the firewall table {table}: {error}; set iptables to false to do without it"
            ) from error

    def change_firewall(self, change: Change) -> bool:
        """Apply a change; False when nothing differed or the firewall is left alone."""
        if self.firewall is None:
            return False
        try:
            return self.firewall.apply(change)
        except NftablesError as error:
            raise SystemError_(f"nftables refused a change: {error}") from error

    def rules(self, record: NetworkRecord) -> Change:
        """Return what the firewall has to hold for one network."""
        if record.driver != "bridge" or record.config_only:
            return Change()
        options = record.options
        masquerade = requests.boolean(options, requests.MASQUERADE, True)
        mode4, mode6 = options.get(requests.MODE4, "") or "nat", options.get(requests.MODE6, "") or "nat"
        return network_change(
            NetworkRules(
                id=record.id,
                interface=record.interface,
                subnets=tuple(subnet.subnet for subnet in record.subnets),
                internal=record.internal or "isolated" in (mode4, mode6),
                icc=requests.boolean(options, requests.ICC, True),
                masquerade4=masquerade and mode4 != "routed",
                masquerade6=masquerade and mode6 != "routed",
                source4=options.get(requests.SOURCE4, ""),
                source6=options.get(requests.SOURCE6, ""),
                open4=mode4,
                open6=mode6,
            )
        )

    def port_rules(self, ports: Iterable[PortBindingRecord]) -> Change:
        """Return the elements that lead host ports to containers; what crosses IP versions is netd's."""
        changes = []
        for port in ports:
            if not port.host_port:
                opened = Change()
                name = "open6" if ":" in port.container_ip else "open4"
                opened.put(name, f"{port.container_ip} . {port.proto} . {port.container_port}")
                changes.append(opened)
            elif (":" in port.host_ip) == (":" in port.container_ip):
                changes.append(
                    port_change(port.proto, port.host_ip, port.host_port, port.container_ip, port.container_port)
                )
        return merge(changes)

    # -- networks

    def create(self, request: requests.NetworkCreate) -> NetworkRecord:
        """Check a request, make the network and keep its record. All or nothing."""
        requests.check_create(request)
        if any(record.name == request.name for record in self.networks.values()):
            raise Conflict(f"network with name {request.name} already exists")
        request = self._with_config_from(request)
        driver = request.driver or "bridge"
        options = {**self.config.default_network_opts.get(driver, {}), **request.options}
        requests.check_options(driver, options)
        network_id = secrets.token_hex(32)
        ipv6 = request.enable_ipv6
        if ipv6 is None:
            ipv6 = requests.boolean(options, requests.ENABLE6, False)
        ipv4 = request.enable_ipv4
        if ipv4 is None:
            ipv4 = requests.boolean(options, requests.ENABLE4, True)
        if not ipv4 and not ipv6 and not request.config_only:
            raise InvalidParameter("IPv4 or IPv6 must be enabled")
        mtu = int(options.get(links.MTU_OPTION, "") or 0)
        if ipv6 and 0 < mtu < 1280:
            raise InvalidParameter(f"invalid MTU {mtu}: IPv6 needs at least 1280")
        if ipv6 and not self.ipv6:
            raise SystemError_("the kernel does not speak IPv6: create the network without --ipv6")
        ipam = request.ipam or requests.Ipam()
        requests.check_ipam(ipam.config, ipv6=ipv6)  # again, since IPv6 may be the default of default-network-opts
        subnets = self._plan_subnets(ipam, ipv4=ipv4, ipv6=ipv6, only=request.config_only)
        record = NetworkRecord(
            id=network_id,
            name=request.name,
            driver=driver,
            created=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            subnets=subnets,
            idle_subnets=() if ipv6 else _idle_subnets(ipam),
            options=options,
            labels=dict(request.labels),
            internal=request.internal,
            attachable=request.attachable,
            ipv4=ipv4,
            ipv6=ipv6,
            ipam_driver=ipam.driver or "default",
            ipam_options=ipam.options,
            config_only=request.config_only,
            config_from=request.config_from.network if request.config_from else "",
            interface="" if driver != "bridge" else options.get(requests.BRIDGE_NAME) or f"br-{network_id[:12]}",
        )
        if driver == "bridge" and any(
            other.interface == record.interface for other in self.networks.values() if other.driver == "bridge"
        ):
            raise Forbidden(
                f"cannot create network {network_id} ({record.interface}): conflicts with network with the same bridge name"
            )
        if not record.config_only:
            self.ipam.add_network(record)
            try:
                record = self.realise(record)
            except BaseException:
                self.unrealise(record)
                self.ipam.remove_network(record)
                raise
        self.networks[record.id] = record
        self.store.put(KIND, record.id, record.to_json())
        return record

    def _with_config_from(self, request: requests.NetworkCreate) -> requests.NetworkCreate:
        if not request.config_from or not request.config_from.network:
            return request
        source = next((n for n in self.networks.values() if n.name == request.config_from.network), None)
        if source is None:
            raise NotFound(f'configuration network "{request.config_from.network}" was not found')
        if not source.config_only:
            raise Forbidden(f"network {source.name} is not a configuration network")
        if request.options or (request.ipam and request.ipam.config):
            raise Forbidden(
                "user-specified configurations are not supported if the network depends on a configuration network"
            )
        config = [
            requests.IpamConfig(Subnet=s.subnet, IPRange=s.ip_range, Gateway=s.gateway, AuxiliaryAddresses=s.aux)
            for s in source.subnets
        ]
        ipam = requests.Ipam(Driver=source.ipam_driver, Options=source.ipam_options, Config=config)
        return request.model_copy(
            update={
                "options": dict(source.options),
                "ipam": ipam,
                "enable_ipv4": source.ipv4,
                "enable_ipv6": source.ipv6,
            }
        )

    def _plan_subnets(self, ipam: requests.Ipam, *, ipv4: bool, ipv6: bool, only: bool) -> tuple[Subnet, ...]:
        planned: list[Subnet] = []
        for config in ipam.config:
            if not config.subnet:
                continue
            network = ipaddress.ip_interface(config.subnet).network
            if (network.version == 4 and not ipv4) or (network.version == 6 and not ipv6):
                continue
            gateway = config.gateway
            if not gateway and not only:
                gateway = str(_first_free(network, config.ip_range, set(config.aux.values())))
            planned.append(Subnet(str(network), config.ip_range, gateway, dict(config.aux)))
        if only or ipam.driver == "null":
            return tuple(planned)
        avoid: list[Network] | None = None
        for version, enabled in ((4, ipv4), (6, ipv6)):
            if enabled and not any(subnet.version == version for subnet in planned):
                avoid = self.occupied() if avoid is None else avoid
                network = self.ipam.pick_subnet(version, avoid)
                planned.append(Subnet(str(network), "", str(_first_free(network, "", set())), by_user=False))
        return tuple(planned)

    def occupied(self) -> list[Network]:
        """Return what the host routes to somewhere else, and its name servers."""
        ours = {self.route_index(record.interface) for record in self.networks.values() if record.driver == "bridge"}
        taken = [network for index, network in self.route.routed() if index not in ours and network.prefixlen]
        for _, interface in self.route.addresses():
            if not interface.is_loopback and not interface.is_link_local:
                taken.append(interface.network)
        return taken

    def route_index(self, name: str) -> int:
        """Return the index of an interface, 0 when there is none."""
        link = self.route.link(name) if name else None
        return link.index if link else 0

    def realise(self, record: NetworkRecord) -> NetworkRecord:
        """Make a network's links and rules, or find that they are there. Returns the record with its interface."""
        try:
            if record.driver == "bridge":
                inhibit = requests.boolean(record.options, requests.INHIBIT, False)
                addresses = [
                    ipaddress.ip_interface(f"{subnet.gateway}/{subnet.network.prefixlen}")
                    for subnet in record.subnets
                    if subnet.gateway and not (inhibit and subnet.version == 4)
                ]
                mtu = int(record.options.get(links.MTU_OPTION, "0") or 0)
                localnet = self.config.iptables and not record.internal
                links.ensure_bridge(
                    self.route, record.interface, addresses, mtu=mtu, localnet=localnet, tag=self.link_tag
                )
                if record.ipv6:
                    self.forward_ipv6()
            elif record.driver in ("macvlan", "ipvlan"):
                parent = record.options.get("parent", "")
                if record.internal and parent:
                    raise InvalidParameter(f"parent {parent} cannot be used with an internal {record.driver} network")
                name, made = links.ensure_parent(self.route, record.id, parent, self.link_tag)
                record = replace(
                    record,
                    interface=name,
                    internal=record.internal or not parent,
                    made_parent=record.made_parent or made,
                )
                self._probe(record)
        except NetlinkError as error:
            raise SystemError_(f"failed to create network {record.name}: {error}") from error
        self.change_firewall(self.rules(record))
        return record

    def _probe(self, record: NetworkRecord) -> None:
        """Find out now, not at the first container, whether the kernel has the kind of link."""
        parent = self.route_index(record.interface)
        try:
            links.probe_child(self.route, record.driver, parent)
        except NetlinkError as error:
            raise NotImplementedByEngine(
                f"failed to create network {record.name}: the kernel refuses {record.driver} links: {error.strerror}"
            ) from error

    def unrealise(self, record: NetworkRecord) -> None:
        """Take a network's rules and links away; quiet about what is gone. A bridge that was there before stays."""
        self.change_firewall(removal(self.rules(record)))
        link = self.route.link(record.interface) if record.interface else None
        if record.made_parent or (record.driver == "bridge" and link is not None and link.alias == self.link_tag):
            links.remove_link(self.route, record.interface)

    def remove(self, reference: str) -> NetworkRecord:
        """Remove a network that nobody uses."""
        record = self.find(reference)
        if record.name in requests.PREDEFINED:
            raise Forbidden(f"{record.name} is a pre-defined network and cannot be removed")
        users = self.users(record.id)
        if users:
            names = ", ".join(f'name:"{user.name}" id:"{user.container_id[:12]}"' for user in users[:10])
            more = ", ..." if len(users) > 10 else ""
            raise Forbidden(f"error while removing network: network {record.name} has active endpoints ({names}{more})")
        if record.config_only and any(other.config_from == record.name for other in self.networks.values()):
            raise Forbidden(f"configuration network {record.name!r} is in use")
        if not record.config_only:
            try:
                self.unrealise(record)
            except NetlinkError as error:
                raise SystemError_(f"error while removing network {record.name}: {error}") from error
            self.ipam.remove_network(record)
        del self.networks[record.id]
        self.store.delete(KIND, record.id)
        return record

    def forward_ipv6(self) -> None:
        """Let the host route IPv6, keeping the default route that router advertisements give it."""
        if not self.config.ip_forward or not self.ipv6:
            return
        for link in self.route.links():
            setting = Path(f"/proc/sys/net/ipv6/conf/{link.name}/accept_ra")
            if setting.exists() and setting.read_text().strip() == "1" and link.kind not in ("bridge", "veth"):
                setting.write_text("2")
        links.write_sysctl("ipv6/conf/default/forwarding", "1")
        links.write_sysctl("ipv6/conf/all/forwarding", "1")


def table_name(exec_root: ExecRoot) -> str:
    """Return the name of this daemon's table, its own for every exec root."""
    if str(exec_root.root) == "/run/moorage":
        return "moorage"
    return f"moorage-{hashlib.sha256(str(exec_root.root).encode()).hexdigest()[:8]}"


def default_pools() -> tuple[Pool, ...]:
    """Return dockerd's pools, with an IPv6 prefix of this machine's own."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    digest = hashlib.sha256(f"moorage-ula-{machine}".encode()).digest()
    ula = ipaddress.IPv6Network((int.from_bytes(b"\xfd" + digest[:5] + bytes(10)), 48))
    return (*parse_pools(DEFAULT_POOLS), Pool(ula, 64))


def _idle_subnets(ipam: requests.Ipam) -> tuple[Subnet, ...]:
    """Return what a network without IPv6 was told of IPv6."""
    found = []
    for config in ipam.config:
        if config.subnet and (network := ipaddress.ip_interface(config.subnet).network).version == 6:
            found.append(Subnet(str(network), config.ip_range, config.gateway, dict(config.aux)))
    return tuple(found)


def _first_free(network: Network, ip_range: str, aux: set[str]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the first address that may be the gateway."""
    area = ipaddress.ip_network(ip_range) if ip_range else network
    for offset in range(min(area.num_addresses, 65536)):
        address = area.network_address + offset
        inner = network.num_addresses <= 2 or address not in (network.network_address, network.broadcast_address)
        if inner and str(address) not in aux:
            return address
    raise EngineError(f"no address of {network} is free for the gateway")
