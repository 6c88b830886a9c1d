"""Containers' network namespaces: made with all they need before a container starts, changed while it runs, taken apart.

Synchronous, on the network thread. Every operation either happens whole or leaves nothing.
"""

import contextlib
import ipaddress
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from moorage_guest.api.types import EndpointIPAMConfig, EndpointSettings, HostConfig
from moorage_guest.errors import EngineError, Forbidden, NotFound, SystemError_
from moorage_guest.net import hostfiles, links, namespaces, requests
from moorage_guest.net.fabric import Fabric
from moorage_guest.net.naming import Naming, dns_names, lead_to_resolver, user_defined
from moorage_guest.net.netd_client import NetdRefused
from moorage_guest.net.netlink import Address, NetlinkError, RouteSocket, delete_link
from moorage_guest.net.ports import api_ports, wanted_ports
from moorage_guest.net.publishing import Publisher
from moorage_guest.net.records import EndpointRecord, NetworkRecord, SandboxRecord

log = logging.getLogger(__name__)

#: Seconds that links are given to go with their namespaces.
_LINGER = 1.0


@dataclass(frozen=True)
class SandboxRequest:
    """What a container wants of networks when it starts."""

    container_id: str
    name: str
    hostname: str
    host_config: HostConfig
    endpoints: Mapping[str, EndpointSettings]
    domainname: str = ""
    exposed_ports: tuple[str, ...] = ()
    mac_address: str = ""
    userns: Path | None = None
    """The user namespace that the network is to belong to, None for a new one; means nothing unless root is remapped."""


@dataclass(frozen=True)
class Sandbox:
    """What a container got: mount the three files, join the namespace, show the rest."""

    container_id: str
    netns_path: Path
    userns_path: Path | None
    """The user namespace to join with it, where the container's root is remapped."""
    endpoints: dict[str, EndpointSettings]
    ports: dict[str, list[dict[str, str]] | None]
    hosts_file: Path
    resolv_conf: Path
    hostname_file: Path


@dataclass
class Remains:
    """What is left of sandboxes that were released: links to remove, then addresses to give back."""

    links: list[str] = field(default_factory=list)
    endpoints: list[EndpointRecord] = field(default_factory=list)


