"""What is kept of a request for the case that the daemon dies under it: the client's bytes, and whether an answer has begun.

The memory is shared with the agent, which holds the connection open. The kernel writes what arrives straight into it, so that
a daemon killed at any instant has either not read a byte or kept it. What may be done a second time is decided in `again`.
"""

import mmap
import os
import socket
import struct
import time
from typing import Protocol

#: Bytes of one connection's memory; only what is used takes up pages.
SIZE = 64 * 1024

#: Flags, how many daemons have begun the request, length so far, when it began (ns).
_HEAD = struct.Struct("=BBxxIQ")

#: What a client is told whose request cannot be done by another daemon.
CUT_SHORT = "the daemon ended while it worked on this request and has been started again; look what was done before you repeat it"

_ANSWERING = 1
_TOO_LONG = 2


class Kept:
    """The request at hand of one connection. Owns the descriptor of its memory until `close`."""

    def __init__(self, key: int, memory: int) -> None:
        self.key = key
        self.memory = memory
        self._map = mmap.mmap(memory, SIZE)
        self._view = memoryview(self._map)
        self._flags, self.tries, self._length, self.began_ns = _HEAD.unpack_from(self._map)

    @classmethod
    def fresh(cls, key: int) -> "Kept":
        """Return the memory of a connection that has just been made. Raises OSError."""
        memory = os.memfd_create("moorage-request", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, SIZE)
            return cls(key, memory)
        except BaseException:
            os.close(memory)
            raise

    @property
    def token(self) -> str:
        """What tells this request from all others, the same for every daemon that works on it."""
        return f"{self.began_ns:x}.{self.key:x}"

    @property
    def answering(self) -> bool:
        """Whether bytes of an answer may have gone out."""
        return bool(self._flags & _ANSWERING)

    @property
    def too_long(self) -> bool:
        """Whether more has come than is kept."""
        return bool(self._flags & _TOO_LONG)

    def room(self) -> memoryview | None:
        """Return where to read the next bytes into; None when they need not, or cannot, be kept."""
        if self._flags:
            return None
        room = self._view[_HEAD.size + self._length :]
        if not room:
            self._flags |= _TOO_LONG
            self._save()
            return None
        return room

    def received(self, count: int) -> None:
        """So many bytes have been read into `room`."""
        if self._length == 0:
            self.began_ns = time.time_ns()
        self._length += count
        self._save()

    def request(self) -> bytes:
        """Return what has come of the request that was not answered; also what a daemon died of before it counted it."""
        counted = _HEAD.size + self._length
        return bytes(self._view[_HEAD.size : counted]) + bytes(self._view[counted:]).rstrip(b"\0")

    def whole(self) -> bool:
        """Whether the request has come to its end, so that what follows is another; False also when that is not clear."""
        head, separator, body = self.request().partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [line.partition(b":")[2].strip() for line in lines if line.startswith(b"content-length:")]
        if not separator or self.too_long or any(line.startswith(b"transfer-encoding:") for line in lines):
            return False
        return len(body) >= sum(int(length) for length in lengths if length.isdigit())

    def again(self) -> None:
        """Count one more daemon that begins the request, which has been read by now."""
        self.tries += 1
        self._length = len(self.request())
        self._save()

    def begin_answer(self) -> None:
        """An answer is about to go out: from here on nobody else can give it."""
        if not self._flags & _ANSWERING:
            self._flags |= _ANSWERING
            self._save()

    def clear(self) -> None:
        """The answer has gone out whole: forget the request."""
        self._view[_HEAD.size : _HEAD.size + self._length] = bytes(self._length)
        self._flags = self.tries = self._length = self.began_ns = 0
        self._save()

    def close(self) -> None:
        """Let the memory go. Idempotent."""
        if self.memory >= 0:
            self._view.release()
            self._map.close()
            os.close(self.memory)
            self.memory = -1

    def _save(self) -> None:
        _HEAD.pack_into(self._map, 0, self._flags, self.tries, self._length, self.began_ns)


class Holder(Protocol):
    """Who holds connections open: the agent, if it is one that brings daemons back (``supervised``)."""

    supervised: bool

    def hold(self, client: socket.socket) -> Kept | None:
        """Have a connection held; None when that cannot be."""

    def release(self, kept: Kept) -> None:
        """No longer hold a connection: it has been given away."""

    def forget(self, kept: Kept) -> None:
        """A connection has been closed."""

    def held(self) -> list[tuple[socket.socket, Kept]]:
        """Return the connections that the daemon before us had, which go on being held. Gives them once."""
