"""What is remembered about networks and the sandboxes of containers, with its JSON form.

Networks outlive a reboot (kind "network" in the store). Sandboxes live as long as the kernel objects they describe, so
their files lie under the exec root.
"""

import ipaddress
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moorage_guest.net.netlink import Address, Interface, Network

VERSION = 1


@dataclass(frozen=True)
class Subnet:
    """One address range of a network; addresses are handed out from ``ip_range`` where there is one."""

    subnet: str
    ip_range: str = ""
    gateway: str = ""
    aux: dict[str, str] = field(default_factory=dict)
    by_user: bool = True

    @property
    def network(self) -> Network:
        return ipaddress.ip_network(self.subnet)

    @property
    def version(self) -> int:
        return self.network.version


@dataclass(frozen=True)
class NetworkRecord:
    """One network as it was created."""

    id: str
    name: str
    driver: str
    created: str
    subnets: tuple[Subnet, ...] = ()
    idle_subnets: tuple[Subnet, ...] = ()
    """IPv6 subnets that were asked for without IPv6: shown, and their addresses taken, to no effect."""
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    internal: bool = False
    attachable: bool = False
    ipv4: bool = True
    ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    config_only: bool = False
    config_from: str = ""
    interface: str = ""
    """Name of the bridge, or of the parent of macvlan and ipvlan links."""
    made_parent: bool = False
    """Whether the parent was made for this network and goes with it."""

    @property
    def is_default(self) -> bool:
        return self.name == "bridge" and self.options.get("com.docker.network.bridge.default_bridge") == "true"

    def subnet_of(self, address: Address) -> Subnet | None:
        """Return the subnet an address lies in."""
        return next((s for s in self.subnets if s.version == address.version and address in s.network), None)

    def gateway(self, version: int) -> str:
        """Return the first gateway of an IP version, or ""."""
        return next((s.gateway for s in self.subnets if s.version == version and s.gateway), "")

    def to_json(self) -> dict[str, Any]:
        """Return the record as the store keeps it."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "NetworkRecord":
        """Read a record back; unknown fields of a newer patch release are left out."""
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        for kind in ("subnets", "idle_subnets"):
            known[kind] = tuple(
                Subnet(**{name: raw[name] for name in Subnet.__dataclass_fields__ if name in raw})
                for raw in value.get(kind, [])
            )
        return cls(**known)


@dataclass(frozen=True)
class PortBindingRecord:
    """One port that is published: host side and container side."""

    proto: str
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int

    @property
    def key(self) -> str:
        """Name of the held socket at netd."""
        return f"{self.proto}/{self.host_ip}/{self.host_port}"


@dataclass(frozen=True)
class EndpointRecord:
    """One container's place in one network."""

    id: str
    network_id: str
    network_name: str
    mac: str
    ipv4: str = ""
    ipv6: str = ""
    gateway4: str = ""
    gateway6: str = ""
    host_link: str = ""
    """Host end of the veth pair; empty where the driver has none."""
    link: str = "eth0"
    dns_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    """"container:alias" as asked for."""
    priority: int = 0
    ports: tuple[PortBindingRecord, ...] = ()
    driver_opts: dict[str, str] = field(default_factory=dict)
    device_route: bool = False
    """Whether the default route leads to the interface itself, as ipvlan's l3 modes have it."""
    asked: dict[str, Any] = field(default_factory=dict)
    """EndpointSettings of the request, JSON."""

    @property
    def interface4(self) -> Interface | None:
        return ipaddress.ip_interface(self.ipv4) if self.ipv4 else None

    @property
    def interface6(self) -> Interface | None:
        return ipaddress.ip_interface(self.ipv6) if self.ipv6 else None

    @property
    def addresses(self) -> list[str]:
        """Addresses without prefix, IPv4 first."""
        return [value.split("/")[0] for value in (self.ipv4, self.ipv6) if value]


@dataclass(frozen=True)
class SandboxRecord:
    """The network namespace of one running container and what is in it."""

    container_id: str
    name: str
    hostname: str
    domainname: str
    netns: str
    endpoints: tuple[EndpointRecord, ...] = ()
    servers: tuple[str, ...] = ()
    """DNS servers asked about names that are no container's."""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    resolver: bool = False
    """Whether 127.0.0.11 answers in there."""
    links: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    bindings: dict[str, list[list[str]]] = field(default_factory=dict)
    """Published ports as asked for: "80/tcp" → [[host ip, host port]]."""
    publish_all: bool = False

    def endpoint(self, network_id: str) -> EndpointRecord | None:
        """Return the endpoint in one network."""
        return next((e for e in self.endpoints if e.network_id == network_id), None)

    @property
    def ports(self) -> list[PortBindingRecord]:
        return [port for endpoint in self.endpoints for port in endpoint.ports]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "SandboxRecord":
        """Read a record back."""
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        for name in ("servers", "dns", "dns_search", "dns_options", "links", "extra_hosts", "exposed"):
            known[name] = tuple(known.get(name, ()))
        endpoints = []
        for raw in value.get("endpoints", []):
            fields = {name: raw[name] for name in EndpointRecord.__dataclass_fields__ if name in raw}
            for name in ("dns_names", "aliases", "links"):
                fields[name] = tuple(fields.get(name, ()))
            fields["ports"] = tuple(PortBindingRecord(**port) for port in fields.get("ports", ()))
            endpoints.append(EndpointRecord(**fields))
        known["endpoints"] = tuple(endpoints)
        return cls(**known)


class SandboxFiles:
    """Keeps one JSON file per sandbox in a folder; written by rename, never flushed: a reboot ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, record: SandboxRecord) -> None:
        """Insert or replace a record."""
        text = json.dumps({"version": VERSION, **asdict(record)}, separators=(",", ":"))
        path = self._folder / f"{record.container_id}.json"
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
        temporary.rename(path)

    def delete(self, container_id: str) -> None:
        """Remove a record; quiet when there is none."""
        (self._folder / f"{container_id}.json").unlink(missing_ok=True)

    def all(self) -> tuple[dict[str, SandboxRecord], list[str]]:
        """Return the readable records by container, and the container ids whose files are damaged."""
        records: dict[str, SandboxRecord] = {}
        damaged: list[str] = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                records[path.stem] = SandboxRecord.from_json(json.loads(path.read_text()))
            except (ValueError, TypeError, KeyError, AttributeError):
                damaged.append(path.stem)
        for leftover in self._folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        return records, damaged
