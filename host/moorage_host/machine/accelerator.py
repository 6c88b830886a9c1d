"""Which accelerator to run the machine with, and what is remembered of those that failed here.

That /dev/kvm exists proves nothing: nested hosts offer one that aborts QEMU or stops the guest later. So `auto` tries it
once, `starting.py` watches, and a failure is remembered until QEMU, the kernel or the host is another one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import write_atomically
from moorage_host.settings import Accelerator

FORMAT = 1
QEMU = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
NATIVE = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class Circumstances:
    """What an accelerator's failure depends on; when any of it changes, the accelerator is tried again."""

    qemu: str
    kernel: str
    host: str


@dataclass(frozen=True)
class Choice:
    """The accelerator to start with. `note` says why it is not the one that the hardware seems to offer."""

    name: str
    may_fall_back: bool
    note: str = ""


def native_arch() -> str:
    """Architecture of this machine in Debian's words."""
    try:
        return NATIVE[platform.machine()]
    except KeyError:
        raise HostError(
            f"there is no guest image for {platform.machine()} machines", code=ErrorCode.UNAVAILABLE
        ) from None


def emulator(arch: str) -> Path:
    """The QEMU program for `arch`; HostError says how to get it when there is none."""
    found = shutil.which(QEMU[arch])
    if found is None:
        package = "qemu-system-x86" if arch == "amd64" else "qemu-system-arm"
        raise HostError(
            f"{QEMU[arch]} is not installed",
            hint=f"install QEMU (Debian: {package}; macOS: brew install qemu)",
            code=ErrorCode.UNAVAILABLE,
        )
    return Path(found)


def circumstances(program: Path) -> Circumstances:
    """Version of QEMU, release of the kernel, id of the host. Blocks for a moment (runs QEMU)."""
    result = subprocess.run(
        [str(program), "--version"], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    )
    if result.returncode != 0:
        raise HostError(f"{program} does not run: {result.stderr.strip()}", hint="install QEMU again")
    return Circumstances(result.stdout.splitlines()[0], platform.release(), _host_id())


def _host_id() -> str:
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            return path.read_text(encoding="ascii").strip()
        except OSError:
            continue
    return platform.node()


def hardware(arch: str) -> str | None:
    """The accelerator that this host seems to offer for `arch`, if any."""
    if arch != native_arch():
        return None
    if sys.platform == "darwin":
        return "hvf"
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else None


class Memory:
    """Failures of accelerators on this host, kept in one file. A file that cannot be read counts as empty."""

    def __init__(self, path: Path, now: Circumstances) -> None:
        self._path = path
        self._now = now

    def failure(self, accelerator: str) -> str | None:
        """Why `accelerator` failed under these same circumstances, or None."""
        record = self._load().get(accelerator)
        if not isinstance(record, dict) or record.get("circumstances") != vars(self._now):
            return None
        return str(record.get("reason", "it failed"))

    def remember(self, accelerator: str, reason: str) -> None:
        """Note a failure; it holds until the circumstances change."""
        failures = self._load()
        failures[accelerator] = {"reason": reason, "circumstances": vars(self._now)}
        write_atomically(self._path, json.dumps({"format": FORMAT, "failures": failures}, indent=2) + "\n")

    def _load(self) -> dict[str, object]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return dict(content["failures"]) if content["format"] == FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def choose(setting: Accelerator, memory: Memory, offered: Callable[[], str | None]) -> Choice:
    """The accelerator to start with: the one that was set, else the hardware's unless it failed here before, else tcg."""
    if setting != "auto":
        return Choice(setting, may_fall_back=False)
    name = offered()
    if name is None:
        return Choice("tcg", may_fall_back=False)
    reason = memory.failure(name)
    if reason is not None:
        return Choice("tcg", may_fall_back=False, note=f"{name} does not work on this host: {reason}")
    return Choice(name, may_fall_back=True)
