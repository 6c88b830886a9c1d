"""Makes the kernel forget connections that lead to addresses or ports that have changed hands.

A client that keeps sending UDP from one port keeps its connection alive, and with it a translation to a container that is
gone. TCP needs no such help: its next packet is refused.
"""

import contextlib
import ipaddress
import logging
import socket
import struct
from collections.abc import Collection

from moorage_guest.net.netlink import attributes

log = logging.getLogger(__name__)

_NETFILTER = 12
_CONNTRACK_GET, _CONNTRACK_DELETE = 1 << 8 | 1, 1 << 8 | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_ORIGINAL, _REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCE = {4: 1, 6: 3}
_PROTO_NUMBER, _DESTINATION_PORT = 1, 3
_HEADER = struct.Struct("=IHHIIBBH")


def forget_udp(addresses: Collection[str], ports: Collection[int]) -> int:
    """Delete UDP connections answered by one of the addresses or begun towards one of the host's ports; returns how many.

    Quiet where the kernel does not track connections or does not let them be listed.
    """
    wanted = {ipaddress.ip_address(address).packed for address in addresses}
    chosen = set(ports)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as connection:
            connection.settimeout(10)
            connection.bind((0, 0))
            found = []
            for family in (socket.AF_INET, socket.AF_INET6):
                found += [(family, original) for original in _list(connection, family, wanted, chosen)]
            for family, original in found:
                _delete(connection, family, original)
            return len(found)
    except OSError as error:
        log.debug("connections are not forgotten: %s", error)
        return 0


def _list(connection: socket.socket, family: int, addresses: set[bytes], ports: set[int]) -> list[bytes]:
    version = 4 if family == socket.AF_INET else 6
    connection.send(_HEADER.pack(_HEADER.size, _CONNTRACK_GET, _REQUEST | _DUMP, 1, 0, family, 0, 0))
    found: list[bytes] = []
    while True:
        data = connection.recv(1 << 18)
        at = 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == _DONE:
                return found
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", data, at + 16)
                raise OSError(-number, "cannot list connections")
            entry = attributes(data[at + _HEADER.size : at + length])
            original, reply = entry.get(_ORIGINAL, b""), entry.get(_REPLY, b"")
            protocol = attributes(attributes(original).get(_TUPLE_PROTO, b""))
            if protocol.get(_PROTO_NUMBER) == bytes([socket.IPPROTO_UDP]):
                answered_by = attributes(attributes(reply).get(_TUPLE_IP, b"")).get(_SOURCE[version], b"")
                (port,) = struct.unpack("!H", protocol.get(_DESTINATION_PORT, b"\0\0"))
                if answered_by in addresses or port in ports:
                    found.append(original)
            at += (length + 3) & ~3


def _delete(connection: socket.socket, family: int, original: bytes) -> None:
    body = struct.pack("=HH", len(original) + 4, _ORIGINAL | 0x8000) + original + b"\0" * (-len(original) % 4)
    header = _HEADER.pack(_HEADER.size + len(body), _CONNTRACK_DELETE, _REQUEST | _ACK, 2, 0, family, 0, 0)
    connection.send(header + body)
    # It may have ended by itself meanwhile.
    with contextlib.suppress(TimeoutError):
        connection.recv(1 << 16)
