"""Log files with a size limit: at the limit the file becomes NAME.1 and a new one is begun."""

import contextlib
import os
import time
from pathlib import Path

#: Bytes that one log file may have; with its predecessor at most twice as much is kept.
MAX_BYTES = 1024 * 1024

#: The same for the log of one shim, which lives in memory.
SHIM_LOG_BYTES = 32 * 1024


class LogFile:
    """Appends lines; never raises, for a full disk must not end the agent."""

    def __init__(self, path: Path, limit: int = MAX_BYTES) -> None:
        self.path = path
        self._limit = limit

    def __call__(self, text: str) -> None:
        """Write one line with the time before it."""
        self.append(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n".encode())

    def append(self, data: bytes) -> None:
        """Write bytes as they are."""
        with contextlib.suppress(OSError):
            descriptor = self._open()
            try:
                os.write(descriptor, data)
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if size > self._limit:
                self.path.rename(self.path.with_name(self.path.name + ".1"))

    def cut(self) -> None:
        """Apply the limit to a file that another process appends to: its content moves to NAME.1."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size > self._limit:
                self.path.with_name(self.path.name + ".1").write_bytes(self.path.read_bytes())
                os.truncate(self.path, 0)

    def tail(self, lines: int) -> str:
        """Return the last lines, also those before the last turn of the file."""
        text = b""
        for path in (self.path, self.path.with_name(self.path.name + ".1")):
            with contextlib.suppress(OSError):
                text = path.read_bytes() + text
            if text.count(b"\n") > lines:
                break
        return b"".join(text.splitlines(keepends=True)[-lines:] if lines > 0 else []).decode(errors="replace")

    def redirect_stdio(self) -> None:
        """Let standard output and error go to this file, standard input come from nowhere."""
        with contextlib.suppress(OSError):
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            descriptor = self._open()
            for target, source in ((0, null), (1, descriptor), (2, descriptor)):
                os.dup2(source, target)
            os.close(null)
            os.close(descriptor)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
