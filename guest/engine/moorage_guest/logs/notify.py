"""Tells followers in the event loop that the pump, in its thread, has written something."""

import asyncio


class Notifier:
    """A counter that grows with every write and can be waited for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: set[asyncio.Future[None]] = set()
        self._scheduled = False
        self.version = 0
        self.closed = False

    def notify(self) -> None:
        """Count one write. From any thread; cheap when nobody waits."""
        self.version += 1
        if self._waiters and not self._scheduled:
            self._scheduled = True
            self._wake_soon()

    def close(self) -> None:
        """Say that nothing more will come. From any thread."""
        self.closed = True
        self._wake_soon()

    async def wait(self, seen: int) -> None:
        """Return once `version` differs from ``seen`` or nothing more will come."""
        while self.version == seen and not self.closed:
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                # The pump may have counted on before it could see the waiter.
                if self.version == seen and not self.closed:
                    await waiter
            finally:
                self._waiters.discard(waiter)

    def _wake_soon(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _wake(self) -> None:
        self._scheduled = False
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
