"""Talks rtnetlink: interfaces, addresses, routes and neighbours, in batches, without a process per change.

One `RouteSocket` belongs to the network namespace it was opened in. Written here instead of taken from a library because
the library costs 18 MB of memory and 0.3 s at start, and the engine needs ten kinds of message. Which links a network
consists of belongs to `links`.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ERROR, _DONE = 2, 3
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26

_REQUEST, _ACK, _DUMP, _EXCL, _CREATE, _REPLACE = 0x1, 0x4, 0x300, 0x200, 0x400, 0x100

IFF_UP = 1

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_NET_NS_FD, IFLA_IFALIAS = 18, 28, 20
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_BRPORT_MODE = 4
_VETH_PEER = 1
_NESTED = 0x8000

_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 0x02

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_TABLE_MAIN, _PROTO_BOOT, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 254, 3, 0, 253, 1

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")


class NetlinkError(OSError):
    """The kernel refused a request; ``errno`` says why, ``request`` which one."""

    def __init__(self, number: int, request: str) -> None:
        super().__init__(number, f"{request}: {os.strerror(number)}")
        self.request = request


def attribute(kind: int, value: bytes | str | int) -> bytes:
    """Encode one attribute: text with its zero, an integer as 32 bits."""
    if isinstance(value, str):
        value = value.encode() + b"\0"
    elif isinstance(value, int):
        value = struct.pack("=I", value)
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode a run of attributes; of repeated ones the last stays."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


@dataclass(frozen=True)
class Message:
    """One request, not yet sent. ``what`` names it in errors; errors in ``ignore`` count as success."""

    kind: int
    flags: int
    body: bytes
    what: str
    ignore: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Link:
    """An interface as the kernel reports it."""

    index: int
    name: str
    up: bool
    mtu: int
    master: int
    mac: str
    kind: str
    alias: str


def mac_bytes(mac: str) -> bytes:
    """Return the six octets of a MAC address in colon notation."""
    return bytes.fromhex(mac.replace(":", "").replace("-", ""))


# -- requests -----------------------------------------------------------------------------------------------------------


def link_body(
    index: int = 0,
    *,
    up: bool | None = None,
    name: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    master: int | None = None,
    namespace: int | None = None,
    alias: str | None = None,
    link: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """Encode an interface description, for new links, changes and veth peers alike."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    if name is not None:
        body += attribute(IFLA_IFNAME, name)
    if mac:
        body += attribute(IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += attribute(IFLA_MTU, mtu)
    if master is not None:
        body += attribute(IFLA_MASTER, master)
    if link is not None:
        body += attribute(IFLA_LINK, link)
    if namespace is not None:
        body += attribute(IFLA_NET_NS_FD, namespace)
    if alias is not None:
        body += attribute(IFLA_IFALIAS, alias.encode())
    return body + extra


def _link_info(kind: str, data: bytes = b"") -> bytes:
    info = attribute(_INFO_KIND, kind)
    if data:
        info += attribute(_INFO_DATA | _NESTED, data)
    return attribute(IFLA_LINKINFO | _NESTED, info)


def add_link(kind: str, name: str, body: bytes, data: bytes = b"") -> Message:
    """Make an interface; fails with EEXIST when the name is taken."""
    return Message(NEWLINK, _CREATE | _EXCL, body + _link_info(kind, data), f"make {kind} {name}")


def add_veth(host: bytes, name: str, peer: bytes) -> Message:
    """Make a veth pair; both ends are described by `link_body`, the peer's may name another namespace."""
    return add_link("veth", name, host, attribute(_VETH_PEER | _NESTED, peer))


def change_link(body: bytes, what: str) -> Message:
    """Change an interface described by `link_body`, found by its index or its name."""
    return Message(NEWLINK, 0, body, what)


def hairpin(name: str) -> Message:
    """Let a bridge send a frame back through the port it came from."""
    info = attribute(_INFO_SLAVE_KIND, "bridge")
    info += attribute(_INFO_SLAVE_DATA | _NESTED, attribute(_BRPORT_MODE, b"\1"))
    body = link_body(name=name) + attribute(IFLA_LINKINFO | _NESTED, info)
    return Message(NEWLINK, 0, body, f"set hairpin mode of {name}")


def delete_link(index: int, what: str) -> Message:
    """Remove an interface; quiet when it is gone."""
    return Message(DELLINK, 0, link_body(index), f"remove {what}", frozenset({errno.ENODEV}))


def _family(address: Address | Network | Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _address_message(kind: int, flags: int, index: int, interface: Interface, what: str, ignore: int) -> Message:
    prefix = interface.network.prefixlen
    body = _IFADDR.pack(_family(interface), prefix, 0, 0, index)
    body += attribute(_IFA_LOCAL, interface.ip.packed) + attribute(_IFA_ADDRESS, interface.ip.packed)
    if interface.version == 4 and prefix < 31:
        body += attribute(_IFA_BROADCAST, interface.network.broadcast_address.packed)
    if interface.version == 6:
        body += attribute(_IFA_FLAGS, _IFA_F_NODAD)
    return Message(kind, flags, body, f"{what} address {interface}", frozenset({ignore}))


def add_address(index: int, interface: Interface) -> Message:
    """Give an interface an address; quiet when it has it. IPv6 addresses skip duplicate detection: IPAM knows better."""
    return _address_message(NEWADDR, _CREATE | _EXCL, index, interface, "add", errno.EEXIST)


def delete_address(index: int, interface: Interface) -> Message:
    """Take an address away; quiet when it is not there."""
    return _address_message(DELADDR, 0, index, interface, "remove", errno.EADDRNOTAVAIL)


def _route_message(
    kind: int, flags: int, destination: Network | None, gateway: Address | None, index: int, version: int, ignore: int
) -> Message:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    prefix = destination.prefixlen if destination is not None else 0
    scope = _SCOPE_UNIVERSE if gateway is not None or version == 6 else _SCOPE_LINK
    body = _RTMSG.pack(family, prefix, 0, 0, _TABLE_MAIN, _PROTO_BOOT, scope, _UNICAST, 0)
    if destination is not None and prefix:
        body += attribute(_RTA_DST, destination.network_address.packed)
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    body += attribute(_RTA_OIF, index)
    verb = "remove" if kind == DELROUTE else "add"
    return Message(kind, flags, body, f"{verb} route {destination or 'default'} via {gateway}", frozenset({ignore}))


def add_route(destination: Network | None, gateway: Address | None, index: int, version: int) -> Message:
    """Add or replace a route; destination None is the default route."""
    return _route_message(NEWROUTE, _CREATE | _REPLACE, destination, gateway, index, version, errno.EEXIST)


def delete_route(destination: Network | None, gateway: Address | None, index: int, version: int) -> Message:
    """Remove a route; quiet when there is none."""
    return _route_message(DELROUTE, 0, destination, gateway, index, version, errno.ESRCH)


# -- socket -------------------------------------------------------------------------------------------------------------


class RouteSocket:
    """A NETLINK_ROUTE socket of the calling thread's namespace. Not thread-safe; calls block for the kernel alone."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._socket.settimeout(30)
        self._sequence = 0

    def __enter__(self) -> "RouteSocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, messages: Iterable[Message]) -> None:
        """Send requests in one go and wait for all answers; raises `NetlinkError` for the first that failed."""
        pending: dict[int, Message] = {}
        data = b""
        for message in messages:
            self._sequence += 1
            pending[self._sequence] = message
            data += self._encode(message, self._sequence, _ACK)
        if not data:
            return
        self._socket.send(data)
        failed: NetlinkError | None = None
        while pending:
            for kind, sequence, body in self._receive():
                if kind != _ERROR or sequence not in pending:
                    continue
                message = pending.pop(sequence)
                (number,) = struct.unpack_from("=i", body)
                if number and -number not in message.ignore and failed is None:
                    failed = NetlinkError(-number, message.what)
        if failed is not None:
            raise failed

    def links(self) -> list[Link]:
        """List all interfaces."""
        return [_parse_link(body) for kind, body in self._dump(GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)) if kind == NEWLINK]

    def link(self, name: str) -> Link | None:
        """Return one interface by name, or None."""
        self._sequence += 1
        self._socket.send(self._encode(Message(GETLINK, 0, link_body(name=name), f"find {name}"), self._sequence, 0))
        while True:
            for kind, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == NEWLINK:
                    return _parse_link(body)
                if kind == _ERROR:
                    (number,) = struct.unpack_from("=i", body)
                    if -number in (errno.ENODEV, 0):
                        return None
                    raise NetlinkError(-number, f"find {name}")

    def addresses(self, index: int | None = None) -> list[tuple[int, Interface]]:
        """List (interface index, address) of one interface or of all."""
        found: list[tuple[int, Interface]] = []
        for _, body in self._dump(GETADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
            _, prefix, _, _, owner = _IFADDR.unpack_from(body)
            if index is not None and owner != index:
                continue
            values = attributes(body[_IFADDR.size :])
            raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
            if raw:
                found.append((owner, ipaddress.ip_interface((raw, prefix))))
        return found

    def routed(self) -> list[tuple[int, Network]]:
        """List (interface index, destination) of the main table's routes, without default routes."""
        found: list[tuple[int, Network]] = []
        for _, body in self._dump(GETROUTE, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(body)
            values = attributes(body[_RTMSG.size :])
            if table != _TABLE_MAIN or kind != _UNICAST or _RTA_DST not in values:
                continue
            (oif,) = struct.unpack("=i", values.get(_RTA_OIF, b"\0\0\0\0"))
            found.append((oif, ipaddress.ip_network((values[_RTA_DST], prefix), strict=False)))
        return found

    def _encode(self, message: Message, sequence: int, flags: int) -> bytes:
        length = _HEADER.size + len(message.body)
        header = _HEADER.pack(length, message.kind, _REQUEST | flags | message.flags, sequence, 0)
        return header + message.body + b"\0" * (-len(message.body) % 4)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            yield kind, sequence, data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3

    def _dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        self._sequence += 1
        self._socket.send(self._encode(Message(kind, _DUMP, body, "list"), self._sequence, 0))
        found: list[tuple[int, bytes]] = []
        while True:
            for answer, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                if answer == _DONE:
                    return found
                if answer == _ERROR:
                    (number,) = struct.unpack_from("=i", payload)
                    raise NetlinkError(-number, "list")
                found.append((answer, payload))


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    values = attributes(body[_IFINFO.size :])
    info = attributes(values.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=_text(values, IFLA_IFNAME),
        up=bool(flags & IFF_UP),
        mtu=_integer(values, IFLA_MTU),
        master=_integer(values, IFLA_MASTER),
        mac=values.get(IFLA_ADDRESS, b"").hex(":"),
        kind=_text(info, _INFO_KIND),
        alias=_text(values, IFLA_IFALIAS),
    )


def _text(values: Mapping[int, bytes], kind: int) -> str:
    return values.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _integer(values: Mapping[int, bytes], kind: int) -> int:
    raw = values.get(kind, b"")
    return int(struct.unpack("=I", raw)[0]) if len(raw) == 4 else 0
