"""Addresses: subnets for networks, addresses for endpoints. All in memory, rebuilt from the records at start.

Not thread-safe; the caller serialises. Error texts are dockerd's.
"""

import ipaddress
from collections.abc import Iterable

from moorage_guest.errors import Forbidden, InvalidParameter
from moorage_guest.net.config import Pool
from moorage_guest.net.netlink import Address, Network
from moorage_guest.net.records import NetworkRecord, Subnet


class Ipam:
    """Knows which subnets and addresses are taken. Addresses are handed out lowest first."""

    def __init__(self, pools: tuple[Pool, ...]) -> None:
        self._pools = pools
        self._subnets: dict[Network, str] = {}
        self._taken: dict[Network, set[int]] = {}
        self._hint: dict[Network, int] = {}

    # -- subnets

    def add_network(self, record: NetworkRecord) -> None:
        """Reserve a network's subnets, gateways and auxiliary addresses; raises Forbidden when one overlaps."""
        for subnet in record.subnets:
            self.check_overlap(subnet.network)
        for subnet in record.subnets:
            self._subnets[subnet.network] = record.id
            taken = self._taken[subnet.network] = set()
            for text in (subnet.gateway, *subnet.aux.values()):
                if text:
                    taken.add(int(ipaddress.ip_address(text)))

    def remove_network(self, record: NetworkRecord) -> None:
        """Give a network's subnets back."""
        for subnet in record.subnets:
            self._subnets.pop(subnet.network, None)
            self._taken.pop(subnet.network, None)
            self._hint.pop(subnet.network, None)

    def check_overlap(self, network: Network) -> None:
        """Raise Forbidden when a subnet overlaps one that is in use."""
        if any(other.version == network.version and other.overlaps(network) for other in self._subnets):
            raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")

    def pick_subnet(self, version: int, avoid: Iterable[Network]) -> Network:
        """Return a free subnet of the default pools that overlaps nothing in ``avoid``, which are the host's routes."""
        occupied = [net for net in (*self._subnets, *avoid) if net.version == version]
        for pool in self._pools:
            if pool.base.version != version:
                continue
            for candidate in _subnets(pool):
                if not any(candidate.overlaps(other) for other in occupied):
                    return candidate
        raise InvalidParameter("all predefined address pools have been fully subnetted")

    # -- addresses

    def allocate(self, subnet: Subnet) -> Address:
        """Take the lowest free address of a subnet, within its range."""
        network = subnet.network
        taken = self._taken.setdefault(network, set())
        area = ipaddress.ip_network(subnet.ip_range) if subnet.ip_range else network
        first, last = int(area.network_address), int(area.broadcast_address)
        lowest, highest = _bounds(network)
        first, last = max(first, lowest), min(last, highest)
        number = max(self._hint.get(network, first), first)
        while number in taken:
            number += 1
        if number > last:
            raise Forbidden("no available IPv4 addresses on this network's address pools" if network.version == 4
                            else "no available IPv6 addresses on this network's address pools")  # fmt: skip
        taken.add(number)
        self._hint[network] = number + 1
        return _address(number, network.version)

    def claim(self, subnet: Subnet, address: Address) -> None:
        """Take one address; raises Forbidden when it is taken, InvalidParameter when it cannot be a container's."""
        lowest, highest = _bounds(subnet.network)
        if not lowest <= int(address) <= highest:
            raise InvalidParameter(f"no configured subnet or ip-range contain the IP address {address}")
        taken = self._taken.setdefault(subnet.network, set())
        if int(address) in taken:
            raise Forbidden("Address already in use")
        taken.add(int(address))

    def release(self, subnet: Subnet, address: Address) -> None:
        """Give an address back; quiet when it is free."""
        self._taken.get(subnet.network, set()).discard(int(address))
        hint = self._hint.get(subnet.network)
        if hint is not None:
            self._hint[subnet.network] = min(hint, int(address))


def _subnets(pool: Pool) -> Iterable[Network]:
    base = pool.base
    if isinstance(base, ipaddress.IPv4Network):
        return base.subnets(new_prefix=pool.size)
    return base.subnets(new_prefix=pool.size)


def _address(number: int, version: int) -> Address:
    return ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)


def _bounds(network: Network) -> tuple[int, int]:
    """Return the first and last number that may be an interface's address."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.max_prefixlen - network.prefixlen <= 1:
        return first, last
    return first + 1, last - 1 if network.version == 4 else last
