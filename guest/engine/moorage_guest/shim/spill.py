"""Spilling, for those who ask for it: output that pipe A has no room for goes to a file, so that the container need not wait.

Everything leaves in the order in which it was written: what is in the file first. The file has no name, so that nothing of it is
left when the shim is gone. Bounded: once the file has reached its limit, or the disk is full, the container waits as it does
without spilling, until the file has been emptied.
"""

import os
from collections.abc import Callable

from moorage_guest.shim.loop import READ, WRITE, Loop

_CHUNK = 64 * 1024


class Spill:
    """Moves one stream from the container's own pipe to pipe A, by way of a file when need be. Owns both descriptors."""

    def __init__(
        self, loop: Loop, source: int, target: int, folder: str, limit: int, on_end: Callable[[], None]
    ) -> None:  # fmt: skip
        self._loop = loop
        self.source = source
        self._target = target
        self._folder = folder
        self._limit = limit
        self._on_end = on_end
        self._file = -1
        self._begin = 0
        self._end = 0
        self._held = b""
        self._drained = False
        for fd in (source, target):
            os.set_blocking(fd, False)
        self._watch()

    @property
    def waiting(self) -> int:
        """Bytes in the file."""
        return self._end - self._begin

    def close(self) -> None:
        """Let go of everything; what has not reached pipe A is lost. Idempotent."""
        if self.source >= 0:
            self._loop.unwatch(self.source)
            self._loop.unwatch(self._target)
            os.close(self.source)
            os.close(self._target)
            self.source = -1
            self._drop_file()

    # -- moving -------------------------------------------------------------------------------------------------------

    def _ready(self, _mask: int) -> None:
        for _ in range(16):
            if not (self._put() | self._take()):
                break
        self._put()  # nothing read may be left without a place when there is one: only pipe A would wake us
        if self._drained and not self._held and not self.waiting:
            self.close()
            self._on_end()
        else:
            self._watch()

    def _take(self) -> bool:
        """Read from the container unless something read before has no place yet; say whether anything came."""
        if not self._wants_more:
            return False
        try:
            self._held = os.read(self.source, _CHUNK)
        except BlockingIOError:
            return False
        self._drained = not self._held
        return not self._drained

    @property
    def _wants_more(self) -> bool:
        return not (self._held or self._drained or self._end >= self._limit)

    def _put(self) -> bool:
        """Pass on what there is, oldest first, and store what pipe A does not take; say whether anything moved."""
        before = (self._begin, self._end, len(self._held))
        room = True
        while room and self.waiting:
            data = os.pread(self._file, min(_CHUNK, self.waiting), self._begin)
            count = self._write(data)
            self._begin += count
            room = count == len(data)
        if not self.waiting:
            self._drop_file()
        if room and self._held:
            count = self._write(self._held)
            self._held = self._held[count:]
        if self._held and self._end < self._limit:
            self._store()
        return before != (self._begin, self._end, len(self._held))

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._target, data)
        except BlockingIOError:
            return 0

    def _store(self) -> None:
        try:
            if self._file < 0:
                self._file = os.open(self._folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            count = os.pwrite(self._file, self._held[: self._limit - self._end], self._end)
        except OSError:  # disk full, folder gone: the container waits for pipe A
            return
        self._end += count
        self._held = self._held[count:]

    def _drop_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._begin = self._end = 0

    def _watch(self) -> None:
        if self._wants_more:
            self._loop.watch(self.source, READ, self._ready)
        else:
            self._loop.unwatch(self.source)
        if self._held or self.waiting:
            self._loop.watch(self._target, WRITE, self._ready)
        else:
            self._loop.unwatch(self._target)
