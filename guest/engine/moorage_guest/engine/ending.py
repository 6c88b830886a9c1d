"""The end of a container's process: output drained, everything released, then restarted, removed or at rest.

Starting is in `starting`; the decision about a restart in `restart`.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import replace

from moorage_guest.engine import attach, execs, health, namespaces, restart
from moorage_guest.engine.containers import Containers, Running
from moorage_guest.engine.record import Container
from moorage_guest.engine.shims import (
    AttachedChanged,
    ContainerExited,
    Detached,
    ExecExited,
    ExecStarted,
    ExitRecord,
    ShimError,
    ShimGone,
)
from moorage_guest.engine.states import Status

log = logging.getLogger(__name__)

#: What dockerd gives a container whose end nobody saw.
UNKNOWN_EXIT = 255

#: Seconds that the last output may take to be written before the end is reported all the same.
DRAIN_DEADLINE = 60.0


async def follow(engine: Containers, container: Container, running: Running) -> None:
    """Act on what the shim reports, until the container has ended and been dealt with."""
    async for event in running.shim.events:
        match event:
            case ContainerExited():
                await ended(engine, container, running, ExitRecord(event.exit_code, event.at_ns, event.oom))
                return
            case ExecStarted():
                execs.begun(engine, event.exec_id, event.pid)
            case ExecExited():
                execs.ended(engine, container, event.exec_id, event.code, event.at_ns)
            case AttachedChanged():
                await attach.count_changed(running, event.count)
            case Detached(exec_id=None):
                engine.publish(container, "detach")
            case Detached():
                engine.publish(container, "exec_detach", execID=str(event.exec_id))
    if not running.ended.is_set() and engine.running.get(container.id) is running and not engine.shutting_down:
        await shim_died(engine, container, running)


async def shim_died(engine: Containers, container: Container, running: Running) -> None:
    """Deal with a container whose shim is gone: kill what is left and report its end."""
    log.error("the shim of container %s died: its container is ended", container.id)
    try:
        record = await engine.agent.bury(container.id)
    except ShimError as error:
        log.warning("what the dead shim of container %s left cannot be removed: %s", container.id, error)
        record = ExitRecord(137, time.time_ns())
    await ended(engine, container, running, record)


async def ended(engine: Containers, container: Container, running: Running, record: ExitRecord) -> None:
    """Bring a container from running to exited, restarting or removed, with events and waiters told."""
    async with container.lock:
        if not container.status.alive:
            return
        try:
            await end_locked(engine, container, running, record)
        finally:
            container.ending = False
    after_end(engine, container)


async def end_locked(engine: Containers, container: Container, running: Running | None, record: ExitRecord) -> None:
    """Do `ended` under the container's lock; ``running`` is None when no shim is left of it.

    The shim keeps the exit record until ours is durable, so a daemon killed in between knows it again.
    """
    health.end(engine, container)
    await _finish_output(engine, container)
    started = container.state.started_ns
    again = restart.wanted(engine, container, record.exit_code)
    if again:
        restart.count(container, record.at_ns - started)
    container.move(
        Status.RESTARTING if again else Status.EXITED,
        pid=0, exit_code=record.exit_code, finished_ns=record.at_ns, oom_killed=record.oom,
    )  # fmt: skip
    await _release(engine, container, save=True)
    for exec_id in container.exec_ids:
        execs.ended(engine, container, exec_id, 137, record.at_ns)
    execs.drop_all(engine, container)
    if record.oom:
        engine.publish(container, "oom")
    engine.publish(
        container, "die", time_ns=record.at_ns, exitCode=str(record.exit_code),
        execDuration=str(max(record.at_ns - started, 0) // 1_000_000_000),
    )  # fmt: skip
    if running is not None:
        running.ended.set()
    engine.waits.ended(container)
    if again:
        restart.schedule(engine, container)


def after_end(engine: Containers, container: Container) -> None:
    """Let a container with --rm go, unless it starts again."""
    if container.host_config.auto_remove and container.status == Status.EXITED and not engine.shutting_down:
        engine.task(_auto_remove(engine, container), f"remove {container.id[:12]}")


async def _auto_remove(engine: Containers, container: Container) -> None:
    from moorage_guest.engine import removal

    await removal.auto_remove(engine, container)


async def take_down(engine: Containers, container: Container) -> None:
    """Release everything that a run needed, each part whatever happens to the others. Idempotent."""
    await _finish_output(engine, container)
    await _release(engine, container, save=False)
    container.ending = False


async def _finish_output(engine: Containers, container: Container) -> None:
    running = engine.running.get(container.id)
    if running is None or running.output is None:
        return
    try:
        async with asyncio.timeout(DRAIN_DEADLINE):
            await running.output.finish()
    except TimeoutError:
        log.warning("the output of container %s could not be written in %.0f s", container.id, DRAIN_DEADLINE)
        await running.output.leave()
    except Exception:
        log.exception("the last output of container %s could not be written", container.id)
    running.output = None


async def _release(engine: Containers, container: Container, *, save: bool) -> None:
    async def shim() -> None:
        if save:
            await engine.save(container)
        await _end_shim(engine, container)

    work = (shim(), namespaces.leave(engine, container), _release_files(engine, container))
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, Exception):
            log.warning("container %s: not everything could be released", container.id, exc_info=result)


async def _end_shim(engine: Containers, container: Container) -> None:
    running = engine.running.pop(container.id, None)
    if running is not None:
        with contextlib.suppress(ShimGone):
            await running.shim.shutdown(force=True)


async def _release_files(engine: Containers, container: Container) -> None:
    await engine.layers.unmount(container.id)
    for mount in container.mounts:
        if mount.kind == "volume":
            await engine.volumes.release(mount.name, container.id)
        elif mount.kind == "image":
            key = f"{container.id}-{mount.destination.strip('/').replace('/', '-')}"
            await engine.layers.unmount(key)
            await engine.layers.remove_rw(key)


async def start_failed(engine: Containers, container: Container, error: str, exit_code: int) -> None:
    """Note why a start failed; a container with --rm goes."""
    now = time.time_ns()
    was_restarting = container.status == Status.RESTARTING
    state = replace(container.state, pid=0, error=error, exit_code=exit_code)
    if was_restarting or container.status.alive:
        state = replace(state, status=Status.EXITED, finished_ns=now)
    container.state = state
    await engine.save(container)
    engine.waits.ended(container)
    if container.host_config.auto_remove:
        engine.task(_auto_remove(engine, container), f"remove {container.id[:12]}")
