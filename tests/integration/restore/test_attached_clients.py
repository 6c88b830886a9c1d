"""Attached clients get everything that a container prints, however slowly they read and whoever dies meanwhile."""

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

pytestmark = pytest.mark.root

#: More than the buffers between a container and its client hold; the last line is unfinished.
BYTES = 5_000_008
WRITER = f"until [ -e /go ]; do usleep 20000; done; yes 0123456789abcde | head -c {BYTES}; exit 3"


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with running_moored("--live-restore") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


@contextlib.contextmanager
def _attached(path: Path, name: str) -> Iterator[socket.socket]:
    """A raw client attached to stdout, its answer's head read."""
    with _asking(path, name) as client:
        _expect_attached(client)
        yield client


@contextlib.contextmanager
def _asking(path: Path, name: str) -> Iterator[socket.socket]:
    """A raw client that has asked to be attached."""
    client = socket.socket(socket.AF_UNIX)
    with client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(
            f"POST /containers/{name}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: x\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
        )
        yield client


def _expect_attached(client: socket.socket) -> None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"the connection was closed after {head!r}"
        head += byte
    assert b" 101 " in head


@contextlib.contextmanager
def _shim_stopped(moored: Moored, name: str) -> Iterator[None]:
    """The container's shim does nothing meanwhile, as on a machine that is busy with others."""
    container = moored.docker("inspect", "-f", "{{.Id}}", name).strip()
    shim = json.loads((moored.exec_root / "shim" / container / "shim.json").read_text())["shim_pid"]
    moored.sandbox.run("kill", "-STOP", str(shim))
    try:
        yield
    finally:
        moored.sandbox.run("kill", "-CONT", str(shim))


def _receive(client: socket.socket) -> bytes:
    """Read to the end and take the frames apart."""
    data = bytearray()
    while piece := client.recv(1 << 20):
        data += piece
    output = bytearray()
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "big")
        output += data[position + 8 : position + 8 + length]
        position += 8 + length
    return bytes(output)


def _is_whole(output: bytes) -> bool:
    return output == (b"0123456789abcde\n" * (BYTES // 16 + 1))[:BYTES]


def _state(moored: Moored, name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(moored.docker("inspect", name))[0]["State"]
    return state


def test_a_client_that_does_not_read_neither_stalls_the_container_nor_misses_anything(moored: Moored) -> None:
    moored.docker("run", "-d", "--network=none", "--name", "slow", "busybox", "sh", "-c", WRITER)
    with _attached(moored.socket, "slow") as client:
        moored.docker("exec", "slow", "touch", "/go")
        assert moored.docker("wait", "slow") == "3"
        assert len(moored.docker("logs", "slow")) == BYTES
        moored.docker("rm", "slow")
        assert _is_whole(_receive(client))


@pytest.mark.parametrize("moment", ["while it runs", "after it has ended"])
def test_a_client_that_does_not_read_misses_nothing_when_the_daemon_is_killed(moored: Moored, moment: str) -> None:
    name = f"slow-{moment.split()[0]}"
    moored.docker("run", "-d", "--network=none", "--name", name, "busybox", "sh", "-c", f"{WRITER}")
    pid = _state(moored, name)["Pid"]
    with _attached(moored.socket, name) as client:
        if moment == "while it runs":
            moored.sandbox.run("touch", f"/proc/{pid}/root/go")
            wait_for("some output to be spilled", lambda: list(moored.exec_root.glob("shim/*/spill")))
            moored.kill()
            moored.start()
        else:
            moored.docker("exec", name, "touch", "/go")
            moored.docker("wait", name)
            moored.kill()
            moored.start()
        assert _is_whole(_receive(client))
    assert moored.docker("wait", name) == "3"
    moored.docker("rm", name)


def test_a_client_that_is_told_of_being_attached_gets_all_from_there_on(
    moored: Moored,
) -> None:
    moored.docker("run", "-d", "--network=none", "--name", "told", "busybox", "sh", "-c", WRITER)
    pid = _state(moored, "told")["Pid"]
    with contextlib.ExitStack() as stack:
        with _shim_stopped(moored, "told"):
            client = stack.enter_context(_asking(moored.socket, "told"))
            if select.select([client], [], [], 2)[0]:  # a daemon that answers before the shim has the client
                moored.sandbox.run("touch", f"/proc/{pid}/root/go")
                wait_for("the output", lambda: len(moored.docker("logs", "told")) > 100_000)
        _expect_attached(client)
        if _state(moored, "told")["Running"]:
            moored.sandbox.run("touch", f"/proc/{pid}/root/go")
        assert _is_whole(_receive(client))
    assert moored.docker("wait", "told") == "3"
    moored.docker("rm", "told")


def test_a_client_whose_daemon_is_killed_before_it_was_attached_is_attached_by_the_next() -> None:
    with running_moored(supervised=True) as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        moored.docker("run", "-d", "--network=none", "--name", "asks", "busybox", "sh", "-c", WRITER)
        container = _state(moored, "asks")
        with contextlib.ExitStack() as stack:
            with _shim_stopped(moored, "asks"):
                client = stack.enter_context(_asking(moored.socket, "asks"))
                before = moored.daemon_pid()
                wait_for("the request to be read", lambda: not int.from_bytes(_unread(client), sys.byteorder))
                moored.kill()
                wait_for("another daemon", lambda: moored.pid_file.exists() and moored.daemon_pid() != before)
            _expect_attached(client)
            moored.sandbox.run("touch", f"/proc/{container['Pid']}/root/go")
            assert _is_whole(_receive(client))


def _unread(client: socket.socket) -> bytes:
    """How much of what the client sent nobody has read, as four bytes."""
    return fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4))


def test_clients_that_come_while_a_container_prints_all_get_its_output(moored: Moored) -> None:
    moored.docker(
        "run", "-d", "--network=none", "--name", "prints", "busybox", "sh", "-c", "while :; do echo x; usleep 200; done"
    )
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(60):
            client = stack.enter_context(_attached(moored.socket, "prints"))
            if number % 2:
                clients.append(client)  # some stay, and have the next ones come in the middle of a feed that is on
            for _ in range(3):
                head = client.recv(8, socket.MSG_WAITALL)
                assert set(client.recv(int.from_bytes(head[4:], "big"), socket.MSG_WAITALL)) == set(b"x\n")
            if not number % 2:
                client.close()
    moored.docker("rm", "-f", "prints")


def test_a_slow_pipe_behind_docker_run_gets_every_byte_and_the_exit_code(moored: Moored) -> None:
    script = WRITER.replace("until [ -e /go ]; do usleep 20000; done; ", "")
    with moored.docker_popen(
        "run", "--rm", "--network=none", "--name", "piped", "busybox", "sh", "-c", script
    ) as client:
        assert client.stdout is not None
        output = os.read(client.stdout.fileno(), 16)
        wait_for("the container to be gone", lambda: not moored.docker("ps", "-aq", "--filter", "name=piped"))
        output += client.stdout.read()
        assert client.wait(DEADLINE) == 3
    assert _is_whole(output)


def test_no_shim_stays_behind(moored: Moored) -> None:
    def shims() -> str:
        listing = subprocess.run(["ps", "-eo", "pid,pidns,comm"], capture_output=True, text=True, check=True).stdout
        inode = str(Path(f"/proc/{moored.sandbox.init_pid}/ns/pid").stat().st_ino)
        return "".join(line for line in listing.splitlines() if inode in line and "shim" in line)

    wait_for("all shims to end", lambda: not shims())
