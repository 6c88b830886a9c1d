"""Cuts a stream into records: one a line, and a line of 16 KiB or more into records of 16 KiB, as dockerd does.

The cuts depend on the bytes alone, never on how they arrived.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moorage_guest.logs.journal import MAX_HELD, StreamState

_WINDOW = MAX_HELD // 2


@dataclass(frozen=True)
class Cut:
    """What a chunk gives: either ``lines``, whole lines none of which is long, for encoding in one go, or ``records``
    one by one (one without a newline at its end goes on in the next); and the state afterwards."""

    lines: bytes
    records: Sequence[bytes]
    state: StreamState


def _all_short(data: bytes) -> bool:
    """Whether no line of whole lines can reach 16 KiB: there is a newline in every aligned window of half that."""
    return all(data.find(b"\n", start, start + _WINDOW) >= 0 for start in range(0, len(data) - _WINDOW + 1, _WINDOW))


def cut(state: StreamState, chunk: bytes) -> Cut:
    """Add a chunk to what is held back and take the finished records out."""
    data = state.held + chunk if state.held else chunk
    consumed = state.consumed + len(chunk)
    end = data.rfind(b"\n") + 1
    rest = data[end:]
    if not state.continued and len(rest) < MAX_HELD and _all_short(data[:end] if rest else data):
        return Cut(data[:end] if rest else data, (), StreamState(consumed, rest, False))
    records: list[bytes] = []
    continued = state.continued
    for line in _lines(data[:end]):
        while len(line) > MAX_HELD:
            records.append(line[:MAX_HELD])
            line = line[MAX_HELD:]
        records.append(line)
        continued = False
    while len(rest) >= MAX_HELD:
        records.append(rest[:MAX_HELD])
        rest = rest[MAX_HELD:]
        continued = True
    return Cut(b"", records, StreamState(consumed, rest, continued))


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def finish(state: StreamState) -> Cut:
    """Take out the unfinished line: its stream has ended."""
    return Cut(b"", (state.held,) if state.held else (), StreamState(state.consumed, b"", False))
