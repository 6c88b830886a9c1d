"""What is done to containers that exist: stop, kill, restart, pause, resume, rename, update."""

import asyncio
import logging

from moorage_guest.api.types import HostConfig, RestartPolicy
from moorage_guest.engine import starting, unmanaged, validate
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.names import check_name
from moorage_guest.engine.record import Container
from moorage_guest.engine.settings import DEFAULT_STOP_TIMEOUT
from moorage_guest.engine.shims import OciError, ShimError, ShimGone
from moorage_guest.engine.signals import parse_signal
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict, EngineError, InvalidParameter, NotModified, SystemError_
from moorage_guest.oci import cgroups
from moorage_guest.oci.limits import drop_unsupported
from moorage_guest.oci.resources import update_resources
from moorage_guest.sysinfo import cgroup_facts

log = logging.getLogger(__name__)

#: Seconds for a process to be gone after SIGKILL.
KILL_DEADLINE = 30.0


def not_running(container: Container) -> Conflict:
    """Return the error for a verb that needs a running container."""
    return Conflict(f"container {container.id} is not running")


def check_running(container: Container, verb: str = "") -> None:
    """Raise Conflict unless the container runs and is not paused; ``verb`` completes dockerd's sentence."""
    if container.status == Status.RESTARTING:
        raise Conflict(f"container {container.id} is restarting, wait until the container is running")
    if not container.status.alive:
        raise not_running(container)
    if container.status == Status.PAUSED and verb:
        raise Conflict(f"Container {container.name} is paused, unpause the container before {verb}")


async def stop(
    engine: Containers, container: Container, *, signal: str = "", timeout: int | None = None, quiet: bool = False
) -> None:
    """Stop: the stop signal, then SIGKILL after the timeout (seconds; negative is never). NotModified if it is stopped."""
    number = parse_signal(signal or container.config.stop_signal or "SIGTERM")
    if timeout is None:
        timeout = container.config.stop_timeout if container.config.stop_timeout is not None else DEFAULT_STOP_TIMEOUT
    if not container.status.running:
        raise NotModified(f"container {container.id} is already stopped")
    if container.unmanaged:
        await unmanaged.stop(engine, container, number, None if timeout < 0 else timeout)
        return
    container.stop_requested = True
    if not engine.shutting_down:
        container.manually_stopped = True
        await engine.save(container)
    if container.status == Status.RESTARTING and await _cancel_restart(engine, container):
        engine.publish(container, "stop")
        return
    with engine.waits.register(container, "not-running") as gone:
        await _signal(engine, container, number)
        if container.status == Status.PAUSED:
            await resume_quietly(engine, container)
        try:
            async with asyncio.timeout(None if timeout < 0 else timeout):
                await asyncio.shield(gone)
        except TimeoutError:
            await kill_and_wait(engine, container)
    if not quiet:
        engine.publish(container, "stop")


async def _cancel_restart(engine: Containers, container: Container) -> bool:
    """Bring a container that waits for its next start to rest; False when it had started meanwhile."""
    async with container.lock:
        if container.status != Status.RESTARTING:
            return False
        container.move(Status.EXITED)
        await engine.save(container)
        engine.waits.ended(container)
        return True


async def _signal(engine: Containers, container: Container, number: int) -> None:
    """Send a signal to the container's first process and tell so; quiet when it just ended."""
    try:
        shim = await engine.shim_of(container)
        await shim.signal(None, number)
    except (ShimGone, ShimError) as error:
        log.debug("container %s got no signal %d: %s", container.id, number, error)
        return
    engine.publish(container, "kill", signal=str(number))


async def resume_quietly(engine: Containers, container: Container) -> None:
    """Thaw a paused container so that a signal reaches it; quiet when that is impossible."""
    try:
        shim = await engine.shim_of(container)
        await shim.resume()
    except EngineError as error:
        log.debug("container %s could not be thawed: %s", container.id, error)


