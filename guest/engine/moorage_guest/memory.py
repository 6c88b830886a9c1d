"""When the daemon gives memory back to the system that the C library keeps for later: after its start and large requests."""

import asyncio

from moorage_guest.shim import kernel

#: Seconds without another request for it after which memory is given back: that takes some milliseconds of a processor.
PAUSE = 1.0


class Spare:
    """Gives memory back once a while has passed in which nobody asked for it."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """There is something to give back, now or in a moment. Called in the running loop."""
        self.close()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PAUSE, loop.run_in_executor, None, kernel.give_back)

    def close(self) -> None:
        """Forget what was asked for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
