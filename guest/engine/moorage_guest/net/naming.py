"""What containers call each other: names told to netd, and the files hosts, hostname and resolv.conf.

Synchronous, on the network thread.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from moorage_guest.api.types import EndpointSettings, HostConfig
from moorage_guest.errors import SystemError_
from moorage_guest.net import hostfiles, namespaces
from moorage_guest.net.fabric import Fabric
from moorage_guest.net.hostalias import NAMES, machine_host
from moorage_guest.net.netd.resolver import PORT
from moorage_guest.net.nftables import Nftables, NftablesError
from moorage_guest.net.records import NetworkRecord, SandboxRecord

#: Leads 127.0.0.11:53 to netd's sockets in the same namespace; conntrack turns the answers back.
_RESOLVER_RULES = f"""
add table ip moorage-dns
add chain ip moorage-dns output {{ type nat hook output priority -100; }}
flush chain ip moorage-dns output
add rule ip moorage-dns output ip daddr {hostfiles.RESOLVER} udp dport 53 dnat to {hostfiles.RESOLVER}:{PORT}
add rule ip moorage-dns output ip daddr {hostfiles.RESOLVER} tcp dport 53 dnat to {hostfiles.RESOLVER}:{PORT}
"""


class Naming:
    """Names and files of sandboxes."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def host_gateways(self) -> list[str]:
        """Return what host-gateway stands for."""
        if self._fabric.config.host_gateway_ips:
            return list(self._fabric.config.host_gateway_ips)
        if (machine := machine_host(self._fabric.config.machine_marker)) != "":
            return [machine]
        default = next((n for n in self._fabric.networks.values() if n.is_default), None)
        return [] if default is None else [g for g in (default.gateway(4), default.gateway(6)) if g]

    def extra_hosts(self, entries: Sequence[str]) -> list[tuple[str, str]]:
        """Return the lines asked for, and the names of the machine around this one unless they were."""
        pairs = hostfiles.parse_extra_hosts(entries, self.host_gateways())
        machine = machine_host(self._fabric.config.machine_marker)
        if machine:
            pairs += [(name, machine) for name in NAMES if all(name != other for other, _ in pairs)]
        return pairs

    def write_host_files(
        self, container_id: str, hostname: str, domainname: str, host: HostConfig, *, host_network: bool
    ) -> None:
        """Write the three files of a container that has no sandbox of its own: network mode host or none."""
        fabric = self._fabric
        folder = self.folder(container_id)
        names = hostfiles.resolution(fabric.config, host.dns, host.dns_search, host.dns_options, embedded=False)
        extra = self.extra_hosts(host.extra_hosts)
        if host_network:
            plain = not (host.dns or host.dns_search or host.dns_options or fabric.config.dns)
            with contextlib.suppress(OSError):
                text = fabric.config.hosts.read_text(errors="surrogateescape")
                lines = [f"{address}\t{name}" for name, address in extra]
                if lines:
                    text = text.rstrip("\n") + "\n" + "".join(f"{line}\n" for line in lines)
                hostfiles.write(folder / "hosts", text)
            if plain and fabric.config.resolv_conf.exists():
                text = fabric.config.resolv_conf.read_text(errors="surrogateescape")
            else:
                text = names.conf.text()
            hostfiles.write(folder / "resolv.conf", text)
        else:
            hostfiles.write(folder / "resolv.conf", names.conf.text())
        if not host_network or not (folder / "hosts").exists():
            ipv6 = fabric.ipv6 and hostfiles.speaks_ipv6(host.sysctls)
            own = hostfiles.hosts_text([], hostname, domainname, extra, ipv6=ipv6)
            hostfiles.write(folder / "hosts", own)
        hostfiles.write(folder / "hostname", f"{hostname}\n")
        self._give(folder)

    def folder(self, container_id: str) -> Path:
        """Return the folder of a container's files, made when it is not there."""
        folder = self._fabric.data.container(container_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o710)
        self._fabric.ids.let_through(folder.parent, folder)
        return folder

    def write_files(self, record: SandboxRecord, names: hostfiles.Resolution, *, ipv6: bool) -> None:
        """Write the three files of a container with a sandbox; without ``ipv6`` it has switched that off for itself."""
        folder = self.folder(record.container_id)
        extra = self.extra_hosts(record.extra_hosts)
        own = [address for endpoint in record.endpoints for address in endpoint.addresses]
        ipv6 = ipv6 and (any(e.ipv6 for e in record.endpoints) or self._fabric.ipv6)
        text = hostfiles.hosts_text(own, record.hostname, record.domainname, [], ipv6=ipv6)
        text += "".join(f"{line}\n" for line in self._link_lines(record))
        text += "".join(f"{address}\t{name}\n" for name, address in extra)
        hostfiles.write(folder / "hosts", text)
        hostfiles.write(folder / "hostname", f"{record.hostname}\n")
        note = (
            f"Names of containers are answered here, others by: {', '.join(names.upstream)}" if names.upstream else ""
        )
        hostfiles.write(folder / "resolv.conf", names.conf.text(note))
        self._give(folder)

    def _give(self, folder: Path) -> None:
        self._fabric.ids.give(*(folder / name for name in ("hosts", "hostname", "resolv.conf")))

    def _link_lines(self, record: SandboxRecord) -> list[str]:
        """Return hosts lines of links on the default network; elsewhere links are names that netd answers."""
        default = next((e for e in record.endpoints if not self.is_user_defined(e.network_id)), None)
        if default is None:
            return []
        lines = []
        for link in record.links:
            target_name, alias = split_link(link)
            for other in self._fabric.sandboxes.values():
                if other.container_id != record.container_id and answers_to(other, target_name):
                    there = other.endpoint(default.network_id)
                    for address in there.addresses if there is not None else ():
                        words = dict.fromkeys((alias, other.hostname, other.name))
                        lines.append(f"{address}\t{' '.join(word for word in words if word)}")
        return lines

    def update_linked(self, record: SandboxRecord) -> None:
        """Tell containers that are linked to this one its address of now."""
        for other in self._fabric.sandboxes.values():
            for link in other.links:
                target, alias = split_link(link)
                if other.container_id == record.container_id or not answers_to(record, target):
                    continue
                path = self._fabric.data.container(other.container_id) / "hosts"
                with contextlib.suppress(OSError):
                    old = [
                        line.split()[0]
                        for line in path.read_text(errors="replace").splitlines()
                        if len(line.split()) > 1 and line.split()[1] == alias
                    ]
                    hostfiles.edit_hosts(path, old, self._link_lines(other))

    def tell(self, record: SandboxRecord) -> None:
        """Make a sandbox's names known and its resolver serve."""
        for endpoint in record.endpoints:
            if self.is_user_defined(endpoint.network_id):
                self._fabric.netd.request(
                    "name",
                    network=endpoint.network_id,
                    endpoint=endpoint.id,
                    names=list(endpoint.dns_names),
                    addresses=endpoint.addresses,
                )
        if record.resolver:
            self.tell_resolver(record)

    def tell_resolver(self, record: SandboxRecord) -> None:
        namespace = namespaces.open_path(Path(record.netns))
        if namespace is None:
            raise SystemError_(f"network namespace {record.netns} of container {record.name} is gone")
        places = [
            {
                "id": endpoint.network_id,
                "name": endpoint.network_name,
                "links": {alias: target for target, alias in map(split_link, endpoint.links)},
            }
            for endpoint in record.endpoints
            if self.is_user_defined(endpoint.network_id)
        ]
        outward = any(e.gateway4 or e.gateway6 or e.device_route for e in record.endpoints)
        servers = list(record.servers) if outward else []
        try:
            self._fabric.netd.request(
                "sandbox", [namespace], sandbox=record.container_id, places=places, servers=servers
            )
        finally:
            os.close(namespace)

    def is_user_defined(self, network_id: str) -> bool:
        network = self._fabric.networks.get(network_id)
        return network is None or user_defined(network)


