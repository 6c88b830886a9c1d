"""Published ports: what was asked for, which host ports it becomes, and the shape the API shows."""

import errno
import ipaddress
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moorage_guest.errors import EngineError, InvalidParameter, SystemError_
from moorage_guest.net.records import PortBindingRecord

PROTOCOLS = ("tcp", "udp", "sctp")
_ANY = {4: "0.0.0.0", 6: "::"}
_DYNAMIC = (32768, 60999)


@dataclass(frozen=True)
class Wanted:
    """One binding: a container port and where on the host it shall be. ``first`` 0 means any free port."""

    proto: str
    container_port: int
    host_ip: str
    first: int
    last: int


class Holder(Protocol):
    """Who binds sockets."""

    def hold(self, port: PortBindingRecord) -> None:
        """Bind, or raise OSError with the kernel's reason."""

    def unhold(self, port: PortBindingRecord) -> None:
        """Free again."""


def parse_port(text: str) -> tuple[int, str]:
    """Split "80/tcp"; tcp is the default. Raises InvalidParameter in dockerd's words."""
    number, _, proto = text.partition("/")
    proto = proto.lower() or "tcp"
    if proto not in PROTOCOLS:
        raise InvalidParameter(f"invalid proto: {proto}")
    if not number.isascii() or not number.isdigit() or not 0 < int(number) < 65536:
        raise InvalidParameter(f'invalid port specification: "{text}"')
    return int(number), proto


def parse_range(text: str) -> tuple[int, int]:
    """Split "8000-8010" or "8000"; "" and "0" are (0, 0), any port."""
    if text in ("", "0"):
        return 0, 0
    first, dash, last = text.partition("-")
    try:
        low, high = int(first), int(last) if dash else int(first)
    except ValueError:
        raise InvalidParameter(f'invalid port specification: "{text}"') from None
    if not (0 < low < 65536 and 0 < high < 65536 and low <= high):
        raise InvalidParameter(f'invalid port specification: "{text}"')
    return low, high


def wanted_ports(
    bindings: Mapping[str, Sequence[Sequence[str]]], exposed: Iterable[str], *, publish_all: bool
) -> list[Wanted]:
    """Return what is to be published, fixed ports before free ones so that no free choice takes a fixed one."""
    found: list[Wanted] = []
    for spec, places in bindings.items():
        number, proto = parse_port(spec)
        for host_ip, host_port in places or [["", ""]]:
            if host_ip:
                _check_ip(host_ip)
            low, high = parse_range(host_port)
            found.append(Wanted(proto, number, host_ip.strip("[]"), low, high))
    if publish_all:
        for spec in exposed:
            number, proto = parse_port(spec)
            if not any(w.container_port == number and w.proto == proto for w in found):
                found.append(Wanted(proto, number, "", 0, 0))
    return sorted(found, key=lambda w: (w.first == 0, w.last - w.first, w.proto, w.container_port, w.first))


def _check_ip(text: str) -> None:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        raise InvalidParameter(f"invalid IP address: {text}") from None


