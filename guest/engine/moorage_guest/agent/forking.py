"""Forks helpers off the agent: the child lets go of everything the agent has, runs, and ends without returning.

A fork shares the agent's memory and costs a millisecond, where a new interpreter costs ten megabytes and half a second.
"""

import gc
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from moorage_guest.shim.loop import trace
from moorage_guest.shim.runtime import RESET_SIGNALS

_LISTENER = 3


def fork_helper(run: Callable[[socket.socket | None], None], errors: Path, listener: socket.socket | None = None) -> int:  # fmt: skip
    """Fork; in the child call `run(listener)` with /dev/null as stdio and no other descriptor. Return the child's pid.

    What `run` raises, and whatever it prints to stderr, goes to the file `errors`.
    """
    gc.freeze()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        gc.freeze()
        signal.set_wakeup_fd(-1)
        for caught in RESET_SIGNALS:
            signal.signal(caught, signal.SIG_DFL)
        if listener is not None:
            _move(listener.fileno(), _LISTENER)
        os.closerange(_LISTENER if listener is None else _LISTENER + 1, 1 << 20)
        null = os.open("/dev/null", os.O_RDWR)  # inheritable on purpose: it becomes stdio
        log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        for number in (null, log):
            if number > 2:
                os.close(number)
        run(None if listener is None else socket.socket(fileno=_LISTENER))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        os.write(2, f"{trace(error)}\n".encode())
    finally:
        os._exit(status)


def _move(source: int, target: int) -> None:
    if source == target:
        os.set_inheritable(target, False)
    else:
        os.dup2(source, target, inheritable=False)
