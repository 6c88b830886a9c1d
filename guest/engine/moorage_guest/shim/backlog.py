"""Output kept for attached clients that are slower than others of the same container; nobody waits for them.

A file without a name, so that nothing of it is left when the shim is gone. Bounded: `add` refuses what would be too much.
"""

import os
import struct

#: Length, stream and offset before the bytes of one frame.
_HEAD = struct.Struct("!IBQ")

#: What the slowest client may be behind the fastest, as the daemon's own spill file has it.
LIMIT = 256 * 1024 * 1024


class Backlog:
    """Frames in their order; a place in it is a number, the first is 0. Empty again after `clear`."""

    def __init__(self, folder: str, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._file = -1
        self.end = 0

    def add(self, stream: int, offset: int, data: bytes) -> None:
        """Keep a frame. Raises OSError when there is no room: nothing has changed then."""
        frame = _HEAD.pack(len(data), stream, offset) + data
        if self.end + len(frame) > self._limit:
            raise OSError(f"a client is {self.end} bytes behind the others")
        if self._file < 0:
            self._file = os.open(self._folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        if os.pwrite(self._file, frame, self.end) != len(frame):
            raise OSError("the disk is full")
        self.end += len(frame)

    def read(self, place: int) -> tuple[int, int, bytes, int]:
        """Return stream, offset and bytes of the frame at a place before `end`, and the place behind it. Raises OSError."""
        length, stream, offset = _HEAD.unpack(os.pread(self._file, _HEAD.size, place))
        return stream, offset, os.pread(self._file, length, place + _HEAD.size), place + _HEAD.size + length

    def clear(self) -> None:
        """Forget everything: nobody is behind any more. Idempotent."""
        self.end = 0
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