class Sandboxes:
    """Sandboxes by container. A container has at most one."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._publisher = Publisher(fabric)
        self.naming = Naming(fabric)
        fabric.netd.on_new = self.tell_netd

    # -- whole sandboxes

    def allocate(self, request: SandboxRequest) -> Sandbox:
        """Make a namespace with an interface per network, publish ports, make names known, write the files."""
        fabric = self._fabric
        if request.container_id in fabric.sandboxes:
            reap(fabric.route, self.release(request.container_id), fabric)
        wanted = self._networks_of(request)
        for network, settings in wanted:
            requests.check_endpoint(network, settings)
        host = request.host_config
        embedded = any(user_defined(network) for network, _ in wanted)
        names = hostfiles.resolution(fabric.config, host.dns, host.dns_search, host.dns_options, embedded=embedded)
        record = SandboxRecord(
            container_id=request.container_id,
            name=request.name.lstrip("/"),
            hostname=request.hostname,
            domainname=request.domainname,
            netns=str(fabric.exec_root.netns / request.container_id),
            servers=names.upstream,
            dns=tuple(host.dns),
            dns_search=tuple(host.dns_search),
            dns_options=tuple(host.dns_options),
            resolver=embedded,
            links=tuple(host.links),
            extra_hosts=tuple(host.extra_hosts),
            exposed=request.exposed_ports,
            bindings={
                port: [[binding.host_ip, binding.host_port] for binding in bindings]
                for port, bindings in host.port_bindings.items()
            },
            publish_all=host.publish_all_ports,
        )
        ports = wanted_ports(record.bindings, record.exposed, publish_all=record.publish_all)
        hostfiles.parse_extra_hosts(record.extra_hosts, self.naming.host_gateways())
        try:
            for number, (network, settings) in enumerate(wanted):
                mac = request.mac_address if number == 0 else ""
                endpoint = self._plan(network, settings, record, number, mac)
                record = replace(record, endpoints=(*record.endpoints, endpoint))
            fabric.files.put(record)
            self._build(record, request.userns, remapped=host.userns_mode != "host")
            if ports:
                record = self._publisher.publish(record, ports)
            self.naming.write_files(record, names, ipv6=hostfiles.speaks_ipv6(host.sysctls))
            fabric.sandboxes[record.container_id] = record
            fabric.files.put(record)
            self.naming.tell(record)
            self.naming.update_linked(record)
        except BaseException as error:
            fabric.sandboxes[record.container_id] = record
            with contextlib.suppress(OSError, EngineError):
                reap(fabric.route, self.release(record.container_id), fabric)
            if isinstance(error, OSError):
                raise SystemError_(str(error)) from error
            raise
        return self.view(record)

    def release(self, container_id: str) -> Remains:
        """Withdraw ports and names, drop the namespace; quiet when there is no sandbox. `reap` does the rest."""
        fabric = self._fabric
        record = fabric.sandboxes.pop(container_id, None)
        if record is None:
            return Remains()
        self._publisher.withdraw(record.ports)
        with contextlib.suppress(OSError):
            for endpoint in record.endpoints:
                if self.naming.is_user_defined(endpoint.network_id):
                    fabric.netd.request("unname", network=endpoint.network_id, endpoint=endpoint.id)
            if record.resolver:
                fabric.netd.request("unsandbox", sandbox=container_id)
        namespaces.remove(Path(record.netns))
        namespaces.remove(fabric.exec_root.userns / container_id)
        fabric.files.delete(container_id)
        return Remains(
            [endpoint.host_link for endpoint in record.endpoints if endpoint.host_link], list(record.endpoints)
        )

    def view(self, record: SandboxRecord) -> Sandbox:
        """Return what the rest of the engine sees of a sandbox."""
        folder = self._fabric.data.container(record.container_id)
        users = self._fabric.exec_root.userns / record.container_id
        return Sandbox(
            container_id=record.container_id,
            netns_path=Path(record.netns),
            userns_path=users if users.exists() else None,
            endpoints={endpoint.network_name: endpoint_settings(endpoint) for endpoint in record.endpoints},
            ports=api_ports(record.ports, record.exposed),
            hosts_file=folder / "hosts",
            resolv_conf=folder / "resolv.conf",
            hostname_file=folder / "hostname",
        )

    def _networks_of(self, request: SandboxRequest) -> list[tuple[NetworkRecord, EndpointSettings]]:
        """Return the networks to join, the one of the network mode first: it becomes eth0."""
        found: dict[str, tuple[NetworkRecord, EndpointSettings]] = {}
        mode = request.host_config.network_mode
        mode = "bridge" if mode in ("", "default") else mode
        for reference, settings in request.endpoints.items():
            network = self._fabric.find("bridge" if reference == "default" else reference)
            if network.config_only:
                raise Forbidden(f"configuration network {network.name} cannot be used by containers")
            if network.driver in ("host", "null"):
                raise Forbidden(
                    "container cannot be connected to multiple networks with one of the networks in private (none) or host mode"
                )
            found[network.id] = (network, settings)
        if not found:
            network = self._fabric.find(mode)
            found[network.id] = (network, EndpointSettings())
        return sorted(found.values(), key=lambda pair: (mode not in (pair[0].name, pair[0].id), pair[0].name))

    def _plan(
        self, network: NetworkRecord, settings: EndpointSettings, sandbox: SandboxRecord, number: int, mac: str
    ) -> EndpointRecord:
        """Take addresses and names for an endpoint; gives them back itself when it fails."""
        taken: list[tuple[int, Address]] = []
        asked = settings.ipam_config or EndpointIPAMConfig()
        try:
            for version, static in ((4, asked.ipv4_address), (6, asked.ipv6_address)):
                address = self._address(network, version, static or _of_mac(network, version, settings))
                if address is not None:
                    taken.append((version, address))
        except EngineError:
            self._fabric.give_back_addresses(network, [address for _, address in taken])
            raise
        by_version = dict(taken)
        four, six = by_version.get(4), by_version.get(6)
        options = dict(settings.driver_opts or {})
        prefix = network.options.get(requests.PREFIX, "") or "eth"
        outward = not network.internal
        l3 = network.driver == "ipvlan" and network.options.get("ipvlan_mode", "l2").startswith("l3")
        if network.driver == "ipvlan":
            mac = ""
        else:
            mac = (settings.mac_address or mac).lower().replace("-", ":") or (
                links.mac_for(four) if four is not None else links.random_mac()
            )
        return EndpointRecord(
            id=secrets.token_hex(32),
            network_id=network.id,
            network_name=network.name,
            mac=mac,
            ipv4=self._with_prefix(network, four),
            ipv6=self._with_prefix(network, six),
            gateway4=self._gateway(network, four) if outward and not l3 else "",
            gateway6=self._gateway(network, six) if outward and not l3 else "",
            host_link=f"{self._fabric.link_prefix}{secrets.token_hex(4)[:7]}" if network.driver == "bridge" else "",
            link=options.get(links.IFNAME_OPTION) or f"{prefix}{number}",
            dns_names=dns_names(sandbox, settings) if user_defined(network) else (),
            aliases=tuple(settings.aliases or ()),
            links=(*(settings.links or ()), *(sandbox.links if number == 0 and user_defined(network) else ())),
            priority=settings.gw_priority,
            driver_opts=options,
            device_route=l3 and outward,
            asked=settings.to_api(),
        )

    def _address(self, network: NetworkRecord, version: int, static: str) -> Address | None:
        subnets = [subnet for subnet in network.subnets if subnet.version == version]
        if not subnets:
            return None
        if static:
            address = ipaddress.ip_address(static)
            subnet = network.subnet_of(address)
            if subnet is None:
                return None
            self._fabric.ipam.claim(subnet, address)
            return address
        for subnet in subnets:
            with contextlib.suppress(Forbidden):
                return self._fabric.ipam.allocate(subnet)
        raise Forbidden(
            f"no available IPv{version} addresses on this network's address pools: {network.name} ({network.id})"
        )

    def _with_prefix(self, network: NetworkRecord, address: Address | None) -> str:
        subnet = network.subnet_of(address) if address is not None else None
        return f"{address}/{subnet.network.prefixlen}" if subnet is not None else ""

    def _gateway(self, network: NetworkRecord, address: Address | None) -> str:
        subnet = network.subnet_of(address) if address is not None else None
        if subnet is None:
            return ""
        return subnet.aux.get(f"DefaultGatewayIPv{subnet.version}") or subnet.gateway

    def _build(self, record: SandboxRecord, userns: Path | None, *, remapped: bool) -> None:
        """Make the namespace and everything in it."""
        fabric = self._fabric
        if fabric.ids and remapped:
            users = fabric.exec_root.userns / record.container_id
            namespace = namespaces.create_remapped(Path(record.netns), users, fabric.ids, userns)
        else:
            namespace = namespaces.create(Path(record.netns))
        try:
            with namespaces.inside(namespace), RouteSocket() as inner:
                links.prepare_namespace(inner)
                for endpoint in record.endpoints:
                    links.plug(fabric.route, fabric.networks[endpoint.network_id], endpoint, namespace)
                    links.configure(inner, endpoint)
                links.default_routes(inner, record.endpoints)
                if record.resolver:
                    lead_to_resolver()
        finally:
            os.close(namespace)

    # -- netd

    def tell_netd(self) -> None:
        """Tell a netd everything; what it cannot take, such as a port that was stolen, is logged."""
        for record in self._fabric.sandboxes.values():
            try:
                self.naming.tell(record)
                for port in record.ports:
                    if port.host_port:
                        self._publisher.hold(port)
            except NetdRefused as error:
                log.error("netd could not take back what container %s has: %s", record.name, error)
            except SystemError_ as error:
                log.error("%s", error)

    # -- live changes

    def connect(self, container_id: str, network: NetworkRecord, settings: EndpointSettings) -> EndpointRecord:
        """Plug a running container into one more network."""
        fabric = self._fabric
        record = fabric.sandboxes[container_id]
        requests.check_endpoint(network, settings)
        if record.endpoint(network.id) is not None:
            raise Forbidden(f"endpoint with name {record.name} already exists in network {network.name}")
        used = {endpoint.link for endpoint in record.endpoints}
        prefix = network.options.get(requests.PREFIX, "") or "eth"
        number = next(n for n in range(len(used) + 1) if f"{prefix}{n}" not in used)
        endpoint = self._plan(network, settings, record, number, "")
        before = record
        record = replace(
            record, endpoints=(*record.endpoints, endpoint), resolver=record.resolver or user_defined(network)
        )
        namespace = namespaces.open_path(Path(record.netns))
        try:
            if namespace is None:
                raise SystemError_(f"network namespace {record.netns} of container {record.name} is gone")
            fabric.files.put(record)
            with namespaces.inside(namespace), RouteSocket() as inner:
                links.plug(fabric.route, network, endpoint, namespace)
                links.configure(inner, endpoint)
                links.default_routes(inner, record.endpoints)
                if record.resolver and not before.resolver:
                    lead_to_resolver()
            record = self._publisher.move(record)
            if record.resolver and not before.resolver:
                names = hostfiles.resolution(
                    fabric.config, record.dns, record.dns_search, record.dns_options, embedded=True
                )
                record = replace(record, servers=names.upstream)
                hostfiles.write(self.naming.folder(container_id) / "resolv.conf", names.conf.text())
            lines = [hostfiles.own_line(a, record.hostname, record.domainname) for a in endpoint.addresses]
            hostfiles.edit_hosts(self.naming.folder(container_id) / "hosts", endpoint.addresses, lines)
            self.naming.tell(record)
        except BaseException as error:
            if namespace is not None:
                with contextlib.suppress(OSError, EngineError):
                    links.unplug(endpoint, namespace)
                    with namespaces.inside(namespace), RouteSocket() as inner:
                        links.default_routes(inner, before.endpoints)
            fabric.files.put(before)
            fabric.give_back([endpoint])
            if isinstance(error, OSError):
                raise SystemError_(
                    f"failed to connect container {record.name} to network {network.name}: {error}"
                ) from error
            raise
        finally:
            if namespace is not None:
                os.close(namespace)
        fabric.sandboxes[container_id] = record
        fabric.files.put(record)
        return record.endpoint(network.id) or endpoint

    def disconnect(self, container_id: str, network: NetworkRecord) -> EndpointRecord:
        """Unplug a running container from a network."""
        fabric = self._fabric
        record = fabric.sandboxes[container_id]
        endpoint = record.endpoint(network.id)
        if endpoint is None:
            raise NotFound(f"container {container_id} is not connected to network {network.name}")
        self._publisher.withdraw(endpoint.ports)
        record = replace(record, endpoints=tuple(e for e in record.endpoints if e.id != endpoint.id))
        fabric.sandboxes[container_id] = record
        with contextlib.suppress(OSError):
            if user_defined(network):
                fabric.netd.request("unname", network=network.id, endpoint=endpoint.id)
        namespace = namespaces.open_path(Path(record.netns))
        if namespace is not None:
            try:
                links.unplug(endpoint, namespace)
                with namespaces.inside(namespace), RouteSocket() as inner:
                    links.default_routes(inner, record.endpoints)
            except NetlinkError as error:
                raise SystemError_(
                    f"container {container_id} failed to leave network {network.name}: {error}"
                ) from error
            finally:
                os.close(namespace)
        record = self._publisher.move(record)
        fabric.sandboxes[container_id] = record
        fabric.files.put(record)
        with contextlib.suppress(OSError):
            hostfiles.edit_hosts(self.naming.folder(container_id) / "hosts", endpoint.addresses, ())
        if record.resolver:
            self.naming.tell_resolver(record)
        fabric.give_back([endpoint])
        return endpoint

    def rename(self, container_id: str, name: str) -> None:
        """Answer to another name from now on."""
        record = self._fabric.sandboxes.get(container_id)
        if record is None:
            return
        old, new = record.name, name.lstrip("/")
        endpoints = tuple(
            replace(e, dns_names=tuple(dict.fromkeys(new if n == old else n for n in e.dns_names)))
            for e in record.endpoints
        )
        record = replace(record, name=new, endpoints=endpoints)
        self._fabric.sandboxes[container_id] = record
        self._fabric.files.put(record)
        self.naming.tell(record)


def _of_mac(network: NetworkRecord, version: int, settings: EndpointSettings) -> str:
    """Return the IPv6 address that a MAC of one's own brings on the default bridge where there is room for one, as in dockerd."""
    subnet = next((subnet.network for subnet in network.subnets if subnet.version == 6), None)
    if version == 4 or not network.is_default or not settings.mac_address or subnet is None or subnet.prefixlen > 80:
        return ""
    return str(subnet.network_address + int(re.sub("[:-]", "", settings.mac_address), 16))