async def kill_and_wait(engine: Containers, container: Container) -> None:
    """SIGKILL and wait until the end has been dealt with. Raises SystemError_ when it does not end."""
    container.stop_requested = True
    if container.unmanaged:
        await unmanaged.stop(engine, container, 9, 0)
        return
    if container.status == Status.RESTARTING and await _cancel_restart(engine, container):
        return
    with engine.waits.register(container, "not-running") as gone:
        if not gone.done():
            await _signal(engine, container, 9)
            if container.status == Status.PAUSED:
                await resume_quietly(engine, container)
        try:
            async with asyncio.timeout(KILL_DEADLINE):
                await asyncio.shield(gone)
        except TimeoutError:
            raise SystemError_(
                f"container {container.id} PID {container.state.pid} did not end {KILL_DEADLINE:.0f} s after SIGKILL: "
                "it hangs in the kernel"
            ) from None


async def kill(engine: Containers, container: Container, signal: str = "") -> None:
    """Send a signal, SIGKILL by default; that one is waited for. Raises Conflict when it does not run."""
    number = parse_signal(signal or "SIGKILL")
    if container.status == Status.RESTARTING and number == 9:
        container.stop_requested = True
        container.manually_stopped = True
        if await _cancel_restart(engine, container):
            return
    unmanaged.check_managed(container)
    if not container.status.alive:
        raise Conflict(f"cannot kill container: {container.name}: container {container.id} is not running")
    stops = number == 9 or not container.config.stop_signal or number == parse_signal(container.config.stop_signal)
    if stops:
        container.stop_requested = True
        container.manually_stopped = True
        await engine.save(container)
    if number == 9:
        await kill_and_wait(engine, container)
        return
    try:
        shim = await engine.shim_of(container)
        await shim.signal(None, number)
    except ShimError:
        raise not_running(container) from None
    engine.publish(container, "kill", signal=str(number))
    if stops and container.status == Status.PAUSED:
        await resume_quietly(engine, container)


async def restart(engine: Containers, container: Container, *, signal: str = "", timeout: int | None = None) -> None:
    """Stop if it runs, and start."""
    unmanaged.check_managed(container)
    if container.removing or container.status in (Status.REMOVING, Status.DEAD):
        raise Conflict("container is marked for removal and cannot be started")
    if container.status.running:
        auto_remove = container.host_config.auto_remove
        container.host_config.auto_remove = False
        try:
            await stop(engine, container, signal=signal, timeout=timeout)
        except NotModified:
            log.debug("container %s ended before its restart stopped it", container.id)
        finally:
            container.host_config.auto_remove = auto_remove
    await starting.start(engine, container)
    engine.publish(container, "restart")


async def pause(engine: Containers, container: Container) -> None:
    """Freeze a running container."""
    unmanaged.check_managed(container)
    async with container.lock:
        if not container.status.running:
            raise not_running(container)
        if container.status == Status.PAUSED:
            raise Conflict(f"Container {container.id} is already paused")
        check_running(container)
        shim = await engine.shim_of(container)
        try:
            await shim.pause()
        except ShimError as error:
            raise SystemError_(f"cannot pause container {container.name}: {error}") from error
        container.move(Status.PAUSED)
        await engine.save(container)
    engine.publish(container, "pause")


async def unpause(engine: Containers, container: Container) -> None:
    """Thaw a paused container."""
    async with container.lock:
        if container.status != Status.PAUSED:
            raise Conflict(f"Container {container.id} is not paused")
        shim = await engine.shim_of(container)
        try:
            await shim.resume()
        except ShimError as error:
            raise SystemError_(f"cannot unpause container {container.name}: {error}") from error
        container.move(Status.RUNNING)
        await engine.save(container)
    engine.publish(container, "unpause")


