"""What the kernel counts for a container: its processes and the statistics of `GET /containers/{id}/stats`.

Both cgroup v2 (the guest) and v1. Everything is read from /sys/fs/cgroup; a container that is gone reads as zeros.
Field names are the Engine API's.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from moorage_guest import sysinfo

ROOT = Path("/sys/fs/cgroup")

#: What the kernel says for "no limit" is read as this.
_UNLIMITED = 2**64 - 1

_V1_BLOCK_FILES = (
    ("io_service_bytes_recursive", "io_service_bytes"),
    ("io_serviced_recursive", "io_serviced"),
)

_EMPTY_BLOCK: dict[str, Any] = {
    "io_service_bytes_recursive": None, "io_serviced_recursive": None, "io_queue_recursive": None,
    "io_service_time_recursive": None, "io_wait_time_recursive": None, "io_merged_recursive": None,
    "io_time_recursive": None, "sectors_recursive": None,
}  # fmt: skip


def is_v2() -> bool:
    """Whether this machine has the unified hierarchy alone."""
    return (ROOT / "cgroup.controllers").exists()


@cache
def _v1_mount(controller: str) -> Path:
    """Return where a v1 controller is mounted, alone or with others (cpu,cpuacct)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup" and controller in options.split(","):
            return Path(before.split(" ")[4])
    return ROOT / controller


def folder(cgroup_path: str, controller: str) -> Path:
    """Return the folder in which a controller's files of this cgroup are."""
    top = ROOT if is_v2() else _v1_mount(controller)
    return top / cgroup_path.lstrip("/")


def processes(cgroup_path: str) -> list[int]:
    """Return the pids in a cgroup and those below it, in rising order."""
    found: set[int] = set()
    for path, _, _ in os.walk(folder(cgroup_path, "pids")):
        found.update(int(word) for word in _text(Path(path, "cgroup.procs")).split())
    return sorted(found)


def remove(cgroup_path: str) -> None:
    """Remove a cgroup without processes, and those below it, where it is still there; the runtime leaves one half made.

    Quiet about what is in use.
    """
    tops = [ROOT] if is_v2() else [each for each in ROOT.iterdir() if each.is_dir() and not each.is_symlink()]
    for top in tops:
        for path, _, _ in os.walk(top / cgroup_path.lstrip("/"), topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()


def ready_moves() -> None:
    """Make the kernel ready to move processes between cgroups, by moving this one to where it is; blocks for about 10 ms.

    The first move after a pause waits for a grace period of RCU (cgroup_threadgroup_rwsem); others close behind it do not.
    Done while the runtime is still loading, the wait is not added to its start. Harmless where it does not work.
    """
    own = _own_processes()
    if own is not None:
        with contextlib.suppress(OSError):
            own.write_text(str(os.getpid()))


@cache
def _own_processes() -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if is_v2() or controllers:
            controller = controllers.split(",")[0].removeprefix("name=")
            file = folder(path, controller) / "cgroup.procs"
            if file.exists():
                return file
    return None


def unlimit(cgroup_path: str, *, cpu: bool, pids: bool) -> None:
    """Take away a running container's CPU quota, its limit of processes. The runtime writes -1, which the kernel refuses.

    Raises OSError.
    """
    if cpu and is_v2():
        (folder(cgroup_path, "") / "cpu.max").write_text("max")
    elif cpu:
        (folder(cgroup_path, "cpu") / "cpu.cfs_quota_us").write_text("-1")
    if pids:
        (folder(cgroup_path, "pids") / "pids.max").write_text("max")


def is_frozen(cgroup_path: str) -> bool:
    """Whether the container is paused."""
    if is_v2():
        return _pairs(folder(cgroup_path, "") / "cgroup.events").get("frozen") == 1
    return _text(folder(cgroup_path, "freezer") / "freezer.state").strip() in ("FROZEN", "FREEZING")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path).strip()
    if text == "max":
        return _UNLIMITED
    return int(text) if text.lstrip("-").isdigit() else 0