def reap(route: RouteSocket, remains: Remains, fabric: Fabric) -> None:
    """Remove links and give their addresses back, at once."""
    remove_links(route, remains.links)
    fabric.give_back(remains.endpoints)


def remove_links(route: RouteSocket, names: Iterable[str]) -> None:
    """Wait until interfaces have gone with their namespaces, and remove those that do not; quiet about missing ones.

    The kernel removes the links of dead namespaces together, in 10 ms for any number. Asked for one by one it takes 20 ms
    for each, and nobody else may change links meanwhile.
    """
    left = list(names)
    end = time.monotonic() + _LINGER
    pause = 0.002
    while left := [name for name in left if route.link(name) is not None]:
        if time.monotonic() >= end:
            break
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    found = [link for link in map(route.link, left) if link is not None]
    route.send(delete_link(link.index, link.name) for link in found)


def endpoint_settings(endpoint: EndpointRecord) -> EndpointSettings:
    """Return an endpoint as the API shows it: what was asked for and what it got."""
    settings = EndpointSettings.model_validate(endpoint.asked)
    four, six = endpoint.interface4, endpoint.interface6
    settings.mac_address = endpoint.mac
    settings.network_id = endpoint.network_id
    settings.endpoint_id = endpoint.id
    settings.gateway = endpoint.gateway4
    settings.ip_address = str(four.ip) if four else ""
    settings.ip_prefix_len = four.network.prefixlen if four else 0
    settings.ipv6_gateway = endpoint.gateway6
    settings.global_ipv6_address = str(six.ip) if six else ""
    settings.global_ipv6_prefix_len = six.network.prefixlen if six else 0
    settings.dns_names = list(endpoint.dns_names) or None
    return settings
