"""Limits: HostConfig's resource fields as the OCI ``resources`` object, ulimits as rlimits."""

import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moorage_guest.api.types import HostConfig, ThrottleDevice, Ulimit
from moorage_guest.errors import InvalidParameter, SystemError_
from moorage_guest.oci import capabilities

_ULIMITS = "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
#: Docker's names of limits; the OCI type is RLIMIT_ and the name in upper case.
ULIMITS = frozenset(_ULIMITS.split())

_UNLIMITED = 2**64 - 1


def _cpu_shares(shares: int) -> int:
    """Return shares as the kernel takes them. Where it has shares itself (cgroup v1), others are refused as by runc."""
    lowest, highest = 2, 262144
    if lowest <= shares <= highest:
        return shares
    if Path("/sys/fs/cgroup/cpu/cpu.shares").exists():
        word, limit = ("minimum", lowest) if shares < lowest else ("maximum", highest)
        raise InvalidParameter(f"the {word} allowed cpu-shares is {limit}")
    return min(max(shares, lowest), highest)


def cpu_resources(host: HostConfig) -> dict[str, Any]:
    """Return the OCI ``cpu`` object; NanoCpus is a quota of a period of 100 ms."""
    cpu: dict[str, Any] = {}
    if host.cpu_shares:
        cpu["shares"] = _cpu_shares(host.cpu_shares)
    if host.nano_cpus > 0:
        cpu["period"], cpu["quota"] = 100_000, host.nano_cpus * 100_000 // 1_000_000_000
    if host.cpu_period:
        cpu["period"] = host.cpu_period
    if host.cpu_quota > 0:  # below 0 is no limit, which the runtime writes as a number that the kernel refuses
        cpu["quota"] = host.cpu_quota
    if host.cpu_realtime_period:
        cpu["realtimePeriod"] = host.cpu_realtime_period
    if host.cpu_realtime_runtime:
        cpu["realtimeRuntime"] = host.cpu_realtime_runtime
    if host.cpuset_cpus:
        cpu["cpus"] = host.cpuset_cpus
    if host.cpuset_mems:
        cpu["mems"] = host.cpuset_mems
    return cpu


def memory_resources(host: HostConfig) -> dict[str, Any]:
    """Return the OCI ``memory`` object."""
    memory: dict[str, Any] = {}
    if host.memory > 0:
        memory["limit"] = host.memory
    if host.memory_reservation > 0:
        memory["reservation"] = host.memory_reservation
    if host.memory_swap > 0 or (host.memory_swap == -1 and host.memory > 0):
        memory["swap"] = host.memory_swap
    if host.memory_swappiness is not None and host.memory_swappiness >= 0:
        memory["swappiness"] = host.memory_swappiness
    if host.oom_kill_disable:
        memory["disableOOMKiller"] = True
    if host.kernel_memory_tcp > 0:
        memory["kernelTCP"] = host.kernel_memory_tcp
    return memory


def _device_number(path: str) -> tuple[int, int]:
    try:
        number = Path(path).stat().st_rdev
    except OSError as error:
        raise SystemError_(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return os.major(number), os.minor(number)


def _throttles(devices: Iterable[ThrottleDevice]) -> list[dict[str, int]]:
    found = []
    for device in devices:
        major, minor = _device_number(device.path)
        found.append({"major": major, "minor": minor, "rate": device.rate})
    return found


def block_resources(host: HostConfig) -> dict[str, Any]:
    """Return the OCI ``blockIO`` object. Raises SystemError_ when a device is not there."""
    block: dict[str, Any] = {}
    if host.blkio_weight:
        block["weight"] = host.blkio_weight
    if host.blkio_weight_device:
        weights = []
        for device in host.blkio_weight_device:
            major, minor = _device_number(device.path)
            weights.append({"major": major, "minor": minor, "weight": device.weight})
        block["weightDevice"] = weights
    for key, devices in (
        ("throttleReadBpsDevice", host.blkio_device_read_bps),
        ("throttleWriteBpsDevice", host.blkio_device_write_bps),
        ("throttleReadIOPSDevice", host.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", host.blkio_device_write_iops),
    ):
        if devices:
            block[key] = _throttles(devices)
    return block


def build_resources(host: HostConfig, device_rules: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the OCI ``resources`` object for a new container."""
    found: dict[str, Any] = {"devices": device_rules}
    for key, value in (
        ("cpu", cpu_resources(host)),
        ("memory", memory_resources(host)),
        ("blockIO", block_resources(host)),
    ):
        if value:
            found[key] = value
    if host.pids_limit:
        found["pids"] = {"limit": host.pids_limit if host.pids_limit > 0 else -1}
    return found


def update_resources(host: HostConfig) -> dict[str, Any]:
    """Return what ``crun update`` takes for a running container: the changeable limits of the merged HostConfig."""
    found = build_resources(host, [])
    del found["devices"]
    if "cpu" in found:
        found["cpu"].pop("realtimePeriod", None)
        found["cpu"].pop("realtimeRuntime", None)
    if host.pids_limit is not None:
        found["pids"] = {"limit": host.pids_limit if host.pids_limit > 0 else -1}
    return found


def rlimits(own: Iterable[Ulimit], defaults: Mapping[str, Ulimit] | None = None) -> list[dict[str, Any]]:
    """Return the OCI rlimits: the container's own over the daemon's defaults.

    Where this machine may not raise a hard limit (no CAP_SYS_RESOURCE) it is lowered to what is allowed, since the
    runtime would fail otherwise. Raises InvalidParameter on an unknown name or a soft limit above the hard one.
    """
    merged = dict(defaults or {})
    merged.update({limit.name: limit for limit in own})
    may_raise = "CAP_SYS_RESOURCE" in capabilities.available()
    found = []
    for name, limit in merged.items():
        check_ulimit(limit)
        soft, hard = (value if value >= 0 else _UNLIMITED for value in (limit.soft, limit.hard))
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if not may_raise and number is not None:
            ceiling = resource.getrlimit(number)[1]
            if ceiling != resource.RLIM_INFINITY:
                hard = min(hard, ceiling)
                soft = min(soft, hard)
        found.append({"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard})
    return found


def check_ulimit(limit: Ulimit) -> None:
    """Raise InvalidParameter, worded as dockerd does, when this is no limit."""
    if limit.name not in ULIMITS:
        raise InvalidParameter(f"invalid ulimit type: {limit.name}")
    if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
        raise InvalidParameter(
            f"ulimit soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
        )
