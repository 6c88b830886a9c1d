"""The process that shims are forked off: it has the agent's code at hand, and does nothing but fork.

A page of memory that two processes share is copied for both when one of them writes to it. The agent writes all the time, if
only to count references, and would leave every shim alone with the pages as they were when it was forked: more than a megabyte
each. What the nursery does not write, all shims share with it, for good.
"""

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from moorage_guest.agent.forking import fork_helper
from moorage_guest.agent.logfile import SHIM_LOG_BYTES, LogFile
from moorage_guest.shim import kernel, wire
from moorage_guest.shim.container import Spec
from moorage_guest.shim.loop import Loop, trace
from moorage_guest.shim.main import serve

#: Seconds that a shim may take to be born; on a machine that is up to its neck in work it takes one.
_DEADLINE = 30.0

#: The descriptor at which the nursery has its connection to the agent, and a shim its listening socket.
_FD = 3


class Nursery:
    """The agent's side. There is a nursery once a shim has been asked for, and again after it died."""

    def __init__(self, loop: Loop, errors: Path, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._errors = errors
        self._log = log
        self._sock: socket.socket | None = None
        self._pid = 0

    def fork(self, spec: Spec, root: Path, folder: Path, listener: int) -> int:
        """Have a shim forked and return its pid; it becomes a child of this process. Blocks for some milliseconds.

        OSError when that is not possible: there is no shim then.
        """
        order = wire.pack({"spec": spec, "root": str(root), "folder": str(folder)})
        answer = self._ask(order, listener) or self._ask(order, listener)  # the nursery may have been killed
        if not answer:
            raise OSError(0, f"the nursery ended without an answer; see {self._errors}")
        number = int(answer)
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return number

    def _ask(self, order: bytes, listener: int) -> bytes:
        """Return the answer, b"" when the nursery is dead: no shim can be alive then that has not answered."""
        if self._sock is None:
            self._sock = self._begin()
        try:
            wire.send(self._sock, order, [listener])
            answer = self._sock.recv(64)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        except TimeoutError:
            os.kill(self._pid, signal.SIGKILL)
            self._drop()
            raise
        if not answer:
            self._drop()
        return answer

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._pid = pid = fork_helper(_nurse, self._errors, theirs.fileno())
        self._loop.on_child(pid, lambda code: self._log(f"nursery {pid} ended with status {code}"))
        ours.settimeout(_DEADLINE)
        return ours

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _nurse(connection: int) -> None:
    """Fork a shim for each order until the agent is gone, and write as little memory as can be meanwhile."""
    kernel.set_name("moorage-nursery")
    with socket.socket(fileno=connection) as sock:
        while (order := wire.receive(sock)) is not None:
            try:
                child = os.fork()
            except OSError as error:
                sock.send(b"-%d" % (error.errno or errno.EAGAIN))
            else:
                if child == 0:
                    _bear(sock, order)
                os.waitpid(child, 0)
            wire.close_all(order.fds)


def _bear(sock: socket.socket, order: wire.Message) -> None:
    """Fork the shim and end: so it becomes a child of the agent, who hears of its end."""
    status = 1
    try:
        try:
            child = os.fork()
        except OSError as error:
            sock.send(b"-%d" % (error.errno or errno.EAGAIN))
            child = -1
        if child == 0:
            sock.send(b"%d" % os.getpid())
            _live(order)
        status = 0
    except BaseException as error:
        os.write(2, f"{trace(error)}\n".encode())
    finally:
        os._exit(status)


def _live(order: wire.Message) -> None:
    """Be a shim. Its listening socket takes the place of the connection to the agent."""
    os.dup2(order.fds[0], _FD, inheritable=False)
    os.close(order.fds[0])
    folder = order.body["folder"]
    path = f"{folder}/shim.log"
    errors = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for target in (1, 2):
        os.dup2(errors, target)
    os.close(errors)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _FD)

    def log(text: str) -> None:
        LogFile(Path(path), SHIM_LOG_BYTES)(text)  # a Path when there is something to say: making one costs memory, too

    serve(listener, Spec(*order.body["spec"]), order.body["root"], folder, log)
