"""Reading what a process writes: pipes of execs, and ptys received from the runtime by its console socket."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from moorage_guest.shim import wire
from moorage_guest.shim.loop import READ, Loop

_CHUNK = 32 * 1024


class Reader:
    """Reads a descriptor, which it owns, until its end; then `on_end` is called once."""

    def __init__(
        self, loop: Loop, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None], chunk: int = _CHUNK
    ) -> None:
        self._loop = loop
        self.fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self._chunk = chunk
        self.ended = False
        os.set_blocking(fd, False)
        loop.watch(fd, READ, self._on_ready)

    def pause(self) -> None:
        """Read no more until `resume`; the writer will block."""
        self._loop.unwatch(self.fd)

    def resume(self) -> None:
        """Go on reading."""
        if not self.ended:
            self._loop.watch(self.fd, READ, self._on_ready)

    def close(self) -> None:
        """Stop reading for good, without calling `on_end`. Idempotent."""
        if not self.ended:
            self.ended = True
            self._loop.unwatch(self.fd)
            os.close(self.fd)

    def drain(self) -> None:
        """Read what is there now, without waiting."""
        while not self.ended and self._read():
            pass

    def _on_ready(self, _mask: int) -> None:
        self._read()

    def _read(self) -> bool:
        try:
            data = os.read(self.fd, self._chunk)
        except BlockingIOError:
            return False
        except OSError:  # EIO: nobody has the pty's other side open any more
            data = b""
        if data:
            self._on_data(data)
            return True
        self.close()
        self._on_end()
        return False


class Console:
    """Receives the pty that the runtime makes for a process (`--console-socket`)."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / name
        self._listener = wire.listen(self._file, socket.SOCK_STREAM, 1)
        # the path by way of this process's working directory, the shim's folder, always fits into sun_path
        self.path = f"/proc/{os.getpid()}/cwd/{name}"

    def take(self) -> int | None:
        """Return the pty's master, or None when the runtime has sent none; call it after the runtime has ended."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return None
        with connection:
            connection.setblocking(False)
            try:
                _, fds, _, _ = socket.recv_fds(connection, 4096, 1, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return None
        return fds[0] if fds else None

    def close(self) -> None:
        """Remove the socket."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._file.unlink()