def lead_to_resolver() -> None:
    """Set the rules of the resolver's address in the namespace that the calling thread is in."""
    nft = Nftables()
    try:
        nft.run(_RESOLVER_RULES)
    except NftablesError as error:
        raise SystemError_(f"failed to lead {hostfiles.RESOLVER}:53 to the resolver: {error}") from error
    finally:
        nft.close()


def user_defined(network: NetworkRecord) -> bool:
    """Whether containers have names in a network; they have none in the default one."""
    return not network.is_default and network.driver not in ("host", "null")


def dns_names(sandbox: SandboxRecord, settings: EndpointSettings) -> tuple[str, ...]:
    """Return the names an endpoint answers to: the container's, its aliases, its short id, its host name."""
    names = [sandbox.name, *(settings.aliases or ()), sandbox.container_id[:12], sandbox.hostname]
    return tuple(dict.fromkeys(name for name in names if name))


def split_link(link: str) -> tuple[str, str]:
    """Split "container:alias"; without alias the container's name is it."""
    target, _, alias = link.partition(":")
    target = target.rsplit("/", 1)[-1] if target.startswith("/") else target
    return target, (alias or target).rsplit("/", 1)[-1]


def answers_to(sandbox: SandboxRecord, reference: str) -> bool:
    """Whether a link's target means this container."""
    return reference == sandbox.name or (len(reference) >= 12 and sandbox.container_id.startswith(reference))
