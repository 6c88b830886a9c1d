"""Clients of the real CLI go on over SIGKILL and return of a supervised daemon, with nothing missing."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

pytestmark = pytest.mark.root

COUNT = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line $i; usleep 5000; done; echo end; exit 7"


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _run(moored: Moored, name: str, *words: str) -> None:
    moored.docker("run", "-d", "--network", "none", "--name", name, *words)


def _kill_twice(moored: Moored) -> None:
    """SIGKILL the daemon and ask the next one something, two times."""
    for _ in range(2):
        before = moored.daemon_pid()
        moored.kill()
        moored.docker("ps", "-q")  # waits in the backlog instead of failing
        assert moored.daemon_pid() != before


def _settled(moored: Moored, client: "subprocess.Popen[bytes]", name: str) -> bytes:
    """Wait until a client has had its first line and its requests are answered; returns the line."""
    assert client.stdout is not None
    first: bytes = client.stdout.readline()
    assert first
    moored.docker("update", "--restart", "no", name)  # waits for the start to be done
    return first


def _finish(client: "subprocess.Popen[bytes]") -> tuple[int, bytes, bytes]:
    out, err = client.communicate(timeout=DEADLINE)
    return client.returncode, out, err


def _numbers(out: bytes) -> list[int]:
    return [int(line.split()[1]) for line in out.splitlines() if line.startswith(b"line")]


def _stop(moored: Moored, name: str) -> None:
    moored.docker_run("exec", name, "touch", "/stop")  # may be ended with the container


def test_socket_keeps_its_inode(moored: Moored) -> None:
    before = moored.socket.stat().st_ino
    _kill_twice(moored)
    assert moored.socket.stat().st_ino == before


def test_attached_run_shows_every_line_and_returns_the_exit_code(moored: Moored) -> None:
    client = moored.docker_popen("run", "--name", "fg", "--network", "none", "busybox", "sh", "-c", COUNT, bufsize=0)
    first = _settled(moored, client, "fg")
    _kill_twice(moored)
    _stop(moored, "fg")
    code, out, err = _finish(client)
    out = first + out
    assert (code, err) == (7, b"")
    numbers = _numbers(out)
    assert numbers == list(range(1, len(numbers) + 1))
    assert out.endswith(b"end\n")
    moored.docker("rm", "fg")


def test_wait_and_run_rm_get_the_exit_code(moored: Moored) -> None:
    _run(moored, "box", "busybox", "sh", "-c", COUNT)
    waiting = moored.docker_popen("wait", "box")
    wait_for("the wait to be heard", lambda: moored.docker_run("ps", "-q").returncode == 0)
    removed = moored.docker_popen(
        "run", "--rm", "--name", "tmp", "--network", "none", "busybox", "sh", "-c", COUNT, bufsize=0
    )
    first = _settled(moored, removed, "tmp")
    _kill_twice(moored)
    _stop(moored, "box")
    _stop(moored, "tmp")
    assert _finish(waiting) == (0, b"7\n", b"")
    code, out, _ = _finish(removed)
    out = first + out
    numbers = _numbers(out)
    assert (code, numbers) == (7, list(range(1, len(numbers) + 1)))
    moored.docker("rm", "box")
    assert moored.docker("ps", "-aq") == ""


def test_followed_logs_have_every_line_once(moored: Moored) -> None:
    _run(moored, "logged", "busybox", "sh", "-c", COUNT)
    client = moored.docker_popen("logs", "-f", "logged", bufsize=0)
    first = _settled(moored, client, "logged")
    _kill_twice(moored)
    _stop(moored, "logged")
    code, out, err = _finish(client)
    out = first + out
    assert (code, err) == (0, b"")
    assert out.decode() == moored.docker("logs", "logged") + "\n"
    numbers = _numbers(out)
    assert numbers == list(range(1, len(numbers) + 1))
    moored.docker("rm", "logged")


def test_interactive_input_goes_on(moored: Moored) -> None:
    client = moored.docker_popen(
        "run", "--rm", "-i", "--name", "talk", "--network", "none", "busybox", "sh", "-c",
        "while read x; do echo got $x; done; exit 9", stdin=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert client.stdin is not None
    client.stdin.write(b"zero\n")
    assert _settled(moored, client, "talk") == b"got zero\n"
    for word in (b"one", b"two", b"three"):
        client.stdin.write(word + b"\n")
        before = moored.daemon_pid()
        moored.kill()
        wait_for("the next daemon", lambda before=before: moored.daemon_pid() != before)  # type: ignore[misc]
    code, out, err = _finish(client)
    assert (code, out, err) == (9, b"got one\ngot two\ngot three\n", b"")


def test_exec_with_a_terminal_goes_on(moored: Moored) -> None:
    _run(moored, "box2", "busybox", "sleep", "10000")
    primary, secondary = os.openpty()
    client = moored.docker_popen(
        "exec", "-it", "box2", "sh", stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True
    )
    os.close(secondary)

    def expect(words: bytes) -> None:
        seen = b""
        while words not in seen:
            seen += os.read(primary, 4096)

    os.write(primary, b"echo fi''rst\n")
    expect(b"first")
    _kill_twice(moored)
    os.write(primary, b"echo sec''ond; exit 5\n")
    expect(b"second")
    assert client.wait(DEADLINE) == 5
    os.close(primary)
    moored.docker("rm", "-f", "box2")


def test_attach_and_exec_output_go_on(moored: Moored) -> None:
    _run(moored, "box3", "busybox", "sh", "-c", COUNT)
    attached = moored.docker_popen("attach", "--no-stdin", "box3", bufsize=0)
    seen = _settled(moored, attached, "box3")
    session = moored.docker_popen("exec", "box3", "sh", "-c", COUNT.replace("/stop", "/stop2"), bufsize=0)
    first = _settled(moored, session, "box3")
    _kill_twice(moored)
    moored.docker("exec", "box3", "touch", "/stop2")
    code, out, _ = _finish(session)
    out = first + out
    numbers = _numbers(out)
    assert (code, numbers) == (7, list(range(1, len(numbers) + 1)))
    _stop(moored, "box3")
    code, out, _ = _finish(attached)
    out = seen + out
    numbers = _numbers(out)
    assert code == 7
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert out.endswith(b"end\n")
    moored.docker("rm", "box3")


def test_stats_go_on(moored: Moored) -> None:
    _run(moored, "box4", "busybox", "sleep", "10000")
    samples = moored.api.lines("GET", "/containers/box4/stats")
    first = next(samples)
    _kill_twice(moored)
    after = [next(samples) for _ in range(3)][-1]
    assert after["id"] == first["id"]
    assert after["read"] > first["read"]
    moored.docker("rm", "-f", "box4")
