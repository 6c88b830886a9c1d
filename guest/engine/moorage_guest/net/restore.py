"""Takes networks and sandboxes back when the daemon starts: what is right stays untouched, what is wrong is put right.

Synchronous, on the network thread.
"""

import ipaddress
import logging
import os
import secrets
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moorage_guest.errors import EngineError, SystemError_
from moorage_guest.net import links, namespaces, requests
from moorage_guest.net.config import DEFAULT_NAME
from moorage_guest.net.fabric import KIND, Fabric
from moorage_guest.net.firewall import merge
from moorage_guest.net.netlink import Interface, NetlinkError, RouteSocket, delete_link
from moorage_guest.net.nftables import NftablesError
from moorage_guest.net.records import EndpointRecord, NetworkRecord, SandboxRecord, Subnet
from moorage_guest.net.sandboxes import Sandboxes, reap, remove_links

log = logging.getLogger(__name__)


def restore(fabric: Fabric, sandboxes: Sandboxes, live: Collection[str]) -> list[str]:
    """Bring the kernel to the state that the records describe; returns warnings for people.

    ``live`` are the containers that run: their sandboxes are kept as they are. All others are taken apart.
    """
    warnings: list[str] = []
    fabric.files.prepare()
    for folder in (fabric.exec_root.netns, fabric.exec_root.userns):
        folder.mkdir(parents=True, exist_ok=True, mode=0o711)
    if fabric.config.ip_forward:
        links.write_sysctl("ipv4/ip_forward", "1")
    fabric.start_firewall()
    records = _load_networks(fabric, warnings)
    kept, damaged = fabric.files.all()
    for container_id in damaged:
        log.error("the network record of container %s is damaged: it is dropped", container_id)
        fabric.files.delete(container_id)
    for container_id in sorted(set(live) & set(damaged)):
        warnings.append(
            f"container {container_id[:12]} runs, but what it has of networks is not known any more: restart it"
        )
    default_used = any(
        endpoint.network_name == "bridge"
        for key, sandbox in kept.items()
        if key in live
        for endpoint in sandbox.endpoints
    )
    _recover(fabric, records, [sandbox for key, sandbox in kept.items() if key in live], warnings)
    _default_networks(fabric, records, default_used, warnings)
    _realise_all(fabric, records, warnings)
    present = {link.name for link in fabric.route.links()}
    for container_id, sandbox in kept.items():
        if container_id in live:
            _take_back(fabric, _as_it_is(fabric, sandbox, present), warnings)
        else:
            fabric.sandboxes[container_id] = sandbox
            reap(fabric.route, sandboxes.release(container_id), fabric)
    _sweep(fabric)
    if fabric.firewall is not None:
        wanted = merge(fabric.rules(record) for record in fabric.networks.values())
        wanted = merge([wanted, fabric.port_rules(port for s in fabric.sandboxes.values() for port in s.ports)])
        try:
            fabric.firewall.reconcile(wanted)
        except NftablesError as error:
            raise SystemError_(f"nftables refused the rules of the networks: {error}") from error
    return warnings


def sync_netd(fabric: Fabric) -> None:
    """Bring netd up to date and drop what it has of containers that are gone. Does nothing when nobody needs it."""
    wanted_sandboxes = {s.container_id for s in fabric.sandboxes.values() if s.resolver}
    wanted_ports = {port.key for s in fabric.sandboxes.values() for port in s.ports if port.host_port}
    if not wanted_sandboxes and not wanted_ports and not (fabric.exec_root.net / "netd.sock").exists():
        return
    fabric.netd.connect()
    names = {f"{e.network_id}/{e.id}" for s in fabric.sandboxes.values() for e in s.endpoints}
    for key in fabric.netd.keys("sandbox") - wanted_sandboxes:
        fabric.netd.request("unsandbox", sandbox=key)
    for key in fabric.netd.keys("port") - wanted_ports:
        fabric.netd.request("unhold", key=key)
    for key in fabric.netd.keys("name") - names:
        network, _, endpoint = key.partition("/")
        fabric.netd.request("unname", network=network, endpoint=endpoint)


