"""Where the machine stands, as users see it, and who is told of every change. What moves it is control.py's business."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

from moorage_host.machine.lifecycle import State, move

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


class Standing:
    """The machine's state with its step, message and warning. To be used in the event loop alone.

    `step` is what is being done now, `message` what there is to know of the state, `warning` what stays true until the next start.
    """

    def __init__(self) -> None:
        self.state = State.ABSENT
        self.since = time.time()
        self.step = ""
        self.message = ""
        self.warning = ""
        self._version = 0
        self._changed = asyncio.Condition()
        self._notifying: set[asyncio.Task[None]] = set()

    def move(self, new: State) -> None:
        """Go to a state that the table of moves allows; HostError in a sentence for any other."""
        self.set(move(self.state, new))

    def set(self, new: State) -> None:
        """Take a state that was found, whatever it was believed to be."""
        if new is not self.state:
            logger.info("machine: %s -> %s", self.state.value, new.value)
            self.state = new
            self.since = time.time()
            self.tell()

    def note(self, message: str) -> None:
        """Say what there is to know of the state."""
        if message != self.message:
            self.message = message
            self.tell()

    def say(self, step: str, progress: Progress | None) -> None:
        """Say what is being done now, "" for nothing; also to the one whose command it is."""
        self.step = step
        if progress is not None and step:
            progress(step)
        self.tell()

    def tell(self) -> None:
        """Wake everybody who watches. Quiet where no loop runs."""

        async def notify() -> None:
            async with self._changed:
                self._version += 1
                self._changed.notify_all()

        with contextlib.suppress(RuntimeError):
            task = asyncio.get_running_loop().create_task(notify())
            self._notifying.add(task)
            task.add_done_callback(self._notifying.discard)

    async def changes(self) -> AsyncIterator[None]:
        """Once now and after every change, for ever; changes in quick succession may come as one."""
        seen = -1
        while True:
            async with self._changed:
                while self._version == seen:
                    await self._changed.wait()
                seen = self._version
            yield None

    async def until(self, reached: Callable[[], bool], deadline: float, progress: Progress) -> None:
        """Wait for `reached`, passing steps on; returns, reached or not, after `deadline` seconds."""
        said = self.step
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                async for _change in self.changes():
                    if self.step and self.step != said:
                        said = self.step
                        progress(said)
                    if reached():
                        return