class PortTable:
    """Which host ports this daemon has given out."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, int], set[str]] = {}
        self._next = _DYNAMIC[0]

    def add(self, port: PortBindingRecord) -> None:
        """Note a port that is held."""
        self._taken.setdefault((port.proto, port.host_port), set()).add(port.host_ip)

    def remove(self, port: PortBindingRecord) -> None:
        """Note that a port is free."""
        key = (port.proto, port.host_port)
        addresses = self._taken.get(key)
        if addresses is not None:
            addresses.discard(port.host_ip)
            if not addresses:
                del self._taken[key]

    def conflict(self, proto: str, host_ip: str, number: int) -> bool:
        """Whether an address and port meet one that is given out."""
        six = ":" in host_ip
        for other in self._taken.get((proto, number), ()):
            if (":" in other) == six and (other == host_ip or _ANY[6 if six else 4] in (other, host_ip)):
                return True
        return False

    def publish(
        self, wanted: Wanted, addresses: Sequence[str], default: Sequence[str], holder: Holder, *, cross: bool
    ) -> list[PortBindingRecord]:
        """Hold one host port on every address that applies and return the bindings; all of them or an error.

        ``addresses`` are the container's; ``default`` the host addresses used when none is asked for. ``cross`` allows
        a host address of one IP version to lead to a container address of the other.
        """
        asked = [wanted.host_ip] if wanted.host_ip else list(default)
        pairs = []
        for host_ip in asked:
            same = [a for a in addresses if (":" in a) == (":" in host_ip)]
            if same:
                pairs.append((host_ip, same[0]))
            elif cross and addresses:
                pairs.append((host_ip, addresses[0]))
        if not pairs:
            return []
        candidates = self._dynamic() if wanted.first == 0 else range(wanted.first, wanted.last + 1)
        failure: EngineError | None = None
        for number in candidates:
            try:
                held = self._hold_all(wanted, number, pairs, holder)
            except _Taken as error:
                failure = SystemError_(str(error))
                continue
            if wanted.first == 0:
                self._next = number + 1 if number < _DYNAMIC[1] else _DYNAMIC[0]
            return held
        if failure is not None and wanted.first == wanted.last != 0:
            raise failure
        raise SystemError_("all ports are allocated") from failure

    def _dynamic(self) -> Iterable[int]:
        low, high = _DYNAMIC
        yield from range(self._next, high + 1)
        yield from range(low, self._next)

    def _hold_all(
        self, wanted: Wanted, number: int, pairs: list[tuple[str, str]], holder: Holder
    ) -> list[PortBindingRecord]:
        held: list[PortBindingRecord] = []
        try:
            for host_ip, container_ip in pairs:
                if self.conflict(wanted.proto, host_ip, number):
                    raise _Taken(f"Bind for {host_port_text(host_ip, number)} failed: port is already allocated")
                port = PortBindingRecord(wanted.proto, host_ip, number, container_ip, wanted.container_port)
                try:
                    holder.hold(port)
                except OSError as error:
                    text = (
                        f"failed to bind host port for {host_port_text(host_ip, number)}:"
                        f"{host_port_text(container_ip, wanted.container_port)}/{wanted.proto}: {_reason(error)}"
                    )
                    if error.errno in (errno.EADDRINUSE, errno.EACCES):
                        raise _Taken(text) from error
                    raise SystemError_(text) from error
                self.add(port)
                held.append(port)
        except EngineError:
            self._give_back(held, holder)
            raise
        except _Taken:
            self._give_back(held, holder)
            raise
        return held

    def _give_back(self, held: list[PortBindingRecord], holder: Holder) -> None:
        for port in held:
            holder.unhold(port)
            self.remove(port)


class _Taken(Exception):
    """The port cannot be had; another one might."""


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


def host_port_text(host_ip: str, port: int) -> str:
    """Return address and port as one writes them, IPv6 in brackets."""
    return f"[{host_ip}]:{port}" if ":" in host_ip else f"{host_ip}:{port}"


def api_ports(ports: Iterable[PortBindingRecord], exposed: Iterable[str]) -> dict[str, list[dict[str, Any]] | None]:
    """Return NetworkSettings.Ports: published ports with their bindings, exposed ones without as null."""
    result: dict[str, list[dict[str, Any]] | None] = {}
    for spec in exposed:
        number, proto = parse_port(spec)
        result[f"{number}/{proto}"] = None
    for port in sorted(ports, key=lambda p: (p.container_port, p.proto, ":" in p.host_ip, p.host_port)):
        key = f"{port.container_port}/{port.proto}"
        bindings = result.get(key) or []
        bindings.append({"HostIp": port.host_ip, "HostPort": str(port.host_port)})
        result[key] = bindings
    return result
