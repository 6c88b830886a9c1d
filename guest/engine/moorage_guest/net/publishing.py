"""Publishes containers' ports: which endpoint, which host ports, the kernel's rules and netd's sockets together.

Synchronous, on the network thread.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import replace

from moorage_guest.errors import EngineError, SystemError_
from moorage_guest.net import requests
from moorage_guest.net.conntrack import forget_udp
from moorage_guest.net.fabric import Fabric
from moorage_guest.net.firewall import removal
from moorage_guest.net.netlink import hairpin
from moorage_guest.net.ports import Wanted, wanted_ports
from moorage_guest.net.records import EndpointRecord, NetworkRecord, PortBindingRecord, SandboxRecord


class Publisher:
    """Ports of sandboxes; what it returns is the record to keep."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def hold(self, port: PortBindingRecord) -> None:
        """Bind a host port at netd."""
        carry = self._fabric.config.userland_proxy or self._fabric.firewall is None
        self._fabric.netd.request(
            "hold",
            key=port.key,
            proto=port.proto,
            host=port.host_ip,
            port=port.host_port,
            target=port.container_ip,
            target_port=port.container_port,
            carry=carry,
        )

    def unhold(self, port: PortBindingRecord) -> None:
        """Free a host port."""
        with contextlib.suppress(OSError):
            self._fabric.netd.request("unhold", key=port.key)

    def publish(self, record: SandboxRecord, wanted: list[Wanted]) -> SandboxRecord:
        """Publish on the endpoint that has the default route."""
        endpoint = self.outlet(record)
        if endpoint is None:
            return record
        fabric = self._fabric
        network = fabric.networks[endpoint.network_id]
        modes = {4: network.options.get(requests.MODE4, ""), 6: network.options.get(requests.MODE6, "")}
        routed = [a for a in endpoint.addresses if modes[6 if ":" in a else 4] == "routed"]
        mapped = [a for a in endpoint.addresses if a not in routed]
        held: list[PortBindingRecord] = []
        try:
            for port in wanted:
                held += [PortBindingRecord(port.proto, "", 0, a, port.container_port) for a in routed]
                if mapped:
                    held += fabric.ports.publish(
                        port, mapped, self._default_bind(network), self, cross=fabric.config.userland_proxy
                    )
            fabric.change_firewall(fabric.port_rules(held))
            _forget(held)
            if held and fabric.firewall is not None:
                # Where the bridge calls the firewall, a container that uses its own published port is answered by the
                # bridge, through the port the question came from.
                fabric.route.send([hairpin(endpoint.host_link)])
        except BaseException as error:
            self.withdraw(held)
            if isinstance(error, EngineError):
                raise SystemError_(
                    "driver failed programming external connectivity on endpoint "
                    f"{record.name} ({endpoint.id}): {error}"
                ) from error
            raise
        return with_endpoint(record, replace(endpoint, ports=tuple(held)))

    def _default_bind(self, network: NetworkRecord) -> list[str]:
        text = network.options.get(requests.HOST_BINDING, "") or self._fabric.config.default_bind
        if text and text not in ("0.0.0.0", "::"):
            return [text]
        return ["0.0.0.0", "::"] if self._fabric.ipv6 else ["0.0.0.0"]

    def outlet(self, record: SandboxRecord) -> EndpointRecord | None:
        """Return the endpoint that ports are published on."""
        candidates = [
            endpoint
            for endpoint in record.endpoints
            if (network := self._fabric.networks.get(endpoint.network_id)) is not None
            and network.driver == "bridge"
            and not network.internal
        ]
        return min(candidates, key=lambda e: (-e.priority, e.network_name), default=None)

    def withdraw(self, ports: Iterable[PortBindingRecord]) -> None:
        ports = list(ports)
        if not ports:
            return
        fabric = self._fabric
        fabric.change_firewall(removal(fabric.port_rules(ports)))
        for port in ports:
            if port.host_port:
                self.unhold(port)
                fabric.ports.remove(port)
        _forget(ports)

    def move(self, record: SandboxRecord) -> SandboxRecord:
        """Publish on another endpoint, with the same host ports, when the default route has moved."""
        outlet = self.outlet(record)
        holders = [endpoint for endpoint in record.endpoints if endpoint.ports]
        if outlet is None or (holders and holders[0].id == outlet.id):
            return record
        wanted: list[Wanted] = []
        for endpoint in holders:
            wanted += [
                Wanted(port.proto, port.container_port, port.host_ip, port.host_port, port.host_port)
                for port in endpoint.ports
            ]
            self.withdraw(endpoint.ports)
            record = with_endpoint(record, replace(endpoint, ports=()))
        if not holders:
            wanted = wanted_ports(record.bindings, record.exposed, publish_all=record.publish_all)
        return self.publish(record, wanted) if wanted else record


def with_endpoint(record: SandboxRecord, endpoint: EndpointRecord) -> SandboxRecord:
    """Return a sandbox with one of its endpoints replaced."""
    return replace(record, endpoints=tuple(endpoint if e.id == endpoint.id else e for e in record.endpoints))


def _forget(ports: Iterable[PortBindingRecord]) -> None:
    """Let UDP clients of ports that come or go start anew."""
    udp = [port for port in ports if port.proto == "udp"]
    if udp:
        forget_udp({port.container_ip for port in udp}, {port.host_port for port in udp if port.host_port})
