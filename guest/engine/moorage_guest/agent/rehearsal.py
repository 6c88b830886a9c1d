"""Runs a shim's everyday code a few times in the agent, before any shim is forked.

Python specialises code as it runs and writes that into the code's own memory. Done once here, all shims share those pages; done
in each shim, each would have a copy.
"""

import os
from pathlib import Path

from moorage_guest.shim import kernel, wire
from moorage_guest.shim.container import Spec
from moorage_guest.shim.loop import READ, Loop
from moorage_guest.shim.runtime import Runtime, RuntimeFailed
from moorage_guest.shim.server import Server

#: Times that everything is done; Python's adaptive interpreter settles after about a dozen.
_ROUNDS = 20

#: Times that a program is started.
_PROGRAMS = 12

_REQUESTS = ("status", "pipes", "fill", "forget_exec", "close_stdin", "unknown")


def rehearse(loop: Loop, exec_root: Path) -> None:
    """Play daemon and shim. Leaves nothing behind; takes some 20 ms."""
    folder = exec_root / "rehearsal"
    kernel.remove_tree(str(folder))
    try:
        folder.mkdir(mode=0o700)
        for turn in range(_ROUNDS):
            listener = wire.listen(folder / "shim.sock")
            spec = Spec(
                f"rehearsal-{turn}",
                tty=False,
                open_stdin=True,
                stdin_once=False,
                runtime="crun",
                runtime_args=[],
                labels={},
            )
            server = Server(loop, listener, spec, exec_root / "crun", folder)
            with wire.connect(folder / "shim.sock") as sock:
                for number, method in enumerate(_REQUESTS):
                    wire.send(sock, wire.pack({"id": number, "method": method, "params": {"exec_id": "none"}}))
                    _answer(loop, sock.fileno())
                    reply = wire.receive(sock)
                    if reply is not None:
                        wire.close_all(reply.fds)
            server.close()
        _start_programs(loop, folder)
    except OSError as error:
        loop.report(f"no rehearsal: {error.strerror}; shims will take more memory")
    finally:
        kernel.remove_tree(str(folder))


def _start_programs(loop: Loop, folder: Path) -> None:
    """Go through what starting a container costs, with a runtime that does nothing."""
    runtime = Runtime(loop, "true", [], folder, folder)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    left = _PROGRAMS

    def ended(_failure: RuntimeFailed | None) -> None:
        nonlocal left
        left -= 1
        if left:
            runtime.start(["run"], (null, null, null), ended)

    runtime.start(["run"], (null, null, null), ended)
    for _ in range(1000):
        if not left:
            break
        loop.step(0.1)
    os.close(null)


def _answer(loop: Loop, sock_fd: int) -> None:
    """Let the shim's side run until its answer is there."""
    got = False

    def ready(_mask: int) -> None:
        nonlocal got
        got = True

    loop.watch(sock_fd, READ, ready)
    for _ in range(100):
        loop.step(0.1)
        if got:
            break
    loop.unwatch(sock_fd)
