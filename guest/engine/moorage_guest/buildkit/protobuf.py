"""The wire format of protocol buffers (proto3) for messages that are declared as dataclasses are.

    class Exporter(Message):
        type: str = string(1)
        attrs: dict[str, str] = mapping(2)

What a message does not declare is skipped when it is read. Bytes that are no UTF-8 survive in strings as surrogates, since
paths of files are sent as strings. (They are no dataclasses: that would compile five functions for each of a hundred
messages, most of what it takes to import them.) Groups, and messages nested deeper than `MAX_DEPTH`, are refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

#: Messages within messages.
MAX_DEPTH = 32

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

M = TypeVar("M", bound="Message")


class WireError(ValueError):
    """Bytes that are no such message."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one field's value is written and read. ``wire`` is the wire type that it has."""

    number: int
    wire: int
    encode: Callable[[Any], bytes]
    decode: Callable[[Any, int], Any]
    default: Any = None
    """The value that stands for none, or the type that makes it."""
    repeated: bool = False
    entries: bool = False
    """Whether it is a map: a repeated message of key and value."""
    packed: bool = False


@dataclass_transform()
class Message:
    """Base of all messages. Their fields are made by the functions below, are all optional, and may be named or in order."""

    _fields: ClassVar[tuple[tuple[str, _Kind], ...]] = ()
    _by_number: ClassVar[Mapping[int, tuple[str, _Kind]]] = {}
    _plain: ClassVar[Mapping[str, Any]] = {}
    _made: ClassVar[tuple[tuple[str, Callable[[], Any]], ...]] = ()

    def __init_subclass__(cls) -> None:
        found = [(name, kind) for name, kind in vars(cls).items() if isinstance(kind, _Kind)]
        cls._fields = tuple(found)
        cls._by_number = {kind.number: (name, kind) for name, kind in found}
        cls._plain = {name: kind.default for name, kind in found if not isinstance(kind.default, type)}
        cls._made = tuple((name, kind.default) for name, kind in found if isinstance(kind.default, type))

    def __init__(self, *values: Any, **named: Any) -> None:
        own = self.__dict__
        own.update(self._plain)
        for name, make in self._made:
            own[name] = make()
        if values:
            named.update(zip((name for name, _ in self._fields), values, strict=False))
        if len(values) > len(self._fields) or not named.keys() <= own.keys():
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(own)}")
        own.update(named)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items() if value)})"
        )

    def encode(self) -> bytes:
        """Return the message's bytes; fields that have their default are left out."""
        out = bytearray()
        for name, kind in self._fields:
            value = getattr(self, name)
            if not value:  # an empty message inside counts: it is true
                continue
            key = _varint(kind.number << 3 | kind.wire)
            if kind.entries:
                for entry in value.items():
                    piece = kind.encode(entry)
                    out += key + _varint(len(piece)) + piece
                continue
            for each in value if kind.repeated else (value,):
                piece = kind.encode(each)
                out += key
                if kind.wire == _BYTES:
                    out += _varint(len(piece))
                out += piece
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes, depth: int = 0) -> Self:
        """Read a message. Raises WireError."""
        if depth > MAX_DEPTH:
            raise WireError(f"messages are nested deeper than {MAX_DEPTH}")
        message = cls()
        by_number = cls._by_number
        position, end = 0, len(data)
        while position < end:
            key, position = _read_varint(data, position, end)
            wire, found = key & 7, by_number.get(key >> 3)
            if key >> 3 == 0:
                raise WireError("field number 0")
            value: int | bytes
            if wire == _VARINT:
                value, position = _read_varint(data, position, end)
            else:
                if wire == _BYTES:
                    size, position = _read_varint(data, position, end)
                elif wire in (_FIXED64, _FIXED32):
                    size = 8 if wire == _FIXED64 else 4
                else:
                    raise WireError(f"unknown wire type {wire}")
                if size > end - position:
                    raise WireError("a field is cut short")
                value = data[position : position + size]
                position += size
            if found is not None:
                _put(message, found[0], found[1], wire, value, depth)
        return message


def _put(message: Message, name: str, kind: _Kind, wire: int, value: int | bytes, depth: int) -> None:
    if wire != kind.wire:
        if not (kind.packed and wire == _BYTES and isinstance(value, bytes)):
            raise WireError(f"{type(message).__name__}.{name} has wire type {wire} instead of {kind.wire}")
        position, numbers = 0, getattr(message, name)
        while position < len(value):
            number, position = _read_varint(value, position, len(value))
            numbers.append(kind.decode(number, depth))
        return
    read = kind.decode(value, depth)
    if kind.entries:
        key, item = read
        getattr(message, name)[key] = item
    elif kind.repeated:
        getattr(message, name).append(read)
    else:
        setattr(message, name, read)


# -- numbers ------------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    if 0 <= value < 0x80:
        return _SMALL[value]
    if value < 0:
        value += 1 << 64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL = [bytes([value]) for value in range(0x80)]


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= end:
            raise WireError("a number is cut short")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift > 63:
            raise WireError("a number has more than 64 bits")


