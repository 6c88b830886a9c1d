"""Whether a log pipe has room, seen from its read end: for the report of who is blocked while no daemon runs."""

import os
import select

from moorage_guest.shim import kernel


def measure(read_end: int) -> tuple[int, bool]:
    """Return bytes waiting, and whether the next write blocks.

    A pipe is full when all its pages are in use, though small writes may leave a few bytes free in each.
    """
    count = kernel.bytes_waiting(read_end)
    if count == 0:
        return 0, False
    if count >= kernel.PIPE_SIZE:
        return count, True
    try:
        # A second write end, for an instant: poll tells of free pages only there.
        write_end = os.open(f"/proc/self/fd/{read_end}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return count, False
    try:
        poll = select.poll()
        poll.register(write_end, select.POLLOUT)
        return count, not poll.poll(0)
    finally:
        os.close(write_end)
