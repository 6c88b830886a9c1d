"""A live container's output on its way: the shim's pipes given to the log pump, attached clients fed."""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from moorage_guest.engine import logview
from moorage_guest.engine.record import Container
from moorage_guest.engine.shims import Shim, ShimError
from moorage_guest.logs.feed import Feed
from moorage_guest.logs.notify import Notifier
from moorage_guest.logs.targets import LogTarget, StreamPipes

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers

log = logging.getLogger(__name__)


class Output:
    """Output of one run of a container. `open` before the start (or at taking back), `finish` after the end.

    Nothing is read before `begin`. The runtime writes to the container's standard error why a start failed: the shim takes
    that back, and it would be too late had it been read.
    """

    def __init__(self, engine: "Containers", container: Container, shim: Shim, target: LogTarget) -> None:
        self._engine = engine
        self._container = container
        self._shim = shim
        self._target = target
        self._adding: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    @classmethod
    async def open(cls, engine: "Containers", container: Container, shim: Shim, *, active: bool = True) -> "Output":
        """Make everything ready to write the log, feeding attached clients if ``active``."""
        pipes, shim_feed = await asyncio.gather(shim.pipes(), shim.feed())
        endpoint = socket.socket(fileno=os.dup(shim_feed.fileno()))
        shim_feed.close()
        streams = {each.stream: StreamPipes(each.a_read, each.b_read, each.b_write) for each in pipes.streams}
        try:
            sink = await asyncio.to_thread(logview.open_sink, engine, container)
        except BaseException:
            endpoint.close()
            for stream in streams.values():
                stream.close()
            raise
        feed = Feed(endpoint, engine.exec_root.shim(container.id) / "spill", active=active)
        notifier = Notifier(asyncio.get_running_loop())
        return cls(engine, container, shim, LogTarget(container.id, streams, pipes.journal, sink, notifier, feed))

    async def begin(self) -> None:
        """Begin to read, to write the log and to feed clients; idempotent."""
        if self._adding is None:
            self._adding = asyncio.ensure_future(self._engine.pump.add(self._target))
        await asyncio.shield(self._adding)
        self._begun.set()

    async def attached(self, count: int) -> None:
        """Feed or stop feeding, now that the shim serves this many clients."""
        if self._adding is None and self._target.feed is not None:
            self._target.feed.active = count > 0
            return
        if count:
            await self._engine.pump.attach(self._container.id)
        else:
            await self._engine.pump.detach(self._container.id)

    async def offsets(self) -> Mapping[int, int]:
        """Feed from now on and return where each stream stands: a client attached from there on misses nothing."""
        await self._begun.wait()
        return await self._engine.pump.attach(self._container.id)

    async def finish(self) -> None:
        """Write what is left, tell the shim that this is all, and let go of the log."""
        engine, container_id = self._engine, self._container.id
        await self.begin()
        try:
            await engine.pump.drained(container_id)
            offsets = await engine.pump.offsets(container_id)
            spill = await engine.pump.hand_over(container_id)
            self._container.ending = True  # clients that are told of the end by their stream ask what it was
            try:
                await self._shim.finish_output(offsets, spill=spill)
            except ShimError as error:
                log.debug("container %s: its clients are not told of the end: %s", container_id, error)
            finally:
                if spill is not None:
                    os.close(spill)
        finally:  # whatever happened, nobody may wait for more
            await engine.pump.remove(container_id)

    async def leave(self) -> None:
        """Let go of the log of a container that goes on without this daemon."""
        await self.begin()
        await self._engine.pump.remove(self._container.id)
