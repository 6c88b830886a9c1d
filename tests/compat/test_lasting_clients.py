"""Clients of the real docker CLI that go on across a SIGKILL of moored, with nothing missing and the right exit code."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

COUNT = "i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo line-$i; sleep 0.02; done; exit 7"


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


def finish(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Return exit status and output of a client that ends by itself."""
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output.decode() + errors.decode()


def numbered(text: str, count: int) -> bool:
    """Whether a text is exactly the lines line-1 to line-count."""
    return text.split() == [f"line-{number}" for number in range(1, count + 1)]


def test_an_attached_run_goes_on_to_its_exit_code(supervised: Moored) -> None:
    client = supervised.docker_popen("run", "--rm", "--name", "attached", "busybox", "sh", "-c", COUNT.format(n=200))
    wait_for("the container", lambda: "attached" in supervised.docker("ps", "--format", "{{.Names}}"))
    for _ in range(3):
        kill_and_wait(supervised)
    code, text = finish(client)
    assert code == 7, text
    assert numbered(text, 200), text
    wait_for("its removal", lambda: "attached" not in supervised.docker("ps", "-a", "--format", "{{.Names}}"))


def test_standard_input_reaches_the_container_through_a_killed_daemon(supervised: Moored) -> None:
    client = supervised.docker_popen("run", "--rm", "-i", "--name", "fed", "busybox", "cat", stdin=subprocess.PIPE)
    assert client.stdin is not None and client.stdout is not None
    wait_for("the container", lambda: "fed" in supervised.docker("ps", "--format", "{{.Names}}"))
    client.stdin.write(b"before\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"before\n"
    kill_and_wait(supervised)
    client.stdin.write(b"after\n")
    client.stdin.close()
    client.stdin = None
    assert finish(client) == (0, "after\n")


def test_wait_is_answered_by_the_next_daemon(supervised: Moored) -> None:
    supervised.docker(
        "run", "-d", "--name", "awaited", "busybox", "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done"
    )
    client = supervised.docker_popen("wait", "awaited")
    time.sleep(0.5)
    kill_and_wait(supervised)
    supervised.docker("kill", "-s", "TERM", "awaited")
    assert finish(client) == (0, "9\n")
    supervised.docker("rm", "awaited")


def test_logs_follow_across_kills_without_a_gap(supervised: Moored) -> None:
    supervised.docker("run", "-d", "--name", "followed", "busybox", "sh", "-c", COUNT.format(n=150))
    client = supervised.docker_popen("logs", "-f", "followed")
    for _ in range(3):
        kill_and_wait(supervised)
    code, text = finish(client)
    assert code == 0 and numbered(text, 150), text
    supervised.docker("rm", "followed")


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


def test_stats_go_on(supervised: Moored) -> None:
    supervised.docker("run", "-d", "--name", "measured", "busybox", "sleep", "1000")
    lines = supervised.api.lines("GET", "/containers/measured/stats")
    first = next(lines)
    kill_and_wait(supervised)
    following = [next(lines) for _ in range(2)]
    lines.close()
    assert first["name"] == "/measured" and all(each["name"] == "/measured" for each in following)
    supervised.docker("rm", "-f", "measured")


def test_an_exec_s_output_and_exit_code_come_through(supervised: Moored) -> None:
    supervised.docker("run", "-d", "--name", "host", "busybox", "sleep", "1000")
    client = supervised.docker_popen("exec", "host", "sh", "-c", COUNT.format(n=150))
    assert client.stdout is not None
    first = client.stdout.readline().decode()
    kill_and_wait(supervised)
    code, text = finish(client)
    assert numbered(first + text, 150)
    assert code == 7
    supervised.docker("rm", "-f", "host")


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