def _signed(value: int, _depth: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# -- what fields are made of --------------------------------------------------------------------------------------------


def _text(value: bytes, _depth: int) -> str:
    return value.decode("utf-8", "surrogateescape")


def _text_bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _same(value: bytes) -> bytes:
    return value


def _same_bytes(value: bytes, _depth: int) -> bytes:
    return bytes(value)


def _flag(value: int, _depth: int) -> bool:
    return bool(value)


def _reader(cls: type[M]) -> Callable[[bytes, int], M]:
    return lambda value, depth: cls.decode(value, depth + 1)


def _declared(kind: _Kind) -> Any:
    """Return what stands for a field in the body of a class, as what the field will be to those who use it."""
    return kind


def string(number: int) -> str:
    """Declare a string."""
    result: str = _declared(_Kind(number, _BYTES, _text_bytes, _text, ""))
    return result


def strings(number: int) -> list[str]:
    """Declare a repeated string."""
    result: list[str] = _declared(_Kind(number, _BYTES, _text_bytes, _text, repeated=True, default=list))
    return result


def octets(number: int) -> bytes:
    """Declare bytes."""
    result: bytes = _declared(_Kind(number, _BYTES, _same, _same_bytes, b""))
    return result


def octets_list(number: int) -> list[bytes]:
    """Declare repeated bytes."""
    result: list[bytes] = _declared(_Kind(number, _BYTES, _same, _same_bytes, repeated=True, default=list))
    return result


def integer(number: int) -> int:
    """Declare an integer or enumeration of any size, zigzag and fixed ones excepted."""
    result: int = _declared(_Kind(number, _VARINT, _varint, _signed, 0))
    return result


def integers(number: int) -> list[int]:
    """Declare repeated integers; they are read packed or not, and written one by one, which every reader takes."""
    result: list[int] = _declared(_Kind(number, _VARINT, _varint, _signed, repeated=True, packed=True, default=list))
    return result


def boolean(number: int) -> bool:
    """Declare a bool."""
    result: bool = _declared(_Kind(number, _VARINT, _varint, _flag, False))
    return result


def embedded(number: int, cls: type[M]) -> M | None:
    """Declare a message inside the message; None while it is not there, so one of a ``oneof`` is told from the others."""
    result: M | None = _declared(_Kind(number, _BYTES, cls.encode, _reader(cls), default=None))
    return result


def embedded_list(number: int, cls: type[M]) -> list[M]:
    """Declare repeated messages."""
    result: list[M] = _declared(_Kind(number, _BYTES, cls.encode, _reader(cls), repeated=True, default=list))
    return result


def _map(number: int, key: _Kind, value: _Kind, key_default: Any, value_default: Callable[[], Any]) -> Any:
    def encode(entry: tuple[Any, Any]) -> bytes:
        out = b""
        for kind, item in zip((key, value), entry, strict=True):
            piece = kind.encode(item)
            out += _varint(kind.number << 3 | kind.wire)
            out += (_varint(len(piece)) if kind.wire == _BYTES else b"") + piece
        return out

    def decode(data: bytes, depth: int) -> tuple[Any, Any]:
        found = [key_default, value_default()]
        position, end = 0, len(data)
        while position < end:
            head, position = _read_varint(data, position, end)
            item: int | bytes
            if head & 7 == _VARINT:
                item, position = _read_varint(data, position, end)
            elif head & 7 == _BYTES:
                size, position = _read_varint(data, position, end)
                if size > end - position:
                    raise WireError("an entry of a map is cut short")
                item, position = data[position : position + size], position + size
            else:
                raise WireError(f"unknown wire type {head & 7} in a map")
            for place, kind in enumerate((key, value)):
                if head >> 3 == kind.number:
                    if head & 7 != kind.wire:
                        raise WireError(f"an entry of a map has wire type {head & 7} instead of {kind.wire}")
                    found[place] = kind.decode(item, depth)
        return found[0], found[1]

    return _Kind(number, _BYTES, encode, decode, dict, entries=True)


_STRING_KEY = _Kind(1, _BYTES, _text_bytes, _text)
_INTEGER_KEY = _Kind(1, _VARINT, _varint, _signed)


def mapping(number: int) -> dict[str, str]:
    """Declare a map of strings to strings."""
    result: dict[str, str] = _map(number, _STRING_KEY, _Kind(2, _BYTES, _text_bytes, _text), "", str)
    return result


def octets_mapping(number: int) -> dict[str, bytes]:
    """Declare a map of strings to bytes."""
    result: dict[str, bytes] = _map(number, _STRING_KEY, _Kind(2, _BYTES, _same, _same_bytes), "", bytes)
    return result


def flags_mapping(number: int) -> dict[str, bool]:
    """Declare a map of strings to bool."""
    result: dict[str, bool] = _map(number, _STRING_KEY, _Kind(2, _VARINT, _varint, _flag), "", bool)
    return result


def embedded_mapping(number: int, cls: type[M]) -> dict[str, M]:
    """Declare a map of strings to messages."""
    result: dict[str, M] = _map(number, _STRING_KEY, _Kind(2, _BYTES, cls.encode, _reader(cls)), "", cls)
    return result


def numbered_mapping(number: int, cls: type[M]) -> dict[int, M]:
    """Declare a map of integers to messages."""
    result: dict[int, M] = _map(number, _INTEGER_KEY, _Kind(2, _BYTES, cls.encode, _reader(cls)), 0, cls)
    return result
