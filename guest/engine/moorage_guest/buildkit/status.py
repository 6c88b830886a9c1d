"""What a build tells of itself, kept for those who ask: any number of clients, at any time, each from the beginning.

It is the `Reporter` that the builder in `images.build` writes to; the words are the builder's.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from moorage_guest.buildkit.messages import (
    Position,
    Range,
    SourceInfo,
    StatusResponse,
    Timestamp,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
)
from moorage_guest.images.build import seams

#: Bytes of output of one step that are kept, and how many of them each second of it brings.
MAX_LOG, MAX_LOG_SPEED = 2 << 20, 200 << 10

#: Seconds between two notes of how far the same thing is.
PACE = 0.1

#: Bytes of output in one message.
MESSAGE = 64 << 10

_Entry = Vertex | VertexStatus | VertexLog | VertexWarning


def maybe_timestamp(ns: int | None) -> Timestamp | None:
    """Return a moment, in nanoseconds since 1970, that may not have come."""
    return None if ns is None else Timestamp.of(ns)


def source_info(source: seams.Source) -> tuple[SourceInfo, list[Range]]:
    """Return a place in a text as messages."""
    info = SourceInfo(filename=source.filename, data=source.data, language=source.language)
    return info, [Range(Position(first), Position(last)) for first, last in source.ranges]


@dataclass
class _Output:
    """How much a step has written, and whether some of it was left out last."""

    begun: float
    size: int = 0
    clipping: bool = False


class BuildStatus:
    """A `Reporter` that can be followed. Used in the event loop alone; `close` once, when the build is over."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._wake = asyncio.Event()
        self._closed = False
        self._outputs: dict[str, _Output] = {}
        self._last_note: dict[tuple[str, str], float] = {}
        self._steps: dict[str, seams.Vertex] = {}
        #: Bytes of output that are kept, and warnings.
        self.kept_bytes = 0
        self.warnings = 0

    @property
    def steps(self) -> tuple[int, int, int]:
        """How many steps are known, are over, and were found in the cache."""
        steps = self._steps.values()
        over = sum(step.completed_ns is not None for step in steps)
        return len(steps), over, sum(step.cached for step in steps)

    # -- the reporter ---------------------------------------------------------------------------------------------------

    def vertex(self, vertex: seams.Vertex) -> None:
        """See `Reporter`."""
        self._steps[vertex.digest] = vertex
        self._add(
            Vertex(
                digest=vertex.digest,
                inputs=list(vertex.inputs),
                name=vertex.name,
                cached=vertex.cached,
                started=maybe_timestamp(vertex.started_ns),
                completed=maybe_timestamp(vertex.completed_ns),
                error=vertex.error,
            )
        )

    def status(
        self, vertex: str, name: str, current: int, total: int, started_ns: int, completed_ns: int | None
    ) -> None:
        """See `Reporter`; what changes too often is told at a pace that can be read."""
        now = time.monotonic()
        last = self._last_note.get((vertex, name))
        if completed_ns is None and last is not None and now - last < PACE:
            return
        self._last_note[vertex, name] = now
        self._add(
            VertexStatus(
                id=name,
                vertex=vertex,
                name=name.rstrip(":"),
                current=current,
                total=total,
                timestamp=Timestamp.of(time.time_ns()),
                started=Timestamp.of(started_ns),
                completed=maybe_timestamp(completed_ns),
            )
        )

    def log(self, vertex: str, stream: int, data: bytes) -> None:
        """See `Reporter`; of a step that writes too much, or too fast, the rest is left out with a word."""
        output = self._outputs.setdefault(vertex, _Output(time.monotonic()))
        seconds = math.ceil(time.monotonic() - output.begun) or 1
        allowed = min(MAX_LOG, seconds * MAX_LOG_SPEED)
        taken = data[: max(allowed - output.size, 0)]
        output.size += len(data) if len(taken) == len(data) else max(allowed - output.size, 0)
        if taken:
            output.clipping = False
            self._log(vertex, stream, taken)
        if len(taken) < len(data) and not output.clipping:
            output.clipping = True
            limit = "2MiB" if allowed == MAX_LOG else "200KiB/s"
            self._log(vertex, stream, f"\n[output clipped, log limit {limit} reached]\n".encode())

    def _log(self, vertex: str, stream: int, data: bytes) -> None:
        self.kept_bytes += len(data)
        self._add(VertexLog(vertex=vertex, timestamp=Timestamp.of(time.time_ns()), stream=stream, msg=data))

    def warning(self, warning: seams.Notice) -> None:
        """See `Reporter`."""
        found = VertexWarning(
            vertex=warning.vertex,
            level=warning.level,
            short=warning.short.encode(),
            detail=[each.encode() for each in warning.detail],
            url=warning.url,
        )
        if warning.source is not None:
            found.info, found.ranges = source_info(warning.source)
        self.warn(found)

    def warn(self, warning: VertexWarning) -> None:
        """Add a warning that came over the wire."""
        self.warnings += 1
        self._add(warning)

    def _add(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self._wake.set()
        self._wake = asyncio.Event()

    def close(self) -> None:
        """Say that nothing more comes."""
        self._closed = True
        self._wake.set()

    # -- those who ask ----------------------------------------------------------------------------------------------------

    async def follow(self) -> AsyncGenerator[StatusResponse, None]:
        """Yield all that is known and then what comes, until the build is over. A slow reader holds up nobody."""
        position = 0
        while True:
            wake = self._wake
            while position < len(self._entries):
                message, position = self._gathered(position)
                yield message
            if self._closed:
                return
            await wake.wait()

    def _gathered(self, position: int) -> tuple[StatusResponse, int]:
        """Return one message of entries from a position on, and the position after it."""
        message = StatusResponse()
        size = 0
        while position < len(self._entries) and size < MESSAGE:
            entry = self._entries[position]
            position += 1
            size += 256
            match entry:
                case Vertex():
                    message.vertexes.append(entry)
                case VertexStatus():
                    message.statuses.append(entry)
                case VertexLog():
                    message.logs.append(entry)
                    size += len(entry.msg)
                case VertexWarning():
                    message.warnings.append(entry)
        return message, position
