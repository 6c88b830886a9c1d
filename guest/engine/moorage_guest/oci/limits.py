"""Limits that this machine's kernel does not offer: left out, with dockerd's warning, as dockerd does."""

from collections.abc import Callable
from dataclasses import dataclass

from moorage_guest.api.types import HostConfig
from moorage_guest.sysinfo import CgroupFacts


@dataclass(frozen=True)
class _Limit:
    """Fields that need something of the kernel, and what is said when they are dropped."""

    offered: Callable[[CgroupFacts], bool]
    fields: tuple[str, ...]
    warning: str


_KERNEL = "Your kernel does not support"
_MOUNTED = "or the cgroup is not mounted"

_LIMITS = (
    _Limit(
        lambda facts: facts.memory_limit,
        ("memory", "memory_swap"),
        f"{_KERNEL} memory limit capabilities {_MOUNTED}. Limitation discarded.",
    ),
    _Limit(
        lambda facts: facts.memory_limit,
        ("memory_reservation",),
        f"{_KERNEL} memory soft limit capabilities {_MOUNTED}. Limitation discarded.",
    ),
    _Limit(
        lambda facts: facts.version == "1" and facts.memory_limit,
        ("memory_swappiness",),
        f"{_KERNEL} memory swappiness capabilities {_MOUNTED}. Memory swappiness discarded.",
    ),
    _Limit(
        lambda facts: facts.version == "1" and facts.memory_limit,
        ("kernel_memory_tcp",),
        f"{_KERNEL} kernel memory TCP limit capabilities {_MOUNTED}. Limitation discarded.",
    ),
    _Limit(
        lambda facts: facts.oom_kill_disable,
        ("oom_kill_disable",),
        f"{_KERNEL} OomKillDisable. OomKillDisable discarded.",
    ),
    _Limit(
        lambda facts: facts.pids_limit,
        ("pids_limit",),
        f"{_KERNEL} PIDs limit capabilities {_MOUNTED}. PIDs limit discarded.",
    ),
    _Limit(lambda facts: facts.cpu_shares, ("cpu_shares",), f"{_KERNEL} CPU shares {_MOUNTED}. Shares discarded."),
    _Limit(
        lambda facts: facts.cpu_set, ("cpuset_cpus", "cpuset_mems"), f"{_KERNEL} cpuset {_MOUNTED}. Cpuset discarded."
    ),
    _Limit(
        lambda facts: facts.blkio_weight,
        ("blkio_weight",),
        f"{_KERNEL} Block I/O weight {_MOUNTED}. Weight discarded.",
    ),
    _Limit(
        lambda facts: facts.blkio_weight,
        ("blkio_weight_device",),
        f"{_KERNEL} Block I/O weight_device {_MOUNTED}. Weight-device discarded.",
    ),
    _Limit(
        lambda facts: facts.blkio_throttle,
        ("blkio_device_read_bps", "blkio_device_write_bps", "blkio_device_read_iops", "blkio_device_write_iops"),
        f"{_KERNEL} Block I/O throttling {_MOUNTED}. Limits discarded.",
    ),
)


def drop_unsupported(host: HostConfig, facts: CgroupFacts) -> list[str]:
    """Reset the fields of ``host`` that this kernel has no limit for; return one warning for each kind."""
    warnings = []
    for limit in _LIMITS:
        if limit.offered(facts):
            continue
        asked = [name for name in limit.fields if getattr(host, name)]
        for name in limit.fields:
            setattr(host, name, HostConfig.model_fields[name].get_default(call_default_factory=True))
        if asked:
            warnings.append(limit.warning)
    if host.memory and not facts.swap_limit and host.memory_swap != -1:
        if host.memory_swap > 0:
            warnings.append(f"{_KERNEL} swap limit capabilities {_MOUNTED}. Memory limited without swap.")
        host.memory_swap = -1
    return warnings
