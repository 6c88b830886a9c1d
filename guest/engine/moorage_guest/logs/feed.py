"""The way of output to attached clients: datagrams to the shim, spilled to a file while the shim cannot take them.

A datagram is `HEADER` (stream, offset of the first byte in the stream) and up to `MAX_BYTES`. The shim drops what it
already has, so that a restarted daemon may repeat itself. A slow client thus costs disk, never the container's time.
"""

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

from moorage_guest.shim.attachments import FEED as HEADER
from moorage_guest.shim.attachments import SPILLED as _FRAME

log = logging.getLogger(__name__)

#: Bytes of output in one datagram.
MAX_BYTES = 32 * 1024

#: What a slow client may be behind. Beyond it its feed has a gap, and the shim lets it go.
SPILL_LIMIT = 256 * 1024 * 1024


class Feed:
    """Feed of one container. For the pump's thread alone. Owns the socket."""

    def __init__(self, endpoint: socket.socket, spill: Path, *, active: bool) -> None:
        """``endpoint`` is a connected seqpacket socket; ``spill`` is where to spill, kept over a daemon's restart."""
        self._endpoint = endpoint
        self._spill_path = spill
        self._spill = -1
        self._read_at = 0
        self._end = 0
        self.active = active
        self.broken = False
        endpoint.setblocking(False)
        if active and spill.exists():
            self._open_spill()
        else:
            spill.unlink(missing_ok=True)

    def fileno(self) -> int:
        """Descriptor to watch for writing while `behind`."""
        return self._endpoint.fileno()

    @property
    def behind(self) -> bool:
        """Whether something is spilled that the shim has not been given."""
        return self._read_at < self._end

    def send(self, stream: int, offset: int, data: bytes) -> None:
        """Give the shim some output, now or, if it cannot take it, later. Never blocks on the client."""
        if not self.active:
            return
        for start in range(0, len(data), MAX_BYTES):
            if self.broken:
                return
            piece = data[start : start + MAX_BYTES]
            if self.behind or not self._try_send(HEADER.pack(stream, offset + start) + piece):
                self._store(stream, offset + start, piece)

    def catch_up(self) -> None:
        """Give the shim what is spilled, as far as it takes it."""
        while self.behind and not self.broken:
            length, stream, offset = _FRAME.unpack(os.pread(self._spill, _FRAME.size, self._read_at))
            data = os.pread(self._spill, length, self._read_at + _FRAME.size)
            if not self._try_send(HEADER.pack(stream, offset) + data):
                return
            self._read_at += _FRAME.size + length
        self._drop_spill()

    def hand_over(self) -> int | None:
        """Send no more. Return a descriptor of the file with what is left, positioned there, or None if nothing is."""
        if not self.behind or self.broken:
            self.stop()
            return None
        descriptor = os.dup(self._spill)
        os.lseek(descriptor, self._read_at, os.SEEK_SET)
        self.active = False
        self._read_at = self._end = 0
        return descriptor

    def stop(self) -> None:
        """Nobody is attached any more: forget what is spilled."""
        self.active = False
        self._drop_spill()

    def close(self) -> None:
        """Close the socket; what is spilled stays for the next daemon."""
        self._endpoint.close()
        if self._spill >= 0:
            os.close(self._spill)
            self._spill = -1

    def _try_send(self, datagram: bytes) -> bool:
        try:
            self._endpoint.send(datagram)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return False
            self.broken = True  # the shim is gone, and its clients with it
        return True

    def _open_spill(self) -> None:
        self._spill = os.open(self._spill_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        size = os.fstat(self._spill).st_size
        self._end = 0
        while self._end + _FRAME.size <= size:
            length, _, _ = _FRAME.unpack(os.pread(self._spill, _FRAME.size, self._end))
            if self._end + _FRAME.size + length > size:
                break
            self._end += _FRAME.size + length
        # A frame cut short by SIGKILL belongs to a chunk that is still in the pipe and comes again.
        os.ftruncate(self._spill, self._end)

    def _store(self, stream: int, offset: int, data: bytes) -> None:
        if self._end > SPILL_LIMIT:
            log.warning("%s: an attached client is %d bytes behind and is let go", self._spill_path.parent, self._end)
            self._drop_spill()
            return
        try:
            if self._spill < 0:
                self._open_spill()
            frame = _FRAME.pack(len(data), stream, offset) + data
            if os.pwrite(self._spill, frame, self._end) != len(frame):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end += len(frame)
        except OSError as error:
            log.warning("cannot keep output for a slow client in %s: %s", self._spill_path, error)
            self._drop_spill()

    def _drop_spill(self) -> None:
        self._read_at = self._end = 0
        if self._spill >= 0:
            os.close(self._spill)
            self._spill = -1
            with contextlib.suppress(OSError):
                self._spill_path.unlink(missing_ok=True)