async def rename(engine: Containers, container: Container, name: str) -> None:
    """Give a container another name; networks answer to it at once."""
    if not name:
        raise InvalidParameter("Neither old nor new names may be empty")
    old = container.name
    if name.removeprefix("/") == old:
        raise InvalidParameter("Renaming a container with the same name as its current name")
    async with container.lock:
        try:
            new = check_name(f"/{name.removeprefix('/')}")
            engine.names.reserve(new, container.id)
        except (InvalidParameter, Conflict) as error:
            raise type(error)(f"Error when allocating new name: {error}") from None
        container.name = new
        try:
            await engine.save(container)
        except BaseException:
            container.name = old
            engine.names.release(new, container.id)
            raise
        engine.names.release(old, container.id)
        if container.status.alive and container.own_network:
            await engine.networks.rename(container.id, new)
    engine.publish(container, "rename", oldName=f"/{old}")


_LIMITS = (
    "blkio_weight", "cpu_shares", "nano_cpus", "cpu_period", "cpu_quota", "cpuset_cpus", "cpuset_mems", "memory",
    "memory_swap", "memory_reservation", "cpu_realtime_period", "cpu_realtime_runtime",
)  # fmt: skip


async def update(engine: Containers, container: Container, changes: HostConfig) -> list[str]:
    """Change limits and restart policy, of a running container at once. Returns warnings."""

    def refused(text: str) -> InvalidParameter:
        return InvalidParameter(f"Cannot update container {container.id}: {text}")

    if container.removing or container.status in (Status.REMOVING, Status.DEAD):
        raise Conflict(
            f'Cannot update container {container.id}: Container is marked for removal and cannot be "update".'
        )
    async with container.lock:
        host = container.host_config.model_copy(deep=True)
        if changes.restart_policy.name:
            validate.check_restart_policy(changes.restart_policy)
            if host.auto_remove and changes.restart_policy.name != "no":
                raise refused("Restart policy cannot be updated because AutoRemove is enabled for the container")
            host.restart_policy = RestartPolicy.model_validate(changes.restart_policy.model_dump())
        for name, new, old in (
            ("Period", changes.cpu_period, host.cpu_period),
            ("Quota", changes.cpu_quota, host.cpu_quota),
        ):
            if changes.nano_cpus and old:
                raise InvalidParameter(
                    f"Conflicting options: Nano CPUs cannot be updated as CPU {name} has already been set"
                )
            if new and host.nano_cpus:
                raise InvalidParameter(
                    f"Conflicting options: CPU {name} cannot be updated as NanoCPUs has already been set"
                )
        if changes.memory and host.memory_swap > 0 and not changes.memory_swap and changes.memory > host.memory_swap:
            raise refused(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
            )
        limited = False
        for name in _LIMITS:
            if value := getattr(changes, name):
                setattr(host, name, value)
                limited = True
        if changes.pids_limit is not None:
            host.pids_limit = max(changes.pids_limit, 0)
            limited = True
        validate.check_resources(host)
        warnings = drop_unsupported(host, cgroup_facts())
        if limited and container.status.alive:
            shim = await engine.shim_of(container)
            limits = update_resources(host)
            many = changes.pids_limit is not None and changes.pids_limit <= 0
            if many:
                limits.pop("pids", None)
            try:
                await shim.update(limits)
                await asyncio.to_thread(cgroups.unlimit, container.cgroup_path, cpu=changes.cpu_quota < 0, pids=many)
            except (OciError, OSError) as error:
                if "Invalid argument" in str(error) or "out of range" in str(error):
                    raise refused(str(error)) from error
                raise SystemError_(f"Cannot update container {container.id}: {error}") from error
        container.host_config = host
        await engine.save(container)
    engine.publish(container, "update")
    return warnings


async def resize(engine: Containers, container: Container, rows: int, columns: int) -> None:
    """Set the size of a container's terminal. Raises Conflict when it does not run."""
    if not container.status.alive:
        raise not_running(container)
    if container.config.tty:  # dockerd takes the size of a terminal that is not there just as quietly
        shim = await engine.shim_of(container)
        try:
            await shim.resize(None, rows, columns)
        except ShimError as error:
            raise SystemError_(f"cannot resize the terminal of container {container.id}: {error}") from error
    engine.publish(container, "resize", height=str(rows), width=str(columns))
