"""The backend's process: whether one answers, and how one is started. Imports little: a command begins with it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder
from moorage_host.paths import Paths

BACKEND_DEADLINE = 30.0

#: What `begin_backend` has started and `ensure_backend` has not waited for, by socket.
_begun: dict[Path, subprocess.Popen[bytes]] = {}


def listens(path: Path) -> bool:
    """Whether somebody accepts connections at a unix socket; a file that a killed process left does not count."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def running(paths: Paths) -> bool:
    """Whether a backend accepts connections."""
    return listens(paths.backend_socket)


def begin_backend(paths: Paths) -> None:
    """Start the backend unless one answers, and do not wait: there is something to do until it is needed. Raises HostError."""
    if not running(paths):
        _begun[paths.backend_socket] = _spawn(paths)


def ensure_backend(paths: Paths) -> None:
    """Start the backend unless one answers; returns when it does. Blocks up to 30 s. Raises HostError."""
    begun = _begun.pop(paths.backend_socket, None)
    if running(paths):
        if begun is not None:
            begun.returncode = 0
        return
    process = begun or _spawn(paths)
    deadline = time.monotonic() + BACKEND_DEADLINE
    while not running(paths):
        ended = process.poll()
        if ended not in (None, 0):
            raise HostError(
                f"the backend ended with status {ended} as it started",
                hint=f"see {paths.backend_log}",
                code=ErrorCode.UNAVAILABLE,
            )
        if time.monotonic() > deadline:
            raise HostError(
                f"the backend does not answer at {paths.backend_socket}",
                hint=f"see {paths.backend_log}",
                code=ErrorCode.TIMEOUT,
            )
        time.sleep(0.03)
    # The process outlives us on purpose; what is left of the object must not complain about it.
    process.returncode = 0


def _spawn(paths: Paths) -> subprocess.Popen[bytes]:
    private_folder(paths.state)
    with paths.backend_log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "moorage_host.backend"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
