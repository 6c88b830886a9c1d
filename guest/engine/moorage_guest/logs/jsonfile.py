"""The json-file format: one JSON object a line, ``{"log":"…\\n","stream":"stdout","time":"…"}``, as dockerd writes it.

Bytes that are no UTF-8 are written as ``\\udc80``…``\\udcff``: other readers see U+FFFD, as dockerd would have written;
`decode` gives the very bytes back. Encoding and decoding work on thousands of lines at once: all lines that arrive
together carry the same time, so they differ in nothing but their text.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moorage_guest.logs.formats import STDERR, STDOUT, STREAM_NAMES, Run
from moorage_guest.logs.records import Cut
from moorage_guest.logs.times import parse, short_text

_OPEN = b'{"log":"'

#: How much of a file's end is looked at for the damage of a power cut; longer than any record.
_TAIL = 1 << 17
_STREAM = b'","stream":"'

#: What stands for itself in a JSON string, and the newline, which is dealt with apart.
_PLAIN = b"\n" + bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
_CONTROLS = {
    bytes([byte]): {9: b"\\t", 13: b"\\r"}.get(byte, b"\\u%04x" % byte) for byte in range(0x20) if byte != 0x0A
}


def escape(data: bytes) -> bytes:
    """Return bytes as the inside of a JSON string, but for newlines, which stay."""
    special = data.translate(None, _PLAIN)
    if not special:
        return data
    if b"\\" in special:
        data = data.replace(b"\\", b"\\\\")
    if b'"' in special:
        data = data.replace(b'"', b'\\"')
    if min(special) < 0x20:
        for raw in _CONTROLS.keys() & {bytes([byte]) for byte in set(special)}:
            data = data.replace(raw, _CONTROLS[raw])
    if max(special) >= 0x7F:
        data = data.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace")
    return data


def unescape(text: bytes) -> bytes:
    """Return the bytes that the inside of a JSON string stands for. Raises ValueError."""
    if b"\\" not in text:
        return text
    if b"\\\\" not in text:
        # Without escaped backslashes a backslash and an n are a newline.
        text = text.replace(b"\\n", b"\n")
        if b"\\" not in text:
            return text
    return to_bytes(str(json.loads(b'"' + text + b'"', strict=False)))


def to_bytes(text: str) -> bytes:
    """Return the bytes of a decoded text, the ones that are no UTF-8 as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


class JsonFile:
    """The format with the container's attributes (labels, env, tag) in every record."""

    def __init__(self, attributes: Mapping[str, str] | None = None) -> None:
        self._attributes = b""
        if attributes:
            text = json.dumps(dict(attributes), separators=(",", ":"), sort_keys=True)
            self._attributes = b'"attrs":' + text.encode() + b","

    def _tail(self, stream: int, time_ns: int) -> bytes:
        name = STREAM_NAMES[stream].encode()
        return _STREAM + name + b'",' + self._attributes + b'"time":"' + short_text(time_ns).encode() + b'"}\n'

    def encode(self, stream: int, cut: Cut, time_ns: int) -> bytes:
        """See `Format.encode`."""
        tail = self._tail(stream, time_ns)
        if cut.records:
            return b"".join(_OPEN + escape(record).replace(b"\n", b"\\n") + tail for record in cut.records)
        if not cut.lines:
            return b""
        # The newline of every line but the last is the end of one record and the beginning of the next.
        return _OPEN + escape(cut.lines[:-1]).replace(b"\n", b"\\n" + tail + _OPEN) + b"\\n" + tail

    def whole(self, block: bytes) -> int:
        """See `Format.whole`."""
        return block.rfind(b"\n") + 1

    def sound(self, descriptor: int) -> int:
        """See `Format.sound`."""
        size = os.fstat(descriptor).st_size
        start = max(0, size - _TAIL)
        block = os.pread(descriptor, size - start, start).rstrip(b"\0")
        first = block.find(b"\n") + 1 if start else 0
        if start and not first:
            return size  # a record longer than any of ours: leave it alone
        end = self.whole(block)
        while end > first:
            begin = block.rfind(b"\n", 0, end - 1) + 1
            if _decode_record(block[begin:end], 0) is not None:
                break
            end = begin
        return start + end

    def decode(self, block: bytes) -> Iterator[Run]:
        """See `Format.decode`."""
        at = 0
        while (newline := block.find(b"\n", at)) >= 0:
            tail = _tail_of(block[at:newline])
            if tail is not None:
                # All records that came together have the same end: their text is what differs.
                whole = b"\\n" + tail.text + b"\n"
                if block.startswith(whole, newline + 1 - len(whole)):
                    end = _end_of_run(block, at, newline + 1, whole)
                    data = _text_of_run(block[at + len(_OPEN) : end - len(whole)], whole + _OPEN)
                else:
                    end = newline + 1
                    data = _text_of_part(block[at + len(_OPEN) : newline - len(tail.text)])
                if data is not None:
                    yield Run(tail.stream, tail.time_ns, data, tail.attributes, end)
                    at = end
                    continue
            run = _decode_record(block[at:newline], newline + 1)
            at = newline + 1
            if run is not None:
                yield run

    def align(self, block: bytes) -> int | None:
        """See `Format.align`."""
        return block.find(b"\n") + 1 or None

    def last(self, block: bytes, count: int, *, from_start: bool) -> tuple[int, int]:
        """See `Format.last`."""
        first = 0 if from_start else block.find(b"\n") + 1
        found = 0
        end = len(block)
        while end > first:
            start = block.rfind(b"\n", first, end - 1) + 1 or first
            # The record before decides whether this one begins a line; without one in sight it does not count.
            if start > first:
                before = block.rfind(b"\n", first, start - 1) + 1 or first
                begins = _ends_line(block, before, start)
            else:
                begins = from_start
            end = start
            if begins:
                found += 1
                if found == count:
                    break
        return end, found


