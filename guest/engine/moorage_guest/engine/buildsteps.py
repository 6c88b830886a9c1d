"""Runs the RUN steps of a build in containers: the engine's side of `images.build.runner.StepRunner`."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from moorage_guest.api.types import ContainerConfig, HostConfig, NetworkingConfig
from moorage_guest.engine import attach, create, removal, starting
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.record import Container
from moorage_guest.errors import EngineError, NotFound
from moorage_guest.images.build.runner import RunStep

log = logging.getLogger(__name__)

#: Records of containers that a build has made and not removed yet.
KIND = "buildstep"

#: Bytes before each piece of output: stream, three zeros, length.
_HEAD = struct.Struct(">B3xI")


class ContainerSteps:
    """A `StepRunner` whose containers are ordinary ones, seen in `docker ps -a` while they are there."""

    def __init__(self, engine: Containers) -> None:
        self._engine = engine

    async def clear(self) -> None:
        """Remove the containers of builds that ended with the daemon before this one, once all is taken back."""
        await self._engine.restored.wait()
        for container_id in await asyncio.to_thread(self._engine.store.all, KIND):
            log.warning("removing container %s of a build that did not end", container_id)
            try:
                await self.remove(container_id)
            except EngineError as error:
                log.error("container %s of a build cannot be removed: %s", container_id, error)

    async def create(self, step: RunStep) -> str:
        """Make a container that runs the command without the image's entrypoint, health check and volumes."""
        fields = {key: step.config.get(key) for key in ("User", "Env", "WorkingDir", "Labels", "StopSignal", "Shell")}
        config = ContainerConfig.model_validate({key: value for key, value in fields.items() if value is not None})
        config.image = step.image_id
        config.cmd = list(step.command)
        # Without a command there is nothing to run but what the image runs, as in dockerd.
        config.entrypoint = [""] if step.command else None
        host = HostConfig.model_validate({**step.host, "LogConfig": {"Type": "none", "Config": {}}})
        if step.chain is not None:
            config.hostname = str(step.config.get("Hostname") or "")
        request = create.CreateRequest("", config, host, NetworkingConfig(), chain=step.chain)
        container = (await create.create(self._engine, request)).container
        container.secret_env = step.secret_env
        container.config.healthcheck = None
        await asyncio.to_thread(self._engine.store.put, KIND, container.id, {"version": 1, "image": step.image_id})
        return container.id

    async def keep(self, container_id: str) -> None:
        """See the protocol."""
        await asyncio.to_thread(self._engine.store.delete, KIND, container_id)

    async def run(self, container_id: str, output: Callable[[int, bytes], None]) -> int:
        """See the protocol."""
        engine = self._engine
        container = engine.find(container_id)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with contextlib.closing(ours):
            running = await attach.reserve(engine, container)
            wanted = attach.AttachRequest(False, True, True, True, b"")
            await attach.attach(engine, container, running, theirs, b"", wanted)
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                with engine.waits.register(container, "next-exit") as outcome:
                    await _to_its_end(starting.start(engine, container))
                    await _copy(reader, output)
                    ended = await outcome
                await running.ended.wait()
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
        return ended.exit_code

    async def remove(self, container_id: str) -> None:
        """See the protocol."""
        with contextlib.suppress(NotFound):
            container: Container = self._engine.find(container_id)
            await asyncio.shield(removal.remove(self._engine, container, force=True, volumes=True))
        await self.keep(container_id)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work that is not to be cut in the middle; a cancellation takes effect after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _copy(reader: asyncio.StreamReader, output: Callable[[int, bytes], None]) -> None:
    """Hand over what comes until the container's streams have ended."""
    try:
        while True:
            stream, size = _HEAD.unpack(await reader.readexactly(_HEAD.size))
            output(stream, await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return
