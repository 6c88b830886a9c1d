"""Resource usage of containers, as `docker stats` shows it."""

import asyncio
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage_guest.engine.health import timestamp
from moorage_guest.engine.record import Container
from moorage_guest.oci import cgroups

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers

_ZERO_TIME = "0001-01-01T00:00:00Z"
_NO_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}


async def once(engine: "Containers", container: Container, *, one_shot: bool) -> dict[str, Any]:
    """Return one sample; unless ``one_shot`` it is compared with one a second before."""
    if one_shot or not container.status.alive:
        return await _sample(container, None)
    previous = await _sample(container, None)
    await asyncio.sleep(1)
    return await _sample(container, previous)


async def stream(engine: "Containers", container: Container) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a sample a second until the container is removed; of one that does not run, empty ones."""
    previous: dict[str, Any] | None = None
    due = time.monotonic()
    while engine.get(container.id) is container:
        previous = await _sample(container, previous)
        yield previous
        if not container.status.alive:
            previous = None
        due += 1
        await asyncio.sleep(max(due - time.monotonic(), 0))


async def _sample(container: Container, previous: dict[str, Any] | None) -> dict[str, Any]:
    if not container.status.alive:
        return _empty(container)
    return await asyncio.to_thread(_read, container, previous)


def _frame(container: Container) -> dict[str, Any]:
    return {"name": f"/{container.name}", "id": container.id, "num_procs": 0, "storage_stats": {}}


def _empty(container: Container) -> dict[str, Any]:
    return {
        **_frame(container), "read": _ZERO_TIME, "preread": _ZERO_TIME, "pids_stats": {}, "blkio_stats": {
            "io_service_bytes_recursive": None, "io_serviced_recursive": None, "io_queue_recursive": None,
            "io_service_time_recursive": None, "io_wait_time_recursive": None, "io_merged_recursive": None,
            "io_time_recursive": None, "sectors_recursive": None,
        },
        "cpu_stats": _NO_CPU, "precpu_stats": _NO_CPU, "memory_stats": {},
    }  # fmt: skip


def _read(container: Container, previous: dict[str, Any] | None) -> dict[str, Any]:
    now = timestamp(int(datetime.now(UTC).timestamp() * 1e9))
    sample = {**_frame(container), **cgroups.read_stats(container.cgroup_path), "read": now}
    sample["preread"] = previous["read"] if previous else _ZERO_TIME
    sample["precpu_stats"] = previous["cpu_stats"] if previous else _NO_CPU
    networks = interfaces(container.state.pid) if container.own_network else {}
    if networks:
        sample["networks"] = networks
    return sample


def interfaces(pid: int) -> dict[str, dict[str, int]]:
    """Return the counters of the interfaces that a process sees, loopback left out; empty when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        values = [int(word) for word in rest.split()]
        if name.strip() != "lo" and len(values) >= 12:
            found[name.strip()] = {
                "rx_bytes": values[0], "rx_packets": values[1], "rx_errors": values[2], "rx_dropped": values[3],
                "tx_bytes": values[8], "tx_packets": values[9], "tx_errors": values[10], "tx_dropped": values[11],
            }  # fmt: skip
    return found