def _ends_line(block: bytes, start: int, end: int) -> bool:
    cut = block.find(_STREAM, start, end)
    return cut < 0 or block.endswith(b"\\n", start, cut)


@dataclass(frozen=True)
class _Tail:
    """The end of a record, from the closing quote of its text on, and what it says."""

    text: bytes
    stream: int
    time_ns: int
    attributes: Mapping[str, str]


def _tail_of(line: bytes) -> _Tail | None:
    """Take apart the end of a record as `encode` writes it; None if it is written differently."""
    cut = line.find(_STREAM)
    if cut < 0 or not line.startswith(_OPEN) or not line.endswith(b'"}'):
        return None
    text = line[cut:]
    name_end = text.find(b'"', len(_STREAM))
    time_start = text.rfind(b'"time":"')
    name = text[len(_STREAM) : name_end]
    if time_start <= name_end or name not in (b"stdout", b"stderr"):
        return None
    attributes: Mapping[str, str] = {}
    try:
        time_ns = parse(text[time_start + 8 : -2].decode())
        if text[name_end + 1 : time_start] != b",":
            attributes = json.loads(b"{" + text[name_end + 2 : time_start - 1] + b"}")["attrs"]
    except (ValueError, KeyError):
        return None
    return _Tail(text, STDERR if name == b"stderr" else STDOUT, time_ns, attributes)


def _end_of_run(block: bytes, start: int, end: int, whole: bytes) -> int:
    """Return where the records end that follow the one at ``start`` and end as it does; ``end`` is where that one ends."""
    width = 4096
    while (newline := block.find(b"\n", end)) >= 0:
        if not block.startswith(_OPEN, end) or not block.startswith(whole, newline + 1 - len(whole)):
            break
        # Look further and further ahead, so that neither short nor long runs are looked at more than a few times.
        width *= 4
        last = block.rfind(whole, newline, min(len(block), end + width))
        end = newline + 1 if last < 0 else last + len(whole)
    if block.count(b"\n", start, end) == block.count(whole + _OPEN, start, end) + 1:
        return end
    # Something else stands in between: go on line by line to where it does.
    end = block.index(b"\n", start) + 1
    while (newline := block.find(b"\n", end)) >= 0:
        if not block.startswith(_OPEN, end) or not block.startswith(whole, newline + 1 - len(whole)):
            break
        end = newline + 1
    return end


def _text_of_run(texts: bytes, between: bytes) -> bytes | None:
    """Return the bytes of records that end in a newline, given without their ends; None if one is malformed."""
    data = texts.replace(between, b"\n") + b"\n"
    return data if b"\\" not in data else _text_of_part(data)


def _text_of_part(text: bytes) -> bytes | None:
    """Return the bytes of a record; None if it is malformed."""
    try:
        return unescape(text)
    except ValueError:
        return None


def _decode_record(line: bytes, end: int) -> Run | None:
    """Decode one record that is written differently from how `encode` does it; None if it is none."""
    try:
        record = json.loads(line)
        text, stream = record["log"], record.get("stream", "stdout")
        time_ns = parse(record["time"])
        attributes = record.get("attrs") or {}
        data = to_bytes(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return Run(STDERR if stream == "stderr" else STDOUT, time_ns, data, attributes, end)
