"""The daemon's pid file, which is also the lock on its exec root: one daemon at a time."""

import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)


class AlreadyRunning(Exception):
    """Another daemon holds the lock."""


class PidFile:
    """Holds a lock beside the pid file while entered; the kernel frees it when the process ends, however it ends."""

    def __init__(self, path: Path, lock: Path) -> None:
        self.path = path
        self._lock_path = lock
        self._descriptor = -1

    def __enter__(self) -> "PidFile":
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            holder = self.path.read_text().strip() if self.path.exists() else "unknown"
            raise AlreadyRunning(
                f"failed to start daemon, ensure moored is not running or delete {self.path}: "
                f"process with PID {holder} is still running"
            ) from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".new")
        try:
            temporary.write_text(f"{os.getpid()}")
            temporary.replace(self.path)
        except OSError as error:  # the lock is what counts: a full disk must not keep the daemon from starting
            log.warning("%s cannot be written: %s", self.path, error.strerror)
            temporary.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
