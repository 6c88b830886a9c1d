"""Which name has which addresses, seen from which container."""

import ipaddress
import random
from dataclasses import dataclass, field
from typing import Any

from moorage_guest.net.netd import wire


@dataclass
class Endpoint:
    """One container in one network; the first name is the one reverse lookups give."""

    names: list[str]
    addresses: list[str]


@dataclass
class Place:
    """A network that a container is in, with the link aliases it has there."""

    network_id: str
    network_name: str
    links: dict[str, str] = field(default_factory=dict)


class Names:
    """Names by network and, within one, by endpoint."""

    def __init__(self) -> None:
        self.networks: dict[str, dict[str, Endpoint]] = {}
        self._index: dict[tuple[str, str], list[str]] = {}

    def put(self, network_id: str, endpoint_id: str, names: list[str], addresses: list[str]) -> None:
        """Insert or replace an endpoint."""
        self.drop(network_id, endpoint_id)
        lowered = [name.lower() for name in names]
        self.networks.setdefault(network_id, {})[endpoint_id] = Endpoint(lowered, addresses)
        for name in dict.fromkeys(lowered):
            self._index.setdefault((network_id, name), []).append(endpoint_id)

    def drop(self, network_id: str, endpoint_id: str) -> None:
        """Remove an endpoint; quiet when there is none."""
        endpoints = self.networks.get(network_id, {})
        endpoint = endpoints.pop(endpoint_id, None)
        if endpoint is None:
            return
        if not endpoints:
            del self.networks[network_id]
        for name in dict.fromkeys(endpoint.names):
            holders = self._index[network_id, name]
            holders.remove(endpoint_id)
            if not holders:
                del self._index[network_id, name]

    def addresses(self, places: list[Place], name: str) -> list[str] | None:
        """Return a name's addresses in random order, or None when no network of the asker knows it."""
        for place in places:
            for candidate in self._readings(place, name):
                holders = self._index.get((place.network_id, candidate))
                if holders:
                    endpoints = self.networks[place.network_id]
                    found = [address for holder in holders for address in endpoints[holder].addresses]
                    random.shuffle(found)
                    return found
        return None

    def _readings(self, place: Place, name: str) -> list[str]:
        readings = [place.links[name]] if name in place.links else []
        readings.append(name)
        suffix = "." + place.network_name.lower()
        if name.endswith(suffix):
            short = name[: -len(suffix)]
            readings.append(place.links.get(short, short))
        return readings

    def reverse(self, places: list[Place], address: str) -> str | None:
        """Return the full name of an address."""
        for place in places:
            for endpoint in self.networks.get(place.network_id, {}).values():
                if address in endpoint.addresses and endpoint.names:
                    return f"{endpoint.names[0]}.{place.network_name}"
        return None

    def answer(self, places: list[Place], question: wire.Question, limit: int) -> bytes | None:
        """Answer a question about a container, or return None when it is about something else."""
        if question.kind == wire.PTR:
            address = wire.address_of_reverse(question.name)
            name = self.reverse(places, address) if address else None
            if name is None:
                return None
            return wire.answer(question, [(wire.PTR, wire.encode_name(name))], limit=limit)
        addresses = self.addresses(places, question.name)
        if addresses is None:
            return None
        records = []
        for text in addresses:
            parsed = ipaddress.ip_address(text)
            kind = wire.A if parsed.version == 4 else wire.AAAA
            if question.kind in (kind, wire.ANY):
                records.append((kind, parsed.packed))
        return wire.answer(question, records, limit=limit)


def places_from(value: list[dict[str, Any]]) -> list[Place]:
    """Read places from a request."""
    return [
        Place(
            str(raw["id"]),
            str(raw["name"]),
            {str(alias).lower(): str(target).lower() for alias, target in raw.get("links", {}).items()},
        )
        for raw in value
    ]