def _load_networks(fabric: Fabric, warnings: list[str]) -> dict[str, NetworkRecord]:
    records: dict[str, NetworkRecord] = {}
    for key, value in fabric.store.all(KIND).items():
        try:
            records[key] = _read_network(fabric, key, value)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            log.error("record of network %s is damaged (%s): ignored", key, error)
            warnings.append(f"network {key[:12]} could not be read back and is left out")
    return records


def _read_network(fabric: Fabric, key: str, value: dict[str, Any]) -> NetworkRecord:
    """Make a network of its record, or of the record's copy."""
    try:
        return NetworkRecord.from_json(value)
    except (TypeError, ValueError, KeyError, AttributeError):
        spare = fabric.store.spare(KIND, key)
        if spare is None:
            raise
        record = NetworkRecord.from_json(spare)
        fabric.store.put(KIND, key, spare)
        return record


def _recover(fabric: Fabric, records: dict[str, NetworkRecord], live: list[SandboxRecord], warnings: list[str]) -> None:
    """Make records of networks that running containers are in and that nothing is known of: their data root is another's
    or the state database is lost. What a container has of a network, and its bridge, say how it was."""
    for sandbox in live:
        for endpoint in sandbox.endpoints:
            name = endpoint.network_name
            if endpoint.network_id in records or any(record.name == name for record in records.values()):
                continue
            if not (bridge := _bridge_of(fabric, endpoint)):
                continue
            subnets = tuple(
                Subnet(str(interface.network), gateway=gateway, by_user=name != "bridge")
                for interface, gateway in (
                    (endpoint.interface4, endpoint.gateway4),
                    (endpoint.interface6, endpoint.gateway6),
                )
                if interface is not None
            )
            default = {requests.DEFAULT_BRIDGE: "true", requests.BRIDGE_NAME: bridge} if name == "bridge" else {}
            record = replace(
                _record(name, "bridge"),
                id=endpoint.network_id,
                subnets=subnets,
                interface=bridge,
                options=default,
                ipv4=endpoint.interface4 is not None,
                ipv6=endpoint.interface6 is not None,
            )
            log.warning("network %s was not known: taken back from container %s", name, sandbox.name)
            warnings.append(f"network {name} was not known: it was taken back from its containers, without its labels")
            _keep(fabric, records, record)


def _bridge_of(fabric: Fabric, endpoint: EndpointRecord) -> str:
    """Return the bridge that a container's link is on, "" when there is none."""
    link = fabric.route.link(endpoint.host_link) if endpoint.host_link else None
    bridge = next((each for each in fabric.route.links() if link is not None and each.index == link.master), None)
    return bridge.name if bridge is not None else ""


def _realise_all(fabric: Fabric, records: dict[str, NetworkRecord], warnings: list[str]) -> None:
    for record in sorted(records.values(), key=lambda r: (not r.is_default, r.created)):
        fabric.networks[record.id] = record
        if record.config_only or record.driver in ("host", "null"):
            continue
        try:
            fabric.ipam.add_network(record)
        except EngineError as error:
            warnings.append(f"network {record.name}: {error}")
            log.error("network %s cannot have its subnet: %s", record.name, error)
            continue
        try:
            if record.driver == "bridge":
                _bridge_only(fabric, record)
            else:
                fabric.networks[record.id] = fabric.realise(record)
        except (EngineError, NetlinkError) as error:
            if record.is_default:
                raise
            warnings.append(f"network {record.name} could not be set up: {error}")
            log.error("network %s could not be set up: %s", record.name, error)


def _bridge_only(fabric: Fabric, record: NetworkRecord) -> None:
    """Make sure of the bridge; the firewall of all networks is put right in one go afterwards."""
    firewall, fabric.firewall = fabric.firewall, None
    try:
        fabric.realise(record)
    finally:
        fabric.firewall = firewall


