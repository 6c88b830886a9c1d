"""Event bus of the daemon: publish once, replay the recent past, follow live.

Filtering as `GET /events` has it belongs to api/system.py; the bus knows events only. The past is kept in a journal file
that a killed daemon leaves behind, so that the next one goes on where it ended.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: dockerd replays 256 events; a restart of the daemon used to lose even those, so more are kept here.
HISTORY = 1024

#: Nanoseconds by which the last event may be ahead of the clock without the clock having been set back.
_AHEAD = 1_000_000_000

#: A subscriber that is this many events behind is cut off rather than kept in memory.
BACKLOG = 4096


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    ``time_ns`` is nanoseconds since the epoch; it goes back only when the clock was set back. ``number`` counts all events,
    whatever the clock says, also those of daemons before.
    """

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_ns: int = 0
    scope: str = "local"
    number: int = 0

    def to_api(self) -> dict[str, object]:
        """Return the EventMessage of the Engine API, with the legacy fields containers and images have."""
        message: dict[str, object] = {
            "Type": self.type,
            "Action": self.action,
            "Actor": {"ID": self.actor_id, "Attributes": dict(self.attributes)},
            "scope": self.scope,
            "time": self.time_ns // 1_000_000_000,
            "timeNano": self.time_ns,
        }
        if self.type in ("container", "image"):
            message["status"] = self.action
            message["id"] = self.actor_id
            if "image" in self.attributes and self.type == "container":
                message["from"] = self.attributes["image"]
        return message


class EventBus:
    """Lives in the event loop's thread; `publish` never blocks."""

    def __init__(self, journal: Path | None = None) -> None:
        """Take up the history in ``journal``; without one the bus forgets with its process."""
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._queues: set[asyncio.Queue[Event | None]] = set()
        self._last_ns = 0
        self._last_number = 0
        self._journal = journal
        self._descriptor = -1
        self._written = 0
        if journal is not None:
            self._history.extend(_read(journal))
            if self._history:
                self._last_ns, self._last_number = self._history[-1].time_ns, self._history[-1].number
            self._rewrite()

    def publish(
        self,
        type: str,
        action: str,
        actor_id: str,
        attributes: Mapping[str, str] | None = None,
        *,
        time_ns: int | None = None,
    ) -> Event:
        """Record an event and hand it to every subscriber. ``time_ns`` is for what happened while nobody watched."""
        now = time.time_ns()
        if self._last_ns > now + _AHEAD:  # the clock was set back: what happens now happens now
            self._last_ns = 0
        self._last_ns = max(time_ns if time_ns is not None else now, self._last_ns + 1)
        self._last_number += 1
        event = Event(type, action, actor_id, dict(attributes or {}), self._last_ns, number=self._last_number)
        self._history.append(event)
        self._note(event)
        for queue in list(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._queues.discard(queue)
                with contextlib.suppress(asyncio.QueueEmpty):
                    queue.get_nowait()
                queue.put_nowait(None)
        return event

    def history(self, since_ns: int | None = None, until_ns: int | None = None) -> list[Event]:
        """Return remembered events with since ≤ time ≤ until, oldest first."""
        return [
            event
            for event in self._history
            if (since_ns is None or event.time_ns >= since_ns) and (until_ns is None or event.time_ns <= until_ns)
        ]

    def after(self, number: int, until_ns: int | None = None) -> list[Event]:
        """Return remembered events that came later than the one with this number, oldest first."""
        return [event for event in self.history(until_ns=until_ns) if event.number > number]

    @contextlib.asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Follow from now on: ``async with bus.subscribe() as events: async for event in events``.

        The iterator ends when the subscriber fell `BACKLOG` events behind.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue(BACKLOG)
        self._queues.add(queue)

        async def follow() -> AsyncIterator[Event]:
            while (event := await queue.get()) is not None:
                yield event

        try:
            yield follow()
        finally:
            self._queues.discard(queue)

    @property
    def last_ns(self) -> int:
        """When the last event was."""
        return self._last_ns

    @property
    def last_number(self) -> int:
        """How many events there have been."""
        return self._last_number

    @property
    def listeners(self) -> int:
        """How many follow now."""
        return len(self._queues)

    def close(self) -> None:
        """Close the journal; what was published stays in it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _note(self, event: Event) -> None:
        """Append to the journal in one write: a killed daemon leaves whole lines."""
        if self._descriptor < 0:
            return
        try:
            os.write(self._descriptor, _line(event))
        except OSError as error:
            log.warning("event journal %s: %s; events go on without it", self._journal, error)
            self.close()
            return
        self._written += 1
        if self._written >= 4 * HISTORY:
            self._rewrite()

    def _rewrite(self) -> None:
        """Begin the journal anew with what is remembered."""
        assert self._journal is not None
        self.close()
        temporary = self._journal.with_name(self._journal.name + ".new")
        try:
            self._descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            os.write(self._descriptor, b"".join(_line(event) for event in self._history))
            temporary.replace(self._journal)
        except OSError as error:
            log.warning("event journal %s: %s; events go on without it", self._journal, error)
            self.close()
        self._written = len(self._history)


def _line(event: Event) -> bytes:
    record: dict[str, Any] = {
        "type": event.type, "action": event.action, "id": event.actor_id, "attributes": dict(event.attributes),
        "ns": event.time_ns, "number": event.number,
    }  # fmt: skip
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _read(journal: Path) -> list[Event]:
    """Return the events of a journal; a line that is none (the disk was full) is left out."""
    try:
        lines = journal.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    events: list[Event] = []
    for line in lines:
        try:
            record = json.loads(line)
            before = events[-1].number if events else 0
            events.append(
                Event(
                    record["type"], record["action"], record["id"], record["attributes"], record["ns"],
                    number=record.get("number", before + 1),  # an earlier daemon's have none
                )
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            log.warning("event journal %s: a damaged line is left out", journal)
    return events
