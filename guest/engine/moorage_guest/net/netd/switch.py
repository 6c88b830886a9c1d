"""Runs a few lines in another network namespace, to open sockets there. Standard library only."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"enter network namespace: {os.strerror(number)}")


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Run the block in another network namespace. A thread that cannot come back must not go on: that ends the process."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(namespace)
        try:
            yield
        finally:
            try:
                _enter(home)
            except OSError:
                os._exit(70)
    finally:
        os.close(home)