def _as_it_is(fabric: Fabric, sandbox: SandboxRecord, present: Collection[str]) -> SandboxRecord:
    """Leave out of a sandbox what the kernel does not have: a daemon was killed while it plugged it in, or out."""
    lost = {endpoint.id for endpoint in sandbox.endpoints if endpoint.host_link and endpoint.host_link not in present}
    if not lost:
        return sandbox
    for endpoint in sandbox.endpoints:
        if endpoint.id in lost:
            log.warning("container %s has left network %s: its link is gone", sandbox.name, endpoint.network_name)
    sandbox = replace(sandbox, endpoints=tuple(each for each in sandbox.endpoints if each.id not in lost))
    fabric.files.put(sandbox)
    namespace = namespaces.open_path(Path(sandbox.netns))
    if namespace is not None:
        try:
            with namespaces.inside(namespace), RouteSocket() as inner:
                links.default_routes(inner, sandbox.endpoints)
        except (OSError, NetlinkError) as error:
            log.warning("container %s: its default route could not be set: %s", sandbox.name, error)
        finally:
            os.close(namespace)
    return sandbox


def _take_back(fabric: Fabric, sandbox: SandboxRecord, warnings: list[str]) -> None:
    fabric.sandboxes[sandbox.container_id] = sandbox
    for endpoint in sandbox.endpoints:
        network = fabric.networks.get(endpoint.network_id) or _same_bridge(fabric, endpoint)
        if network is None:
            warnings.append(
                f"container {sandbox.name} is in network {endpoint.network_name}, which is not known any more"
            )
            continue
        for text in endpoint.addresses:
            address = ipaddress.ip_address(text)
            subnet = network.subnet_of(address)
            try:
                if subnet is not None:
                    fabric.ipam.claim(subnet, address)
            except EngineError as error:
                warnings.append(f"address {text} of container {sandbox.name}: {error}")
    for port in sandbox.ports:
        if port.host_port:
            fabric.ports.add(port)
    if not namespaces.is_pinned(Path(sandbox.netns)):
        warnings.append(f"the network namespace of container {sandbox.name} is not pinned any more")


def _same_bridge(fabric: Fabric, endpoint: EndpointRecord) -> NetworkRecord | None:
    """Return the network whose bridge a container's link is on: its addresses are taken whatever it is called."""
    bridge = _bridge_of(fabric, endpoint)
    return next((record for record in fabric.networks.values() if bridge and record.interface == bridge), None)


def _sweep(fabric: Fabric) -> None:
    """Remove namespaces and links that nobody knows: a daemon was killed while it made them.

    The default bridge stays: other daemons may share it.
    """
    for path in (*fabric.exec_root.netns.iterdir(), *fabric.exec_root.userns.iterdir()):
        if path.name not in fabric.sandboxes:
            namespaces.remove(path)
    known = {endpoint.host_link for sandbox in fabric.sandboxes.values() for endpoint in sandbox.endpoints}
    known |= {record.interface for record in fabric.networks.values()}
    known |= {
        _bridge_of(fabric, endpoint)
        for sandbox in fabric.sandboxes.values()
        for endpoint in sandbox.endpoints
        if endpoint.network_id not in fabric.networks
    }
    stray, orphans = [], []
    for link in fabric.route.links():
        if link.name in known:
            continue
        if link.kind == "veth" and link.name.startswith(fabric.link_prefix):
            stray.append(link.name)
        elif link.alias == fabric.link_tag and link.name != DEFAULT_NAME:
            orphans.append(link)
    fabric.route.send(delete_link(link.index, link.name) for link in orphans)
    remove_links(fabric.route, stray)


# -- default networks ---------------------------------------------------------------------------------------------------


def _default_networks(fabric: Fabric, records: dict[str, NetworkRecord], used: bool, warnings: list[str]) -> None:
    for name, driver in (("none", "null"), ("host", "host")):
        if not any(record.name == name for record in records.values()):
            _keep(fabric, records, _record(name, driver))
    old = next((record for record in records.values() if record.is_default), None)
    if not fabric.config.has_default_bridge:
        if old is not None and not used:
            fabric.unrealise(old)
            fabric.store.delete(KIND, old.id)
            del records[old.id]
        return
    wanted = _default_bridge(fabric, old, records)
    if old is not None and used and _differs(old, wanted):
        text = (
            "there are running containers, updated network configuration will not take effect until they have stopped"
        )
        log.warning("%s (bridge %s, wanted %s)", text, _subnets_text(old), _subnets_text(wanted))
        warnings.append(text)
        return
    if old is None or old != wanted:
        if old is not None and old.interface != wanted.interface:
            fabric.unrealise(old)
        _keep(fabric, records, wanted)


