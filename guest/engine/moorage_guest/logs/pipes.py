"""Moving and peeking at bytes in pipes: splice(2), tee(2) and FIONREAD, none of which block."""

import ctypes
import errno
import fcntl
import os
import struct
import termios

#: Of each stream's pipe, fixed (docs/scope.md).
CAPACITY = 64 * 1024

_SPLICE_F_NONBLOCK = 2
_SPLICE_F_MOVE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.tee.restype = ctypes.c_ssize_t
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)


def waiting(descriptor: int) -> int:
    """Return how many bytes a pipe holds."""
    answer = fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])


def move(source: int, target: int, limit: int = CAPACITY) -> int | None:
    """Move up to ``limit`` bytes from one pipe into another without copying.

    Returns how many, 0 when there are none now, None when there never will be: all writers have gone.
    """
    try:
        return os.splice(source, target, limit, flags=_SPLICE_F_NONBLOCK | _SPLICE_F_MOVE) or None
    except BlockingIOError:
        return 0


def peek(pipe: int, through: tuple[int, int]) -> bytes:
    """Return everything a pipe holds and leave it there.

    ``through`` are the ends (read, write) of an empty pipe of at least its capacity, empty again afterwards.
    """
    while True:
        count = _libc.tee(pipe, through[1], CAPACITY, _SPLICE_F_NONBLOCK)
        if count >= 0:
            break
        code = ctypes.get_errno()
        if code == errno.EAGAIN:
            return b""
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return read_exactly(through[0], count) if count else b""


def read_exactly(pipe: int, count: int) -> bytes:
    """Read ``count`` bytes that are known to be in the pipe."""
    data = os.read(pipe, count)
    while len(data) < count:
        data += os.read(pipe, count - len(data))
    return data


def empty(pipe: int, null: int) -> None:
    """Throw away everything a pipe holds; ``null`` is /dev/null open for writing."""
    try:
        while os.splice(pipe, null, CAPACITY, flags=_SPLICE_F_NONBLOCK):
            if not waiting(pipe):
                return
    except BlockingIOError:
        return


def set_capacity(pipe: int) -> None:
    """Give a pipe the fixed capacity."""
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CAPACITY)
