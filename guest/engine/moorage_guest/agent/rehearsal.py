"""Goes through a shim's everyday life a few times in the agent, before any shim is forked.

Python specialises code as it runs, and remembers which attribute of which type it has found where; it writes that into the
code's own memory and into tables. Done once here, all shims share those pages; done in each shim, each would have a copy.
"""

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moorage_guest.shim import kernel, wire
from moorage_guest.shim.container import Spec
from moorage_guest.shim.loop import READ, Loop
from moorage_guest.shim.server import Server

#: Lives that are played; Python's adaptive interpreter settles after about a dozen.
_ROUNDS = 12

#: Seconds that one answer may take before the rehearsal is given up.
_DEADLINE = 30.0


def rehearse(loop: Loop, exec_root: Path) -> None:
    """Play daemon and shim, with a runtime that does nothing. Leaves nothing behind; takes a tenth of a second."""
    folder = exec_root / "rehearsal"
    kernel.remove_tree(str(folder))
    try:
        folder.mkdir(mode=0o700)
        for turn in range(_ROUNDS):
            _Life(loop, folder, f"rehearsal-{turn}").play()
        for _ in range(_ROUNDS):
            Loop(loop.report).close()
    except OSError as error:
        loop.report(f"no rehearsal: {error}; shims will take more memory")
    finally:
        loop.take_signals()
        loop.reap()
        kernel.remove_tree(str(folder))


class _Life:
    """One container's, from the start of its shim to its end; `true` stands for the runtime, a fork for the container."""

    def __init__(self, loop: Loop, folder: Path, name: str) -> None:
        self._loop = loop
        self._folder = folder
        self._name = name

    def play(self) -> None:
        """Raises OSError: what a shim needs cannot be had, or it does not answer."""
        spec = Spec(
            self._name, tty=False, open_stdin=False, stdin_once=False, runtime="true", runtime_args=[], labels={}
        )
        listener = wire.listen(self._folder / "shim.sock")
        server = Server(self._loop, listener, spec, str(self._folder), str(self._folder))
        ours, theirs = socket.socketpair()
        container = os.fork()
        if container == 0:
            try:
                ours.close()
                theirs.recv(1)  # until it is to end, or the agent has
            finally:
                os._exit(0)
        theirs.close()
        try:
            with wire.connect(self._folder / "shim.sock") as sock:
                self._serve(sock, container, ours)
        finally:
            ours.close()
            server.close()

    def _serve(self, sock: socket.socket, container: int, life: socket.socket) -> None:
        feed, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with feed, other:
            self._ask(sock, "pipes")
            self._ask(sock, "feed", [other.fileno()])
        kernel.replace_small(f"{self._folder}/container.pid", b"%d" % container)
        answer = self._ask(sock, "run", bundle=str(self._folder))
        if "error" in answer:
            raise OSError(answer["error"]["message"])
        for method in ("status", "fill", "forget_exec", "close_stdin", "unknown"):
            self._ask(sock, method, exec_id="none")
        life.close()
        self._hear(sock)  # that the container has ended

    def _ask(self, sock: socket.socket, method: str, fds: Iterable[int] = (), **params: Any) -> dict[str, Any]:
        wire.send(sock, wire.pack({"id": 1, "method": method, "params": params}), fds)
        return self._hear(sock)

    def _hear(self, sock: socket.socket) -> dict[str, Any]:
        """Let the shim's side run until it has said something, and return that."""
        heard = False

        def ready(_mask: int) -> None:
            nonlocal heard
            heard = True

        self._loop.watch(sock.fileno(), READ, ready)
        end = time.monotonic() + _DEADLINE
        while not heard:
            self._loop.step(1.0)
            if time.monotonic() > end:
                raise TimeoutError(f"no answer within {_DEADLINE:.0f} s")
        self._loop.unwatch(sock.fileno())
        message = wire.receive(sock)
        if message is None:
            raise ConnectionError("the connection has ended")
        wire.close_all(message.fds)
        return message.body
