"""Events, a terminal session and new requests of the real docker CLI across a SIGKILL of moored; the other clients that go on
are in tests/integration/engine/test_clients_outlive.py."""

import json
import os
import pty
import select
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for


@pytest.fixture(scope="module")
def supervised() -> Iterator[Moored]:
    """A daemon under its agent, which has it back after every SIGKILL."""
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def kill_and_wait(daemon: Moored) -> None:
    """SIGKILL moored and wait until another one answers."""
    pid = daemon.daemon_pid()
    daemon.kill()
    wait_for("another daemon", lambda: daemon.pid_file.exists() and daemon.pid_file.read_text() not in ("", str(pid)))
    wait_for("its answer", daemon.answers)


def test_events_go_on_and_tell_of_what_ended_meanwhile(supervised: Moored) -> None:
    supervised.docker("run", "-d", "--name", "watched", "busybox", "sleep", "1000")
    client = supervised.docker_popen("events", "--filter", "container=watched", "--format", "{{json .}}")
    assert client.stdout is not None
    time.sleep(0.5)
    kill_and_wait(supervised)
    supervised.docker("rm", "-f", "watched")
    seen: list[str] = []
    while "destroy" not in seen:
        seen.append(json.loads(client.stdout.readline())["Action"])
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=DEADLINE)
    assert seen == ["kill", "die", "destroy"], seen


def test_a_terminal_session_goes_on(supervised: Moored) -> None:
    primary, secondary = pty.openpty()
    client = supervised.docker_popen(
        "run", "--rm", "-it", "--name", "typed", "busybox", "sh", stdin=secondary, stdout=secondary, stderr=secondary
    )
    os.close(secondary)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + DEADLINE
        while text not in seen:
            ready, _, _ = select.select([primary], [], [], max(end - time.monotonic(), 0))
            assert ready, f"waited in vain for {text!r}: {seen!r}"
            seen += os.read(primary, 4096)

    try:
        until(b"# ")
        os.write(primary, b"echo a$((1+1))b\n")
        until(b"a2b")
        kill_and_wait(supervised)
        os.write(primary, b"echo c$((2+2))d\n")
        until(b"c4d")
        os.write(primary, b"exit 5\n")
        assert client.wait(DEADLINE) == 5
    finally:
        client.kill()
        client.wait()
        os.close(primary)


def test_a_request_that_comes_while_no_daemon_runs_waits_for_the_next(supervised: Moored) -> None:
    inode = supervised.socket.stat().st_ino
    for _ in range(5):
        supervised.kill()
        assert "busybox" in supervised.docker("images", "--format", "{{.Repository}}")
        assert supervised.socket.stat().st_ino == inode
