"""Taking containers back when the daemon starts, and what happens to them when it stops.

Whatever outlived the last daemon is found at its shim and goes on; what ended meanwhile is dealt with as if it ended now,
with the code and time the shim kept. Nothing that cannot be taken back is killed: it is listed as unmanaged.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from moorage_guest.engine import (
    ending,
    execs,
    health,
    lifecycle,
    memberships,
    namespaces,
    removal,
    restart,
    starting,
    startoptions,
    unfinished,
    unmanaged,
)
from moorage_guest.engine.containers import Containers, Running
from moorage_guest.engine.output import Output
from moorage_guest.engine.record import KIND, Container, RecordError, RunState
from moorage_guest.engine.settings import DEFAULT_STOP_TIMEOUT
from moorage_guest.engine.shims import ExitRecord, Shim, ShimError, ShimGone, ShimStatus
from moorage_guest.engine.states import Status
from moorage_guest.errors import EngineError, NotModified

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Shim protocols that this daemon speaks.
PROTOCOLS = frozenset({1})

#: A container with --rm that was made within this time (s) before the daemon's start, and is not started within the
#: second one: its `docker run` lost its daemon in between, and waits for the container to go.
_JUST_MADE, _ABANDONED = 60.0, 5.0

#: The second one under a supervisor, where it has most likely lost nothing and merely is as slow as the machine.
_ABANDONED_SUPERVISED = 30.0

#: Containers that are taken back or stopped at the same time.
_AT_ONCE = 32


@dataclass
class _Found:
    """A container of the database and what became of it."""

    container: Container
    shim: Shim | None = None
    status: ShimStatus | None = None
    end: ExitRecord | None = None
    #: Its record's state, and whether its networks were others.
    before: RunState | None = None
    rejoined: bool = False


async def start(engine: Containers, before_ends: Callable[[], Awaitable[None]] | None = None) -> None:
    """Find out what is true; returns when containers can be listed. What lives is taken back in the background.

    ``before_ends`` runs when all containers are known and before the ends of those that ended meanwhile are told, so
    that who waited for them can wait again. `Containers.restored` is set when everything can be used.
    """
    damaged = _load(engine)
    shims, dead = set(await engine.agent.shim_ids()), set(await engine.agent.dead_shims())
    found = await _each([_look(engine, container, shims, dead) for container in engine])
    live = {each.container.id for each in found if each.status is not None and each.status.running}
    for container_id in (shims | dead) - {each.container.id for each in found}:
        unmanaged.show(engine, container_id, damaged.get(container_id, ""))
    every = {container.id for container in engine}
    known = every | set(engine.unmanaged) | set(damaged)
    await asyncio.gather(
        engine.layers.restore(known),
        engine.networks.start(live | set(engine.unmanaged)),
        engine.volumes.restore(_volumes(engine, every), _volumes(engine, live)),
    )
    engine.task(engine.volumes.release_stale(), "volumes of plugins that nobody uses any more")
    await unfinished.tidy(engine, known)
    sessions = await asyncio.to_thread(execs.recorded, engine)
    connected = [each for each in found if each.shim is not None]
    await _each([_take_back(engine, each, sessions) for each in connected if each.end is not None])
    if before_ends is not None:
        await before_ends()
    ended = [(each, each.end) for each in found if each.end is not None]
    ended.sort(key=lambda pair: pair[1].at_ns)
    await _each([_end(engine, each.container, end) for each, end in ended])
    for each in connected:
        if each.end is None and each.status is not None and each.status.pid:
            each.before = each.container.state
            _adopt_state(each.container, each.status)
            outdated = not each.before.status.alive
            each.rejoined = await memberships.settle(engine, each.container, outdated=outdated)
    living = [each for each in connected if each.end is None]
    engine.task(_go_on(engine, living, sessions), "taking containers back")


async def _go_on(engine: Containers, living: list[_Found], sessions: set[str]) -> None:
    """Take back what lives, then let everybody work with it."""
    try:
        await _each([_take_back_logged(engine, each, sessions) for each in living])
        if not engine.settings.live_restore:
            await _each([_stop_quietly(engine, each.container) for each in living])
        await _settle(engine)
        if engine.options.changed:
            engine.options.keep([unmanaged.options_of(engine, each) for each in await engine.agent.shim_ids()])
    finally:
        engine.restored.set()


async def _take_back_logged(engine: Containers, found: _Found, sessions: set[str]) -> None:
    try:
        await _take_back(engine, found, sessions)
    except Exception:
        log.exception("container %s could not be taken back", found.container.id)


def _adopt_state(container: Container, status: ShimStatus) -> None:
    """Let the state say what the shim says of a container whose end has not been dealt with."""
    if not container.status.alive and status.started_ns == container.state.started_ns:
        return
    container.state = replace(
        container.state, status=Status.PAUSED if status.paused else Status.RUNNING, pid=status.pid,
        started_ns=status.started_ns,
    )  # fmt: skip


def _load(engine: Containers) -> dict[str, str]:
    """Read all records; returns what is wrong with those that cannot be used, by container."""
    damaged: dict[str, str] = {}
    for key, record in engine.store.all(KIND).items():
        try:
            container = _read(engine, key, record)
            engine.names.reserve(container.name, container.id)
        except RecordError as error:
            log.error("%s: the container is left alone", error)
            damaged[key] = str(error)
            continue
        except EngineError as error:
            log.error("container %s has lost its name: %s", key, error)
            container.name = engine.names.make_up(container.id)
        engine.add(container)
    return damaged


def _read(engine: Containers, key: str, record: dict[str, Any]) -> Container:
    """Make a container of its record, or of the record's copy. Raises RecordError."""
    try:
        return Container.from_record(record)
    except RecordError as error:
        spare = engine.store.spare(KIND, key)
        if spare is None or spare == record:
            raise
        log.error("%s: its copy is used", error)
        container = Container.from_record(spare)
        engine.store.put(KIND, key, spare)
        return container


