"""Restart policies: whether a container that ended starts again, and after how long."""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from moorage_guest.engine.record import Container
from moorage_guest.engine.states import Status
from moorage_guest.errors import EngineError

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers

log = logging.getLogger(__name__)

_FIRST_DELAY = 100_000_000
_LONGEST_DELAY = 60_000_000_000
#: A container that ran this long (ns) is taken to be well: the delay begins anew.
_WELL_AFTER = 10_000_000_000


def wanted(engine: "Containers", container: Container, exit_code: int) -> bool:
    """Whether the policy asks for another start after this end."""
    if engine.shutting_down or container.stop_requested or container.removing or container.manually_stopped:
        return False
    policy = container.host_config.restart_policy
    match policy.name:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return exit_code != 0 and (
                policy.maximum_retry_count == 0 or container.restart_count < policy.maximum_retry_count
            )
    return False


def wanted_at_boot(container: Container) -> bool:
    """Whether a container that does not run is to be started when the daemon starts."""
    policy = container.host_config.restart_policy
    if container.state.started_ns == 0 and container.status != Status.RESTARTING:
        return False
    match policy.name:
        case "always":
            return True
        case "unless-stopped":
            return not container.manually_stopped
        case "on-failure":
            return (
                container.state.exit_code != 0
                and not container.manually_stopped
                and (policy.maximum_retry_count == 0 or container.restart_count < policy.maximum_retry_count)
            )
    return False


def count(container: Container, ran_ns: int) -> None:
    """Count a restart and set how long it waits, from how long the container ran; negative when the clock was set back."""
    container.restart_count += 1
    if abs(ran_ns) >= _WELL_AFTER or container.restart_delay_ns == 0:
        container.restart_delay_ns = _FIRST_DELAY
    else:
        container.restart_delay_ns = min(container.restart_delay_ns * 2, _LONGEST_DELAY)


def schedule(engine: "Containers", container: Container, delay_ns: int | None = None) -> None:
    """Start a restarting container after its delay, unless it is stopped or removed meanwhile."""
    delay = container.restart_delay_ns if delay_ns is None else delay_ns
    engine.task(_later(engine, container, delay), f"restart {container.id[:12]}")


def schedule_left(engine: "Containers", container: Container) -> None:
    """Go on waiting where the last daemon stopped; never longer than the whole delay, though the clock was set back."""
    due = container.state.finished_ns + container.restart_delay_ns
    schedule(engine, container, min(max(due - time.time_ns(), 0), container.restart_delay_ns))


async def _later(engine: "Containers", container: Container, delay_ns: int) -> None:
    from moorage_guest.engine import starting

    count_then = container.restart_count
    await asyncio.sleep(delay_ns / 1e9)
    async with container.lock:
        if (
            container.status != Status.RESTARTING
            or container.removing
            or container.restart_count != count_then
            or engine.shutting_down
        ):
            return
        try:
            await starting.start_locked(engine, container)
        except EngineError as error:
            log.warning("container %s could not be restarted: %s", container.id, error)
