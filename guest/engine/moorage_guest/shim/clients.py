"""A client's connection as the shim serves it: output with framing and back-pressure, input with detach keys.

Who gets what output, and where input goes, is decided by the container and exec sessions that own the clients.
"""

import os
import socket
import struct
from collections.abc import Callable

from moorage_guest.shim.loop import GONE, READ, WRITE, Loop

STDOUT = 1
STDERR = 2

#: A client that has this much waiting is slow: nothing more is read on its behalf.
SLOW = 256 * 1024

_CHUNK = 32 * 1024
_FRAME = struct.Struct(">B3xI")


class DetachKeys:
    """Finds a sequence of keys in what a user types. Keys of a sequence that was begun are held back, as dockerd does."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def scan(self, data: bytes) -> tuple[bytes, bool]:
        """Return what to pass on, and whether the sequence was completed (the rest is dropped then)."""
        if not self._keys or (self._matched == 0 and self._keys[0] not in data):
            return data, False
        out = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self._matched = 0
                    return bytes(out), True
                continue
            out += self._keys[: self._matched]
            self._matched = 0
            if byte == self._keys[0]:
                self._matched = 1
                if len(self._keys) == 1:
                    self._matched = 0
                    return bytes(out), True
            else:
                out.append(byte)
        return bytes(out), False


class Input:
    """Where input goes: a pipe or a pty. Keeps at most a little; sources are asked to pause meanwhile."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._pending = bytearray()
        self._closing = False
        self.closed = False
        self.on_room: Callable[[], None] | None = None
        os.set_blocking(fd, False)

    @property
    def has_room(self) -> bool:
        return len(self._pending) < _CHUNK

    def write(self, data: bytes) -> None:
        """Pass on in order; dropped when nobody reads any more."""
        if self.closed or self._closing:
            return
        self._pending += data
        self._flush(0)

    def close(self) -> None:
        """Close after what is waiting. Idempotent."""
        self._closing = True
        if not self._pending:
            self.abandon()

    def abandon(self) -> None:
        """Close now. Idempotent."""
        if not self.closed:
            self.closed = True
            self._pending.clear()
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            if self.on_room is not None:
                self.on_room()

    def _flush(self, _ready: int) -> None:
        full = not self.has_room
        while self._pending:
            try:
                count = os.write(self._fd, memoryview(self._pending)[:_CHUNK].tobytes())
            except BlockingIOError:
                self._loop.watch(self._fd, WRITE, self._flush)
                break
            except OSError:
                self.abandon()
                return
            del self._pending[:count]
        else:
            self._loop.unwatch(self._fd)
            if self._closing:
                self.abandon()
                return
        if full and self.has_room and self.on_room is not None:
            self.on_room()


class Client:
    """One connection. `on_gone` is called once, when the client has left or was closed."""

    def __init__(
        self, loop: Loop, sock: socket.socket, *, multiplexed: bool, streams: frozenset[int], detach_keys: bytes
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._multiplexed = multiplexed
        self.streams = streams
        self._keys = DetachKeys(detach_keys)
        self._out = bytearray()
        self._closing = False
        self._input: Input | None = None
        self._reading = False
        self._ended = False
        self.closed = False
        self.on_gone: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_detach: Callable[[], None] | None = None
        self.on_input_end: Callable[[], None] | None = None
        self._watch()

    # -- output -------------------------------------------------------------------------------------------------------

    @property
    def slow(self) -> bool:
        """Whether so much is waiting that its source should pause until `on_room`."""
        return len(self._out) >= SLOW

    @property
    def takes(self) -> bool:
        """Whether it takes further output, now or later."""
        return bool(self.streams) and not self.closed and not self._closing

    def greet(self, head: bytes) -> None:
        """Send what comes before any output."""
        if head and not self.closed:
            self._out += head
            self._flush()

    def write(self, stream: int, data: bytes) -> None:
        """Send output of a stream if the client wants that stream."""
        if self.closed or self._closing or stream not in self.streams or not data:
            return
        if self._multiplexed:
            self._out += _FRAME.pack(stream, len(data))
        self._out += data
        self._flush()

    def finish(self) -> None:
        """Close once everything has been sent. Idempotent."""
        self._closing = True
        if not self._out:
            self.close()

    def close(self) -> None:
        """Close now, in a way that the client sees as an end and not as an error. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self._sock.fileno())
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
            while self._sock.recv(_CHUNK):  # unread input would turn the end into ECONNRESET
                pass
        except OSError:
            pass
        self._sock.close()
        if self.on_gone is not None:
            self.on_gone()
        if self.on_room is not None:
            self.on_room()

    def release(self) -> None:
        """Leave the connection as it is to others that hold it. Idempotent."""
        if not self.closed:
            self.closed = True
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()

    def _flush(self) -> None:
        slow = self.slow
        while self._out:
            try:
                count = self._sock.send(memoryview(self._out)[: 4 * _CHUNK].tobytes(), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            del self._out[:count]
        if not self._out and self._closing:
            self.close()
            return
        self._watch()
        if slow and not self.slow and self.on_room is not None:
            self.on_room()

    # -- input --------------------------------------------------------------------------------------------------------

    def feed_input(self, target: Input, prefix: bytes) -> None:
        """Pass on what the client sends, from now on, after `prefix`."""
        self._input = target
        self._reading = True
        self._pass_on(prefix)
        if not self.closed:
            self._watch()

    def stop_input(self) -> None:
        """Read no more of what the client sends."""
        self._reading = False
        self._input = None
        if not self.closed:
            self._watch()

    def retry_input(self) -> None:
        """Go on after the target had no room."""
        if not self.closed:
            self._watch()

    def _pass_on(self, data: bytes) -> None:
        if not data or self._input is None:
            return
        data, detached = self._keys.scan(data)
        if data:
            self._input.write(data)
        if detached:
            if self.on_detach is not None:
                self.on_detach()
            self.close()

    def _watch(self) -> None:
        if self.closed:
            return
        mask = WRITE if self._out else 0
        wants = self._reading and self._input is not None and self._input.has_room
        if wants:
            mask |= READ
        if self._ended and not mask:  # hung up while nothing can be done for it: epoll would report that for ever
            self._loop.unwatch(self._sock.fileno())
        else:
            self._loop.watch(self._sock.fileno(), mask, self._ready)

    def _ready(self, ready: int) -> None:
        if ready & WRITE:
            self._flush()
        if ready & (READ | GONE) and not self.closed:
            if self._reading and self._input is not None and self._input.has_room:
                self._read()
            elif ready & GONE:
                if self._reading and self._input is not None and not self._input.closed:
                    self._ended = True
                    self._watch()
                else:
                    self.close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self._pass_on(data)
            if not self.closed:
                self._watch()
            return
        self._reading = False
        if self.on_input_end is not None:
            self.on_input_end()
        if not self.streams:  # all it came for was to send input
            self.finish()
        if not self.closed:
            self._watch()