def _differs(old: NetworkRecord, new: NetworkRecord) -> bool:
    return (old.subnets, old.interface, old.ipv6) != (new.subnets, new.interface, new.ipv6)


def _subnets_text(record: NetworkRecord) -> str:
    return f"{record.interface} {', '.join(subnet.subnet for subnet in record.subnets)}"


def _record(name: str, driver: str) -> NetworkRecord:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return NetworkRecord(id=secrets.token_hex(32), name=name, driver=driver, created=now, ipv4=name == "bridge")


def _keep(fabric: Fabric, records: dict[str, NetworkRecord], record: NetworkRecord) -> None:
    records[record.id] = record
    fabric.store.put(KIND, record.id, record.to_json())


def _default_bridge(fabric: Fabric, old: NetworkRecord | None, records: dict[str, NetworkRecord]) -> NetworkRecord:
    config = fabric.config
    name = config.bridge_name
    link = fabric.route.link(name)
    if config.bridge and config.bridge != DEFAULT_NAME and link is None:
        raise SystemError_(f"bridge device with non default name {name} must be created manually")
    present = [interface for _, interface in fabric.route.addresses(link.index)] if link is not None else []
    subnets = [_subnet4(fabric, old, present, records)]
    if config.ipv6:
        subnets.append(_subnet6(fabric, old, records))
    base = old or _record("bridge", "bridge")
    options = {
        requests.DEFAULT_BRIDGE: "true",
        requests.ICC: str(config.icc).lower(),
        requests.MASQUERADE: str(config.ip_masq).lower(),
        requests.HOST_BINDING: config.default_bind
        if config.default_bind and ":" not in config.default_bind
        else "0.0.0.0",
        requests.BRIDGE_NAME: name,
        links.MTU_OPTION: str(config.mtu),
    }
    return replace(base, subnets=tuple(subnets), options=options, ipv6=config.ipv6, interface=name)


def _subnet4(
    fabric: Fabric, old: NetworkRecord | None, present: list[Interface], records: dict[str, NetworkRecord]
) -> Subnet:
    config = fabric.config
    found = next((interface for interface in present if interface.version == 4 and not interface.is_link_local), None)
    before = next((s for s in old.subnets if s.version == 4), None) if old is not None else None
    if config.bip is not None:
        network, gateway = config.bip.network, str(config.bip.ip)
    elif found is not None:
        network, gateway = found.network, str(found.ip)
    elif before is not None and not config.fixed_cidr:
        network, gateway = before.network, before.gateway
    elif config.fixed_cidr is not None:
        network, gateway = config.fixed_cidr, str(config.fixed_cidr.network_address + 1)
    else:
        taken = [s.network for record in records.values() if record is not old for s in record.subnets]
        network = fabric.ipam.pick_subnet(4, [*fabric.occupied(), *taken])
        gateway = str(network.network_address + 1)
    ip_range = str(config.fixed_cidr) if config.fixed_cidr is not None and config.fixed_cidr != network else ""
    aux = {"DefaultGatewayIPv4": str(config.default_gateway)} if config.default_gateway is not None else {}
    return Subnet(str(network), ip_range, gateway, aux, by_user=False)


def _subnet6(fabric: Fabric, old: NetworkRecord | None, records: dict[str, NetworkRecord]) -> Subnet:
    config = fabric.config
    before = next((s for s in old.subnets if s.version == 6), None) if old is not None else None
    if config.bip6 is not None:
        network, gateway = config.bip6.network, str(config.bip6.ip)
    elif config.fixed_cidr_v6 is not None:
        network, gateway = config.fixed_cidr_v6, str(config.fixed_cidr_v6.network_address + 1)
    elif before is not None:
        network, gateway = before.network, before.gateway
    else:
        taken = [s.network for record in records.values() if record is not old for s in record.subnets]
        network = fabric.ipam.pick_subnet(6, [*fabric.occupied(), *taken])
        gateway = str(network.network_address + 1)
    ip_range = str(config.fixed_cidr_v6) if config.fixed_cidr_v6 is not None and config.fixed_cidr_v6 != network else ""
    aux = {"DefaultGatewayIPv6": str(config.default_gateway_v6)} if config.default_gateway_v6 is not None else {}
    return Subnet(str(network), ip_range, gateway, aux, by_user=False)
