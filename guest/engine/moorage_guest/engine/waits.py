"""Who waits for a container to end or go: POST /containers/{id}/wait, and the daemon itself.

A waiter is registered the moment it is made, so that nothing falls between the request and its wait.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moorage_guest.engine.record import Container
from moorage_guest.errors import InvalidParameter

CONDITIONS = ("not-running", "next-exit", "removed")


@dataclass(frozen=True)
class Outcome:
    """How a wait ended; ``error`` is empty unless the container could not be removed."""

    exit_code: int
    error: str = ""


class Waits:
    """Registered waiters by container id."""

    def __init__(self) -> None:
        self._ends: dict[str, list[asyncio.Future[Outcome]]] = {}
        self._removals: dict[str, list[asyncio.Future[Outcome]]] = {}

    @contextmanager
    def register(self, container: Container, condition: str) -> Iterator["asyncio.Future[Outcome]"]:
        """Return a future for the outcome; ``not-running`` of a container that does not run is met at once."""
        if condition not in CONDITIONS:
            raise InvalidParameter(f'invalid condition: "{condition}"')
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if condition == "not-running" and not container.status.running:
            future.set_result(Outcome(container.state.exit_code, container.state.error))
        table = self._removals if condition == "removed" else self._ends
        table.setdefault(container.id, []).append(future)
        try:
            yield future
        finally:
            waiting = table.get(container.id)
            if waiting is not None and future in waiting:
                waiting.remove(future)
                if not waiting:
                    table.pop(container.id, None)
            future.cancel()

    def ended(self, container: Container) -> None:
        """Tell everybody that the container's process has ended and its state says how."""
        self._notify(self._ends, container.id, Outcome(container.state.exit_code, container.state.error))

    def removed(self, container: Container, error: str = "") -> None:
        """Tell everybody that the container is gone, or why it could not go."""
        outcome = Outcome(container.state.exit_code, error)
        self._notify(self._removals, container.id, outcome)
        if not error:
            self._notify(self._ends, container.id, outcome)

    @staticmethod
    def _notify(table: "dict[str, list[asyncio.Future[Outcome]]]", container_id: str, outcome: Outcome) -> None:
        for future in table.pop(container_id, []):
            if not future.done():
                future.set_result(outcome)
