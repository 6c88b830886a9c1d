"""DNS messages: just enough to read one question and to write answers of three types (RFC 1035)."""

import ipaddress
import struct
from dataclasses import dataclass

A, PTR, AAAA, ANY = 1, 12, 28, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
IN = 1

#: Seconds an answer may be kept; dockerd's number.
TTL = 600

_HEAD = struct.Struct(">HHHHHH")


class BadMessage(ValueError):
    """The bytes are no question that can be answered."""


@dataclass(frozen=True)
class Question:
    """One question; ``name`` in lower case without the last dot, ``raw`` the question section as it came."""

    id: int
    flags: int
    name: str
    kind: int
    raw: bytes


def parse(message: bytes) -> Question:
    """Read a query with exactly one question of class IN."""
    if len(message) < _HEAD.size:
        raise BadMessage("shorter than a header")
    number, flags, questions, _, _, _ = _HEAD.unpack_from(message)
    if flags & 0x8000 or flags & 0x7800 or questions != 1:
        raise BadMessage("not a standard query with one question")
    labels: list[str] = []
    at = _HEAD.size
    while True:
        if at >= len(message):
            raise BadMessage("name runs over the end")
        length = message[at]
        at += 1
        if length == 0:
            break
        if length > 63 or at + length > len(message):
            raise BadMessage("bad label")
        labels.append(message[at : at + length].decode("latin-1").lower())
        at += length
    if at + 4 > len(message):
        raise BadMessage("question runs over the end")
    kind, kind_class = struct.unpack_from(">HH", message, at)
    if kind_class not in (IN, 255):
        raise BadMessage("class is not IN")
    return Question(number, flags, ".".join(labels), kind, message[_HEAD.size : at + 4])


def encode_name(name: str) -> bytes:
    """Encode a name without compression; labels over 63 bytes are cut."""
    out = b""
    for label in name.split("."):
        raw = label.encode("latin-1", "replace")[:63]
        if raw:
            out += bytes([len(raw)]) + raw
    return out + b"\0"


def answer(question: Question, records: list[tuple[int, bytes]], code: int = NOERROR, *, limit: int = 65535) -> bytes:
    """Write a response with these (type, data) records; over ``limit`` bytes it is cut and marked truncated."""
    flags = 0x8000 | 0x0080 | (question.flags & 0x0100) | code
    body = b""
    count = 0
    for kind, data in records:
        record = b"\xc0\x0c" + struct.pack(">HHIH", kind, IN, TTL, len(data)) + data
        if _HEAD.size + len(question.raw) + len(body) + len(record) > limit:
            flags |= 0x0200
            break
        body += record
        count += 1
    return _HEAD.pack(question.id, flags, 1, count, 0, 0) + question.raw + body


def failure(message: bytes, code: int) -> bytes | None:
    """Answer a message that `parse` refused; None when not even a header is there or it is a response itself."""
    if len(message) < _HEAD.size:
        return None
    number, flags, _, _, _, _ = _HEAD.unpack_from(message)
    if flags & 0x8000:
        return None
    return _HEAD.pack(number, 0x8080 | (flags & 0x7900) | code, 0, 0, 0, 0)


def code_of(message: bytes) -> int:
    """Return the response code of a message."""
    return message[3] & 0x0F if len(message) >= 4 else SERVFAIL


def address_of_reverse(name: str) -> str | None:
    """Return the address that a PTR name stands for."""
    try:
        if name.endswith(".in-addr.arpa"):
            parts = name[: -len(".in-addr.arpa")].split(".")
            return str(ipaddress.IPv4Address(".".join(reversed(parts))))
        if name.endswith(".ip6.arpa"):
            digits = "".join(reversed(name[: -len(".ip6.arpa")].split(".")))
            if len(digits) == 32:
                return str(ipaddress.IPv6Address(int(digits, 16)))
    except ValueError:
        return None
    return None
