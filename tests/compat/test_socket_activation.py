"""The daemon as systemd starts it: listening sockets by descriptor, and word when it is ready."""

import contextlib
import socket
from dataclasses import dataclass

import pytest

from tests.support.moored import DEADLINE, Moored, Sandbox
from tests.support.openapi import Api

pytestmark = pytest.mark.root

#: What systemd does: bind, pass from descriptor 3 on, name the process that they are for.
_SYSTEMD = """
import os, socket, sys
count = int(sys.argv[1])
for number, path in enumerate(sys.argv[2:2 + count], 3):
    kind = socket.AF_UNIX if path.startswith("/") else socket.AF_INET
    listener = socket.socket(kind)
    listener.bind(path if kind == socket.AF_UNIX else ("127.0.0.1", int(path)))
    listener.listen()
    os.dup2(listener.fileno(), number + 100)
    listener.detach()
for number in range(3, 3 + count):
    os.dup2(number + 100, number)
    os.close(number + 100)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count)}
os.execv(sys.executable, [sys.executable, *sys.argv[2 + count:]])
"""


@dataclass
class Activated(Moored):
    """A daemon that gets these sockets instead of a path."""

    sockets: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ("fd://",)

    def argv(self) -> list[str]:
        usual = super().argv()
        at = usual.index("--host")
        usual[at : at + 2] = [part for host in self.hosts for part in ("--host", host)]
        return [usual[0], "-c", _SYSTEMD, str(len(self.sockets)), *self.sockets, *usual[1:]]


def test_sockets_of_systemd_are_all_served_and_it_is_told_when() -> None:
    with Sandbox() as sandbox, contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        paths = [sandbox.root / "one.sock", sandbox.root / "two.sock"]
        manager.bind(str(sandbox.root / "notify"))
        manager.settimeout(DEADLINE)
        daemon = Activated(
            sandbox, sockets=tuple(map(str, paths)), environment={"NOTIFY_SOCKET": str(sandbox.root / "notify")}
        )
        daemon.spawn()
        try:
            assert manager.recv(100) == b"READY=1", daemon.log()
            for path in paths:
                assert Api(path).call("GET", "/_ping").status == 200
            assert daemon.stop() == 0
            assert manager.recv(100) == b"STOPPING=1"
            assert all(path.exists() for path in paths), "they are systemd's"
        finally:
            _end(daemon)


@pytest.mark.parametrize(
    ("sockets", "host", "words"),
    [
        ((), "fd://", "no sockets found via socket activation"),
        (("{root}/one.sock",), "fd://7", "fd://7: systemd passed no such socket; it passed 3"),
        (("0",), "fd://", "does not listen on TCP without client certificates"),
    ],
)
def test_sockets_that_cannot_be_served_are_refused_in_words(sockets: tuple[str, ...], host: str, words: str) -> None:
    with Sandbox() as sandbox:
        daemon = Activated(sandbox, sockets=tuple(each.format(root=sandbox.root) for each in sockets), hosts=(host,))
        process = daemon.spawn()
        try:
            assert process.wait(DEADLINE) == 1
            assert words in daemon.log()
        finally:
            _end(daemon)


def _end(daemon: Moored) -> None:
    if daemon.process is not None:
        daemon.process.kill()
        daemon.process.wait(DEADLINE)
