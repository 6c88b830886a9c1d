"""Facts about the machine that the daemon runs on, as `GET /info` and `GET /version` report them.

Everything is read from the kernel each time or once at start; nothing is guessed. Linux only.
"""

import os
import platform
import shutil
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CgroupFacts:
    """Which limits the kernel offers; the names are those of `GET /info`."""

    version: str
    memory_limit: bool
    swap_limit: bool
    cpu_period: bool
    cpu_quota: bool
    cpu_shares: bool
    cpu_set: bool
    pids_limit: bool
    oom_kill_disable: bool
    blkio_weight: bool
    blkio_throttle: bool

    def warnings(self) -> list[str]:
        """Return dockerd's warnings for limits that are not to be had."""
        wanted = [
            (self.memory_limit, "WARNING: No memory limit support"),
            (self.swap_limit or not self.memory_limit, "WARNING: No swap limit support"),
            (self.oom_kill_disable or self.version == "2", "WARNING: No oom kill disable support"),
            (self.cpu_period, "WARNING: No cpu cfs period support"),
            (self.cpu_quota, "WARNING: No cpu cfs quota support"),
            (self.cpu_shares, "WARNING: No cpu shares support"),
            (self.cpu_set, "WARNING: No cpuset support"),
            (self.pids_limit, "WARNING: No pids limit support"),
        ]
        found = [text for there, text in wanted if not there]
        if self.version == "1":
            found.append(
                "WARNING: cgroup v1 is deprecated: its limits work here, the machine Moorage ships has cgroup v2"
            )
        return found


@cache
def cgroup_facts() -> CgroupFacts:
    """Look once at which cgroup controllers are there, v2 or v1."""
    if (CGROUP / "cgroup.controllers").exists():
        controllers = set((CGROUP / "cgroup.controllers").read_text().split())
        memory, cpu = "memory" in controllers, "cpu" in controllers
        return CgroupFacts(
            "2", memory, memory, cpu, cpu, cpu, "cpuset" in controllers, "pids" in controllers, False,
            "io" in controllers and any(CGROUP.glob("*/io.weight")), "io" in controllers,
        )  # fmt: skip

    def has(controller: str, file: str) -> bool:
        return (CGROUP / controller / file).exists()

    return CgroupFacts(
        "1",
        has("memory", "memory.limit_in_bytes"),
        has("memory", "memory.memsw.limit_in_bytes"),
        has("cpu", "cpu.cfs_period_us"),
        has("cpu", "cpu.cfs_quota_us"),
        has("cpu", "cpu.shares"),
        has("cpuset", "cpuset.cpus"),
        (CGROUP / "pids").is_dir(),
        has("memory", "memory.oom_control"),
        has("blkio", "blkio.weight") or has("blkio", "blkio.bfq.weight"),
        has("blkio", "blkio.throttle.read_bps_device"),
    )


def memory_total() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def kernel_version() -> str:
    """Release of the running kernel."""
    return os.uname().release


def architecture() -> str:
    """Machine name of the kernel, x86_64 or aarch64."""
    return platform.machine()


def oci_architecture() -> str:
    """Architecture in the names that images use, amd64 or arm64."""
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}.get(platform.machine(), platform.machine())


@cache
def operating_system() -> tuple[str, str]:
    """Name and version from os-release."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "Linux", ""
    return release.get("PRETTY_NAME", "Linux"), release.get("VERSION_ID", "")


def hostname() -> str:
    """Name of the machine."""
    return socket.gethostname()


def open_files() -> int:
    """File descriptors this process holds."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def ipv4_forwarding() -> bool:
    """Whether the kernel forwards IPv4."""
    try:
        return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    except OSError:
        return False


@cache
def program_version(program: str) -> str:
    """First word that looks like a version in the program's ``--version``, or "" when it is not there."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((word for word in (done.stdout + done.stderr).split() if word[:1].isdigit()), "")


@cache
def security_options(profile: str = "builtin", *, no_new_privileges: bool = False, remapped: bool = False) -> list[str]:
    """Which security modules confine containers here; ``profile`` is seccomp's unless a container has its own."""
    options = []
    if Path("/proc/sys/kernel/seccomp/actions_avail").exists():
        options.append(f"name=seccomp,profile={profile}")
    if remapped:
        options.append("name=userns")
    if cgroup_facts().version == "2":
        options.append("name=cgroupns")
    if no_new_privileges:
        options.append("name=no-new-privileges")
    return options
