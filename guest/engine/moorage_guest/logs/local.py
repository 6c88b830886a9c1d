"""The format of the ``local`` driver: binary frames with a checksum, one for all that arrived at once.

Frame: length of the whole frame, stream, time, length of the attributes, attributes as JSON, data, CRC-32 of all that,
the length again, so that a file can be read from its end. Not the format of dockerd's local driver: nobody but the
daemon reads it, as Docker's manual says of its own.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping

from moorage_guest.logs.formats import Run
from moorage_guest.logs.records import Cut

_HEAD = struct.Struct("!IBQI")
_FOOT = struct.Struct("!II")
_LEAST = _HEAD.size + _FOOT.size


class Local:
    """The format with the container's attributes (labels, env, tag) in every frame."""

    def __init__(self, attributes: Mapping[str, str] | None = None) -> None:
        self._attributes = json.dumps(dict(attributes), sort_keys=True).encode() if attributes else b""

    def encode(self, stream: int, cut: Cut, time_ns: int) -> bytes:
        """See `Format.encode`."""
        data = b"".join(cut.records) if cut.records else cut.lines
        if not data:
            return b""
        length = _LEAST + len(self._attributes) + len(data)
        body = _HEAD.pack(length, stream, time_ns, len(self._attributes)) + self._attributes + data
        return body + _FOOT.pack(zlib.crc32(body), length)

    def whole(self, block: bytes) -> int:
        """See `Format.whole`."""
        end = 0
        for start, length in _frames(block):
            end = start + length
        return end

    def sound(self, descriptor: int) -> int:
        """See `Format.sound`."""
        size = os.fstat(descriptor).st_size
        if size >= _LEAST:
            (_, length) = _FOOT.unpack(os.pread(descriptor, _FOOT.size, size - _FOOT.size))
            if _LEAST <= length <= size and _is_sound(os.pread(descriptor, length, size - length)):
                return size
        end = 0
        while size - end >= _LEAST:
            (length, *_) = _HEAD.unpack(os.pread(descriptor, _HEAD.size, end))
            if not _LEAST <= length <= size - end or not _is_sound(os.pread(descriptor, length, end)):
                break
            end += length
        return end

    def decode(self, block: bytes) -> Iterator[Run]:
        """See `Format.decode`."""
        for start, length in _frames(block):
            frame = block[start : start + length]
            if not _is_sound(frame):
                continue
            _, stream, time_ns, width = _HEAD.unpack_from(frame)
            split = _HEAD.size + width
            attributes = json.loads(frame[_HEAD.size : split]) if width else {}
            yield Run(stream, time_ns, frame[split : -_FOOT.size], attributes, start + length)

    def align(self, block: bytes) -> int | None:
        """See `Format.align`."""
        return None

    def last(self, block: bytes, count: int, *, from_start: bool) -> tuple[int, int]:
        """See `Format.last`."""
        found = 0
        end = len(block)
        while end >= _LEAST and found < count:
            (_, length) = _FOOT.unpack_from(block, end - _FOOT.size)
            start = end - length
            if not _LEAST <= length <= end:
                break
            _, _, _, width = _HEAD.unpack_from(block, start)
            found += block.count(b"\n", start + _HEAD.size + width, end - _FOOT.size)
            if block[end - _FOOT.size - 1] != 0x0A and end == len(block):
                found += 1  # the unfinished line at the very end
            end = start
        return end, found


def _frames(block: bytes) -> Iterator[tuple[int, int]]:
    """Return (start, length) of the whole frames from the block's beginning on."""
    start = 0
    while len(block) - start >= _LEAST:
        (length,) = struct.unpack_from("!I", block, start)
        if not _LEAST <= length <= len(block) - start:
            return
        yield start, length
        start += length


def _is_sound(frame: bytes) -> bool:
    checksum, length = _FOOT.unpack_from(frame, len(frame) - _FOOT.size)
    return bool(length == len(frame) and zlib.crc32(frame[: -_FOOT.size]) == checksum)
