"""Forks helpers off the agent: the child lets go of everything the agent has, runs, and ends without returning.

A fork shares the agent's memory and costs a millisecond, where a new interpreter costs ten megabytes and half a second.
"""

import gc
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moorage_guest.shim.loop import READ, Loop, trace
from moorage_guest.shim.runtime import RESET_SIGNALS

_KEPT = 3


def fork_helper(run: Callable[[int], None], errors: Path, keep: int = -1) -> int:
    """Fork; in the child call `run(descriptor)` with /dev/null as stdio and no other descriptor. Return the child's pid.

    The descriptor is that of `keep` (-1: there is none). Signals stay as the agent has them, which is: none ends it; resetting
    them here would cost each shim 300 KB of memory. What `run` raises or prints to stderr goes to the file `errors`.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        gc.freeze()
        signal.set_wakeup_fd(-1)
        if keep >= 0:
            _move(keep, _KEPT)
        os.closerange(_KEPT if keep < 0 else _KEPT + 1, 1 << 20)
        null = os.open("/dev/null", os.O_RDWR)  # inheritable on purpose: it becomes stdio
        log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        for number in (null, log):
            if number > 2:
                os.close(number)
        run(_KEPT if keep >= 0 else -1)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        os.write(2, f"{trace(error)}\n".encode())
    finally:
        os._exit(status)


def in_child(loop: Loop, work: Callable[[], Any], errors: Path, done: Callable[[Any, str], None]) -> None:
    """Do blocking work in a forked child. `done(result, "")` or `done(None, why)`; the result is sent as JSON."""
    read, write = os.pipe2(os.O_CLOEXEC)

    def run(fd: int) -> None:
        try:
            answer = {"result": work()}
        except Exception as error:
            answer = {"error": str(error) or type(error).__name__}
        with os.fdopen(fd, "w") as stream:
            json.dump(answer, stream)

    pid = fork_helper(run, errors, write)
    os.close(write)
    data = bytearray()

    def ready(_mask: int) -> None:
        chunk = os.read(read, 65536)
        data.extend(chunk)
        if not chunk:
            loop.unwatch(read)
            os.close(read)

    def ended(_code: int) -> None:
        if read_open():
            while chunk := os.read(read, 65536):
                data.extend(chunk)
            loop.unwatch(read)
            os.close(read)
        try:
            answer = json.loads(data)
        except ValueError:
            done(None, f"a helper process ended without an answer; see {errors}")
            return
        done(answer.get("result"), answer.get("error", ""))

    def read_open() -> bool:
        return loop.watches(read)

    loop.watch(read, READ, ready)
    loop.on_child(pid, ended)


def _move(source: int, target: int) -> None:
    if source == target:
        os.set_inheritable(target, False)
    else:
        os.dup2(source, target, inheritable=False)


def spawn_program(argv: list[str], environment: dict[str, str], output: int) -> int:
    """Start a program with output to a descriptor and no input, in a session of its own; return its pid."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            argv[0], argv, environment, setsid=True, setsigdef=RESET_SIGNALS,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2),
            ],
        )  # fmt: skip
    finally:
        os.close(null)
