"""Health checks: a probe run again and again in the container, and what its results amount to."""

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from moorage_guest.api.types import HealthConfig
from moorage_guest.engine.record import Container, Health, Probe
from moorage_guest.engine.states import Status
from moorage_guest.errors import EngineError

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers

log = logging.getLogger(__name__)

_SECOND = 1_000_000_000
#: dockerd's defaults, nanoseconds.
_INTERVAL, _TIMEOUT, _START_INTERVAL = 30 * _SECOND, 30 * _SECOND, 5 * _SECOND
_RETRIES = 3
#: What inspect keeps of a probe's output, bytes, and how many probes.
MAX_OUTPUT = 4096
_KEPT = 5


@dataclass(frozen=True)
class Check:
    """A health check with its defaults filled in; durations in nanoseconds."""

    args: list[str]
    interval: int
    timeout: int
    start_period: int
    start_interval: int
    retries: int


def check_of(container: Container) -> Check | None:
    """Return the container's health check, or None when it has none."""
    config = container.config.healthcheck
    if config is None or not config.test:
        return None
    args = command(config, container.config.shell)
    if args is None:
        return None
    return Check(
        args, config.interval or _INTERVAL, config.timeout or _TIMEOUT, config.start_period,
        config.start_interval or _START_INTERVAL, config.retries or _RETRIES,
    )  # fmt: skip


def command(config: HealthConfig, shell: list[str] | None) -> list[str] | None:
    """Return the probe's command line, or None for NONE."""
    kind, *words = config.test
    if kind == "CMD":
        return words or None
    if kind == "CMD-SHELL":
        return [*(shell or ["/bin/sh", "-c"]), *words]
    if kind != "NONE":
        log.warning("unknown kind of health check: %s", kind)
    return None


def begin(engine: "Containers", container: Container, *, keep: bool = False) -> None:
    """Start probing a live container; with ``keep`` from the history it has, else as starting."""
    check = check_of(container)
    running = engine.running.get(container.id)
    if check is None:
        container.health = None
        return
    if not keep or container.health is None:
        container.health = Health()
    if running is not None:
        running.tasks.add(engine.task(_probe_for_ever(engine, container, check), f"health of {container.id[:12]}"))


def end(engine: "Containers", container: Container) -> None:
    """Stop probing: the container has ended."""
    running = engine.running.get(container.id)
    current = asyncio.current_task()
    for task in list(running.tasks) if running is not None else []:
        if task is not current:
            task.cancel()
            assert running is not None
            running.tasks.discard(task)
    if container.health is not None and container.health.status != "unhealthy":
        container.health = replace(container.health, status="unhealthy")


def pause(last_ns: int, interval: int, now_ns: int) -> float:
    """Return the seconds until the next probe: never more than the interval, though the clock was set back."""
    return min(max(last_ns + interval - now_ns, 0), interval) / 1e9


async def _probe_for_ever(engine: "Containers", container: Container, check: Check) -> None:
    while container.status.alive:
        health = container.health or Health()
        starting = health.status == "starting" and abs(time.time_ns() - container.state.started_ns) < check.start_period
        interval = check.start_interval if starting else check.interval
        last = health.probes[-1].end_ns if health.probes else container.state.started_ns
        await asyncio.sleep(pause(last, interval, time.time_ns()))
        if container.status != Status.RUNNING:
            # A paused container is not asked; wait a beat of the check.
            await asyncio.sleep(interval / 1e9)
            continue
        probe = await _probe(engine, container, check)
        if not container.status.alive:
            return
        await _judge(engine, container, check, probe)


async def _probe(engine: "Containers", container: Container, check: Check) -> Probe:
    from moorage_guest.engine import execs

    start = time.time_ns()
    exec_id = secrets.token_hex(32)
    engine.publish(container, f"exec_create: {execs.shown(check.args)}", execID=exec_id)
    try:
        code, output = await execs.run_captured(
            engine, container, exec_id, check.args, timeout=check.timeout / 1e9, capture=MAX_OUTPUT + 1
        )
    except EngineError as error:
        return Probe(start, time.time_ns(), -1, str(error))
    if code is None:
        return Probe(
            start, time.time_ns(), -1,
            f"Health check exceeded timeout ({_duration(check.timeout)})" + (f": {output}" if output else ""),
        )  # fmt: skip
    return Probe(start, time.time_ns(), code, output)


async def _judge(engine: "Containers", container: Container, check: Check, probe: Probe) -> None:
    health = container.health or Health()
    probes = (*health.probes, probe)[-_KEPT:]
    status, streak = health.status, health.failing_streak
    if probe.exit_code == 0:
        status, streak = "healthy", 0
    elif not (status == "starting" and abs(probe.start_ns - container.state.started_ns) < check.start_period):
        streak += 1
        if streak >= check.retries:
            status = "unhealthy"
    container.health = Health(status, streak, probes)
    await engine.save(container)
    if status != health.status:
        engine.publish(container, f"health_status: {status}")


def _duration(ns: int) -> str:
    seconds = ns / 1e9
    if seconds < 1:
        return f"{ns / 1e6:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest:g}s"


def to_api(health: Health | None) -> dict[str, Any] | None:
    """Return the Health object of inspect."""
    if health is None:
        return None
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {
                "Start": timestamp(probe.start_ns),
                "End": timestamp(probe.end_ns),
                "ExitCode": probe.exit_code,
                "Output": probe.output,
            }
            for probe in health.probes
        ],
    }


def timestamp(ns: int) -> str:
    """Return RFC 3339 with nanoseconds in UTC; 0 is the API's zero time."""
    if ns == 0:
        return "0001-01-01T00:00:00Z"
    seconds, rest = divmod(ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{rest:09d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