def _volumes(engine: Containers, ids: set[str]) -> dict[str, list[str]]:
    return {
        container.id: [mount.name for mount in container.mounts if mount.kind == "volume"]
        for container in engine
        if container.id in ids
    }


async def _each(work: list[Awaitable[T]]) -> list[T]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(awaitable: Awaitable[T]) -> T:
        async with gate:
            return await awaitable

    return list(await asyncio.gather(*(one(each) for each in work)))


async def _look(engine: Containers, container: Container, shims: set[str], dead: set[str]) -> _Found:
    """Find out what became of a container."""
    result, reason = _Found(container), ""
    if container.id in shims:
        try:
            result.shim = await Shim.connect(engine.exec_root, container.id)
            result.status = await result.shim.status()
        except ShimGone:
            dead = {*dead, container.id}
        except ShimError as error:
            reason = str(error)
        else:
            if result.status.protocol not in PROTOCOLS:
                reason = f"its shim speaks protocol {result.status.protocol}, which this engine does not know"
            elif result.status.running:
                reason = _compare(engine, container)
        if reason:
            if result.shim is not None:
                result.shim.close()
            if not container.status.alive:
                container.state = replace(container.state, status=Status.RUNNING)
            unmanaged.note(engine, container, reason)
            return _Found(container)
    if result.status is not None:
        result.end = result.status.exit
        if container.status.alive and result.status.pid == 0:
            result.end = ExitRecord(ending.UNKNOWN_EXIT, time.time_ns())
    elif container.id in dead:
        record = ExitRecord(137, time.time_ns())
        with contextlib.suppress(ShimError):
            record = await engine.agent.bury(container.id)
        if container.status.alive:
            result.end = record
    elif container.status.alive and unmanaged.lives(container):
        unmanaged.note(
            engine, container,
            f"it runs, but its shim is not below {engine.exec_root.shims}: stop it, or start the engine with the exec-root "
            "that it was started with to manage it again",
        )  # fmt: skip
    elif container.status.alive:
        result.end = ExitRecord(ending.UNKNOWN_EXIT, time.time_ns())
    return result


def _compare(engine: Containers, container: Container) -> str:
    """Note which options have changed since a running container was started; returns why it cannot be managed, or ""."""
    if not engine.options.changed:
        return ""
    differences = engine.options.differences(unmanaged.options_of(engine, container.id))
    concerning = startoptions.concerning(differences, set(container.endpoints) - {"host", "none"})
    if concerning:
        engine.differences[container.id] = concerning
    for difference in concerning:
        if not difference.manageable:
            return difference.reason
        log.warning("container %s keeps what it was started with: %s", container.id, difference)
    return ""


async def _take_back(engine: Containers, found: _Found, sessions: set[str]) -> None:
    """Connect to a shim: output flows, events are followed, the state says what is."""
    container, shim, status = found.container, found.shim, found.status
    assert shim is not None and status is not None
    running = Running(shim, attached=status.attached > 0)
    engine.running[container.id] = running
    if status.pid == 0 and not container.status.alive:
        if status.attached == 0:
            engine.running.pop(container.id)
            await shim.shutdown(force=True)
            return
        starting.watch(engine, container, running)
        return
    if not container.status.alive and status.started_ns == container.state.started_ns:
        # Its end was dealt with, but for this.
        await ending.take_down(engine, container)
        found.end = None
        return
    before = found.before or container.state
    _adopt_state(container, status)
    if not before.status.alive:  # the last daemon asked for the start and did not live to see it
        container.cgroup_path = await asyncio.to_thread(_cgroup_path, engine, container)
        engine.publish(container, "start", time_ns=status.started_ns)
    if container.id in sessions:
        execs.restore(engine, container, status)
    try:
        output = await Output.open(engine, container, shim, active=status.attached > 0)
        await output.begin()
        running.output = output
    except Exception:
        log.exception("the log of container %s cannot be written", container.id)
    if found.end is not None:
        return
    starting.watch(engine, container, running)
    health.begin(engine, container, keep=True)
    if found.rejoined or container.state != before:
        await engine.save(container)