def _pairs(path: Path) -> dict[str, int]:
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def system_cpu_usage() -> int:
    """Return nanoseconds that all processors together have spent since boot, idle included."""
    with Path("/proc/stat").open() as file:
        fields = file.readline().split()[1:8]
    return sum(map(int, fields)) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def read_stats(cgroup_path: str) -> dict[str, Any]:
    """Return ``cpu_stats``, ``memory_stats``, ``pids_stats`` and ``blkio_stats`` as they are now.

    Reads about ten small files of the kernel; never waits for a disk.
    """
    if is_v2():
        found = _read_v2(folder(cgroup_path, ""))
    else:
        found = _read_v1(cgroup_path)
    found["cpu_stats"]["system_cpu_usage"] = system_cpu_usage()
    found["cpu_stats"]["online_cpus"] = sysinfo.cpu_count()
    return found


def _limit(value: int) -> int:
    return min(value, sysinfo.memory_total())


def _read_v2(path: Path) -> dict[str, Any]:
    cpu, memory = _pairs(path / "cpu.stat"), _pairs(path / "memory.stat")
    events = _pairs(path / "memory.events")
    block = dict(_EMPTY_BLOCK)
    entries = list(_v2_block(_text(path / "io.stat")))
    block["io_service_bytes_recursive"] = entries or None
    return {
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": cpu.get("usage_usec", 0) * 1000,
                "usage_in_kernelmode": cpu.get("system_usec", 0) * 1000,
                "usage_in_usermode": cpu.get("user_usec", 0) * 1000,
            },
            "throttling_data": {
                "periods": cpu.get("nr_periods", 0),
                "throttled_periods": cpu.get("nr_throttled", 0),
                "throttled_time": cpu.get("throttled_usec", 0) * 1000,
            },
        },
        "memory_stats": {
            "usage": _number(path / "memory.current"),
            "stats": memory,
            "failcnt": events.get("max", 0),
            "limit": _limit(_number(path / "memory.max") or _UNLIMITED),
        }
        if memory
        else {},
        "pids_stats": {"current": _number(path / "pids.current"), "limit": _number(path / "pids.max")},
        "blkio_stats": block,
    }


def _v2_block(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        match = re.match(r"(\d+):(\d+) ", line)
        if match is None:
            continue
        values = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
        for key, operation in (("rbytes", "read"), ("wbytes", "write")):
            yield {
                "major": int(match.group(1)),
                "minor": int(match.group(2)),
                "op": operation,
                "value": int(values.get(key, "0")),
            }


def _read_v1(cgroup_path: str) -> dict[str, Any]:
    accounting = folder(cgroup_path, "cpuacct")
    memory, pids = folder(cgroup_path, "memory"), folder(cgroup_path, "pids")
    throttling = _pairs(folder(cgroup_path, "cpu") / "cpu.stat")
    modes = _pairs(accounting / "cpuacct.stat")
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    each = [int(word) for word in _text(accounting / "cpuacct.usage_percpu").split()]
    counted = _pairs(memory / "memory.stat")
    return {
        "cpu_stats": {
            "cpu_usage": {
                "total_usage": _number(accounting / "cpuacct.usage"),
                "percpu_usage": each,
                "usage_in_kernelmode": modes.get("system", 0) * tick,
                "usage_in_usermode": modes.get("user", 0) * tick,
            },
            "throttling_data": {
                "periods": throttling.get("nr_periods", 0),
                "throttled_periods": throttling.get("nr_throttled", 0),
                "throttled_time": throttling.get("throttled_time", 0),
            },
        },
        "memory_stats": {
            "usage": _number(memory / "memory.usage_in_bytes"),
            "max_usage": _number(memory / "memory.max_usage_in_bytes"),
            "stats": counted,
            "failcnt": _number(memory / "memory.failcnt"),
            "limit": _limit(_number(memory / "memory.limit_in_bytes") or _UNLIMITED),
        }
        if counted
        else {},
        "pids_stats": {"current": _number(pids / "pids.current"), "limit": _number(pids / "pids.max")},
        "blkio_stats": _v1_block(folder(cgroup_path, "blkio")),
    }


def _v1_block(path: Path) -> dict[str, Any]:
    block = dict(_EMPTY_BLOCK)
    for key, name in _V1_BLOCK_FILES:
        text = _text(path / f"blkio.throttle.{name}_recursive") or _text(path / f"blkio.{name}_recursive")
        entries = []
        for line in text.splitlines():
            match = re.fullmatch(r"(\d+):(\d+) (\w+) (\d+)", line)
            if match:
                entries.append(
                    {
                        "major": int(match.group(1)), "minor": int(match.group(2)),
                        "op": match.group(3), "value": int(match.group(4)),
                    }
                )  # fmt: skip
        block[key] = entries or None
    return block
