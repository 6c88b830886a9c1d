"""Event bus of the daemon: publish once, replay the recent past, follow live.

Filtering as `GET /events` has it belongs to api/system.py; the bus knows events only.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

#: dockerd replays 256 events; a restart of the daemon used to lose even those, so more are kept here.
HISTORY = 1024

#: A subscriber that is this many events behind is cut off rather than kept in memory.
BACKLOG = 4096


@dataclass(frozen=True)
class Event:
    """One thing that happened. ``time_ns`` is nanoseconds since the epoch and never repeats or goes back."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_ns: int = 0
    scope: str = "local"

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

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._queues: set[asyncio.Queue[Event | None]] = set()
        self._last_ns = 0

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
        stamp = max(time_ns if time_ns is not None else time.time_ns(), self._last_ns + 1)
        self._last_ns = stamp
        event = Event(type, action, actor_id, dict(attributes or {}), stamp)
        self._history.append(event)
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
    def listeners(self) -> int:
        """How many follow now."""
        return len(self._queues)

    def dump(self) -> list[dict[str, object]]:
        """Return the history as plain records, for the store."""
        return [
            {
                "type": e.type,
                "action": e.action,
                "id": e.actor_id,
                "attributes": dict(e.attributes),
                "ns": e.time_ns,
            }
            for e in self._history
        ]