def _cgroup_path(engine: Containers, container: Container) -> str:
    """Return the cgroup that the bundle of a container's shim names."""
    try:
        spec = json.loads((engine.exec_root.shim(container.id) / "config.json").read_text())
        return str(spec["linux"]["cgroupsPath"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("container %s: its cgroup is not known: %s", container.id, error)
        return ""


async def _end(engine: Containers, container: Container, end: ExitRecord) -> None:
    running = engine.running.get(container.id)
    if running is not None:
        await ending.ended(engine, container, running, end)
        return
    async with container.lock:
        await ending.end_locked(engine, container, None, end)
    ending.after_end(engine, container)


async def _stop_quietly(engine: Containers, container: Container) -> None:
    try:
        await lifecycle.stop(engine, container)
        container.manually_stopped = False
        await engine.save(container)
    except NotModified:
        return
    except EngineError as error:
        log.warning("container %s could not be stopped: %s", container.id, error)


async def _settle(engine: Containers) -> None:
    """Start what a policy wants started, remove what --rm or an unfinished removal wants gone."""
    waiting: list[Container] = []
    for container in engine:
        if container.unmanaged:
            continue
        async with container.lock:  # its restart policy may be starting it already
            if container.status.alive:
                continue
            namespaces.forget_place(container)
            await engine.layers.unmount(container.id)
        if container.status == Status.DEAD or (
            container.host_config.auto_remove and container.status == Status.EXITED and not container.removing
        ):
            engine.task(removal.auto_remove(engine, container), f"remove {container.id[:12]}")
        elif container.host_config.auto_remove and container.status == Status.CREATED:
            if 0 <= time.time_ns() - container.created_ns < _JUST_MADE * 1e9:
                engine.task(_remove_abandoned(engine, container), f"remove {container.id[:12]} unless it is started")
        elif container.status == Status.RESTARTING:
            restart.schedule_left(engine, container)
        elif restart.wanted_at_boot(container):
            waiting.append(container)
    if waiting and engine.settings.live_restore:
        engine.task(_start_all(engine, waiting), "start of containers with a restart policy")
    elif waiting:  # nothing ran on: clients see what runs once it does, as in dockerd
        await _start_all(engine, waiting)


async def _remove_abandoned(engine: Containers, container: Container) -> None:
    await asyncio.sleep(_ABANDONED_SUPERVISED if engine.agent.supervised else _ABANDONED)
    async with container.lock:  # a start that is under way has it
        abandoned = container.status == Status.CREATED
    if abandoned:
        await removal.auto_remove(engine, container)


async def _start_all(engine: Containers, waiting: list[Container]) -> None:
    """Start containers, those first that others join or link to."""

    def depends(container: Container) -> int:
        host = container.host_config
        modes = (host.network_mode, host.pid_mode, host.ipc_mode)
        return int(bool(host.links) or any(mode.startswith("container:") for mode in modes))

    for rank in (0, 1):
        await _each([_start_one(engine, each) for each in waiting if depends(each) == rank])


async def _start_one(engine: Containers, container: Container) -> None:
    async with container.lock:
        if container.status.running or container.removing:
            return
        container.restart_count = 0
        container.restart_delay_ns = 0
        try:
            await starting.start_locked(engine, container)
        except EngineError as error:
            log.error("container %s could not be started: %s", container.id, error)


async def shut_down(engine: Containers) -> None:
    """Deal with running containers when the daemon stops: with live restore they go on, without they are stopped."""
    engine.shutting_down = True
    if engine.settings.live_restore:
        return
    await engine.restored.wait()
    running = [container for container in engine if container.status.running]
    longest = max((each.config.stop_timeout or DEFAULT_STOP_TIMEOUT for each in running), default=0)
    limit = engine.settings.shutdown_timeout
    deadline = None if limit < 0 else max(limit, longest + 5)
    try:
        async with asyncio.timeout(deadline):
            await _each([_stop_for_shutdown(engine, container) for container in running])
    except TimeoutError:
        log.error("not all containers stopped within %s s: they are left to their shims", deadline)


async def _stop_for_shutdown(engine: Containers, container: Container) -> None:
    try:
        await lifecycle.stop(engine, container)
    except NotModified:
        return
    except EngineError as error:
        log.warning("container %s could not be stopped: %s", container.id, error)
