"""The data disk: a qcow2 file made and grown by qemu-img."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from moorage_host.errors import ErrorCode, HostError

LEAST_FREE_MIB = 512


def ensure(path: Path, size_gib: int) -> None:
    """Make the disk `path` exist with at least `size_gib`. Idempotent; never shrinks; the machine must be off. Blocks."""
    free = shutil.disk_usage(path.parent).free >> 20
    if free < LEAST_FREE_MIB:
        raise HostError(
            f"only {free} MiB are free in {path.parent}, the machine's disk needs {LEAST_FREE_MIB} MiB at the least",
            hint="free some space there, or set XDG_STATE_HOME to a folder on another disk",
            code=ErrorCode.UNAVAILABLE,
        )
    if not path.exists():
        staged = path.with_name(path.name + ".new")
        staged.unlink(missing_ok=True)
        _run("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", str(staged), f"{size_gib}G")
        staged.chmod(0o600)
        staged.rename(path)
    elif virtual_size(path) < size_gib << 30:
        _run("resize", "-q", "-f", "qcow2", str(path), f"{size_gib}G")


def virtual_size(path: Path) -> int:
    """Size in bytes that the guest sees. Raises HostError when `path` is no qcow2 file."""
    return int(json.loads(_run("info", "-f", "qcow2", "--output=json", "-U", str(path)))["virtual-size"])


def _run(*arguments: str) -> str:
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError(
            "qemu-img is not installed",
            hint="install your system's QEMU tools (Debian: qemu-utils)",
            code=ErrorCode.UNAVAILABLE,
        )
    try:
        result = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(
            f"qemu-img {arguments[0]} did not end within 60 s",
            hint="is the disk it writes to reachable?",
            code=ErrorCode.TIMEOUT,
        ) from error
    if result.returncode != 0:
        raise HostError(
            f"qemu-img {arguments[0]} failed: {result.stderr.strip() or result.returncode}",
            hint="is the disk full, or the file damaged? `moorage delete` removes the machine with its disk",
        )
    return result.stdout
