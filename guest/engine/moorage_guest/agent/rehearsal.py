"""Goes through a shim's everyday life a few times in the agent, before any shim is forked.

Python specialises code as it runs, and remembers which attribute of which type it has found where; it writes that into the
code's own memory and into tables. Done once here, all shims share those pages; done in each shim, each would have a copy.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moorage_guest.shim import kernel, wire
from moorage_guest.shim.attachments import FEED
from moorage_guest.shim.container import Spec
from moorage_guest.shim.loop import READ, Loop
from moorage_guest.shim.server import Server

#: Lives that are played: until 3.11 Python looks at code only when it has run eight times, and settles a little later.
_ROUNDS = 12 if sys.version_info < (3, 12) else 4

#: Seconds that one answer may take before the rehearsal is given up.
_DEADLINE = 30.0

#: What every client says of itself.
_CLIENT = {"stdout": True, "stderr": True, "multiplexed": True, "detach_keys": ""}


def rehearse(loop: Loop, exec_root: Path) -> None:
    """Play daemon and shim, with a runtime that does nothing. Leaves nothing behind; takes a tenth of a second of the processor's time."""
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
    """One container's, from the start of its shim to its end; `true` stands for the runtime, forks for what it would start."""

    def __init__(self, loop: Loop, folder: Path, name: str) -> None:
        self._loop = loop
        self._folder = folder
        self._name = name
        self._asked = 0

    def play(self) -> None:
        """Raises OSError: what a shim needs cannot be had, or it does not answer."""
        spec = Spec(
            self._name, tty=False, open_stdin=False, stdin_once=False, runtime="true", runtime_args=[], labels={}
        )
        listener = wire.listen(self._folder / "shim.sock")
        server = Server(self._loop, listener, spec, str(self._folder), str(self._folder))
        try:
            with wire.connect(self._folder / "shim.sock") as sock:
                self._serve(sock)
        finally:
            server.close()

    def _serve(self, sock: socket.socket) -> None:
        feed, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with feed:
            with other:
                self._ask(sock, "pipes")
                self._ask(sock, "feed", [other.fileno()])
            with self._start("container.pid"):
                self._ask(sock, "run", bundle=str(self._folder))
                self._attach(sock, feed)
                with self._start(f"exec-{self._name}.pid"):
                    self._execute(sock)
                self._hear(sock, "event", "exec_exited")
                for method in ("status", "fill", "forget_exec", "close_stdin", "unknown"):
                    self._ask(sock, method, exec_id=self._name)
            self._hear(sock, "event", "exited")

    def _attach(self, sock: socket.socket, feed: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                held = {"stdin": False, "start": {}, "hold": True, "head": "answer"}
                answer = self._ask(sock, "attach", [theirs.fileno()], **_CLIENT, **held)
            self._ask(sock, "attach_from", held=answer["result"]["held"], start={"1": 0, "2": 0})
            feed.send(FEED.pack(1, 0) + b"output\n")
            self._ask(sock, "finish_output", offsets={"1": 7, "2": 0})

    def _execute(self, sock: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            options: dict[str, Any] = {"exec_id": self._name, "tty": False, "open_stdin": False, "capture": 0}
            self._ask(sock, "ready_exec", **options)
            self._ask(sock, "exec", [theirs.fileno()], **_CLIENT, **options, process="{}")

    @contextlib.contextmanager
    def _start(self, pid_file: str) -> Iterator[None]:
        """Have a process, its pid in a file, for as long as the context lasts."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                theirs.recv(1)  # until it is to end, or the agent has
            finally:
                os._exit(0)
        with ours:
            theirs.close()
            kernel.replace_small(f"{self._folder}/{pid_file}", b"%d" % pid)
            yield

    def _ask(self, sock: socket.socket, method: str, fds: Iterable[int] = (), **params: Any) -> dict[str, Any]:
        self._asked += 1
        wire.send(sock, wire.pack({"id": self._asked, "method": method, "params": params}), fds)
        answer = self._hear(sock, "id", self._asked)
        if "error" in answer and method != "unknown":
            raise OSError(f"{method}: {answer['error']['message']}")
        return answer

    def _hear(self, sock: socket.socket, key: str, value: object) -> dict[str, Any]:
        """Let the shim's side run until it says something in particular, and return that."""
        end = time.monotonic() + _DEADLINE
        said: dict[str, Any] = {}
        self._loop.watch(sock.fileno(), READ, _nothing)
        try:
            while said.get(key) != value:
                try:
                    message = wire.receive(sock)
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise TimeoutError(f"no answer within {_DEADLINE:.0f} s") from None
                    self._loop.step(1.0)
                    continue
                if message is None:
                    raise ConnectionError("the connection has ended")
                wire.close_all(message.fds)
                said = message.body
        finally:
            self._loop.unwatch(sock.fileno())
        return said


def _nothing(_ready: int) -> None:
    """Being woken is enough."""
