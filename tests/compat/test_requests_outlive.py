"""Requests that are under way when moored is killed: done once, answered by the next daemon, or refused in a sentence."""

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from tests.soak.leftovers import agent_ask, agent_status
from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

#: What the CLI shows of a request that is not done again.
REFUSED = "the daemon ended while it worked on this request"


@pytest.fixture(scope="module")
def supervised() -> Iterator[Moored]:
    """A daemon under its agent, which has it back after every SIGKILL."""
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def kill_now(daemon: Moored) -> None:
    """SIGKILL moored, if there is one at the moment."""
    try:
        daemon.kill()
    except (AssertionError, FileNotFoundError, ValueError):
        pass  # between two daemons


def kill_and_wait(daemon: Moored) -> None:
    """SIGKILL moored and wait until another one answers."""
    pid = daemon.daemon_pid()
    daemon.kill()
    wait_for("another daemon", lambda: daemon.pid_file.exists() and daemon.pid_file.read_text() not in ("", str(pid)))
    wait_for("its answer", daemon.answers)


@contextmanager
def killed_again_and_again(daemon: Moored, seed: int) -> Iterator[None]:
    """Kill moored at random moments meanwhile."""
    chance, ending = random.Random(seed), threading.Event()

    def work() -> None:
        while not ending.wait(chance.uniform(0.5, 1.5)):
            kill_now(daemon)

    killer = threading.Thread(target=work)
    killer.start()
    try:
        yield
    finally:
        ending.set()
        killer.join()


def connect(daemon: Moored) -> socket.socket:
    """Return a plain connection to the API."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect(str(daemon.socket))
    return client


def answer(client: socket.socket) -> bytes:
    """Read one answer whose length is given, head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        assert piece, f"the connection was closed after {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < sum(lengths):
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body


def agent_state(daemon: Moored) -> str:
    """Return how the daemon is, in the agent's eyes; "" when there is no agent."""
    try:
        return str(agent_status(daemon)["daemon"]["state"])
    except OSError:
        return ""


def under_way(daemon: Moored, condition: Callable[[], object]) -> None:
    """Wait until a request has visibly begun, and kill the daemon under it."""
    wait_for("the request to have begun", condition)
    kill_and_wait(daemon)


def test_no_command_fails_while_the_daemon_is_killed_again_and_again(supervised: Moored) -> None:
    commands = [
        "ps -q", "create --name made busybox true", "start made", "rename made named", "rm named",
        "run -d --name lasts busybox sleep 1000", "network create between", "network connect between lasts",
        "network disconnect between lasts", "network rm between", "volume create kept", "volume rm kept",
        "restart -t 0 lasts", "pause lasts", "unpause lasts", "update --memory 100m --memory-swap 200m lasts",
        "inspect lasts", "logs lasts", "stats --no-stream lasts", "tag busybox busybox:again", "rmi busybox:again",
        "kill lasts", "start lasts", "stop -t 0 lasts", "images -q", "info", "rm -f lasts",
    ]  # fmt: skip
    failed = []
    with killed_again_and_again(supervised, seed=1):
        for command in commands:
            done = supervised.docker_run(*command.split())
            if done.returncode:
                failed.append((command, done.returncode, done.stderr))
    assert not failed
    assert supervised.docker("ps", "-aq") == ""


def test_a_container_is_made_and_run_once_although_its_requests_are_repeated(supervised: Moored) -> None:
    folder = supervised.sandbox.root / "runs"
    folder.mkdir()
    options = ("--rm", "-v", f"{folder}:/runs", "busybox", "sh", "-c")
    with killed_again_and_again(supervised, seed=2):
        for number in range(12):
            done = supervised.docker_run("run", *options, f"echo x >>/runs/{number}; echo said {number}")
            assert (done.returncode, done.stdout) == (0, f"said {number}\n"), done.stderr
        volumes = {supervised.docker("volume", "create") for _ in range(12)}
    assert {path.name: path.read_text() for path in folder.iterdir()} == {str(number): "x\n" for number in range(12)}
    wait_for("nothing to be left", lambda: supervised.docker("ps", "-aq") == "")
    assert set(supervised.docker("volume", "ls", "-q").split()) == volumes
    supervised.docker("volume", "rm", *volumes)


def test_a_stop_that_takes_its_time_goes_on(supervised: Moored) -> None:
    supervised.docker("run", "-d", "--name", "slow", "busybox", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    client = supervised.docker_popen("stop", "-t", "3", "slow")
    under_way(supervised, lambda: "kill" in supervised.docker("events", "--since", "5s", "--until", "0s"))
    out, err = client.communicate(timeout=DEADLINE)
    assert (client.returncode, out) == (0, b"slow\n"), err
    assert supervised.docker("inspect", "-f", "{{.State.ExitCode}}", "slow") == "137"
    supervised.docker("rm", "slow")


def test_a_connection_that_is_kept_open_serves_on(supervised: Moored) -> None:
    with closing(connect(supervised)) as client:
        for _ in range(3):
            client.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer(client).endswith(b"OK")
            kill_and_wait(supervised)


def test_connections_that_are_closed_leave_no_descriptor(supervised: Moored) -> None:
    agent = supervised.sandbox.run("pgrep", "-x", "moorage-agent").stdout.split()[0]

    def descriptors() -> list[int]:
        pids = (str(supervised.daemon_pid()), agent)
        return [len(supervised.sandbox.run("ls", f"/proc/{pid}/fd").stdout.split()) for pid in pids]

    supervised.docker("ps")
    before = descriptors()
    for _ in range(5):
        supervised.docker("ps")
        connect(supervised).close()
        with closing(connect(supervised)) as client:
            client.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            answer(client)
    with closing(connect(supervised)):
        kill_and_wait(supervised)
    wait_for(
        f"as many descriptors as before, {before}",
        lambda: [each <= n for each, n in zip(descriptors(), before, strict=True)] == [True, True],
    )


def test_a_request_that_has_come_in_part_is_completed_with_the_next_daemon(supervised: Moored) -> None:
    body = json.dumps({"Name": "in-parts"}).encode()
    with closing(connect(supervised)) as client:
        client.sendall(b"POST /volumes/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        kill_and_wait(supervised)
        client.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body[:5]))
        kill_and_wait(supervised)
        client.sendall(body[5:])
        assert b" 201 Created" in answer(client)
    supervised.docker("volume", "rm", "in-parts")


def test_an_upload_that_is_cut_short_is_refused_in_a_sentence(supervised: Moored) -> None:
    archive = busybox_archive().read_bytes()
    for size in (1000, 200_000):
        reader, writer = os.pipe()
        client = supervised.docker_popen("load", stdin=reader)
        os.close(reader)
        with os.fdopen(writer, "wb") as feed:
            feed.write(archive[:size])
            feed.flush()
            time.sleep(0.5)
            kill_and_wait(supervised)
        _, err = client.communicate(timeout=DEADLINE)
        assert client.returncode == 1
        assert REFUSED.encode() in err, err


def test_an_answer_that_has_begun_ends_short_instead_of_hanging(supervised: Moored) -> None:
    with closing(connect(supervised)) as client:
        client.sendall(b"GET /images/busybox/get HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(100)
        kill_and_wait(supervised)
        last = b""
        while piece := client.recv(1 << 20):
            last = piece
        assert not last.endswith(b"0\r\n\r\n")


def test_a_request_that_ends_every_daemon_is_given_up(supervised: Moored) -> None:
    supervised.docker("run", "-d", "--name", "held", "busybox", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    client = supervised.docker_popen("stop", "-t", "120", "held")
    wait_for("the stop", lambda: "kill" in supervised.docker("events", "--since", "5s", "--until", "0s"))
    for _ in range(11):
        assert client.poll() is None
        kill_and_wait(supervised)
    _, err = client.communicate(timeout=DEADLINE)
    assert REFUSED.encode() in err
    supervised.docker("rm", "-f", "held")


@pytest.mark.parametrize("by", ["SIGTERM", "the agent"])
def test_requests_and_connections_outlive_a_restart_of_the_daemon(supervised: Moored, by: str) -> None:
    supervised.docker("run", "-d", "--name", "slow", "busybox", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    pid = supervised.daemon_pid()
    with closing(connect(supervised)) as idle:
        client = supervised.docker_popen("stop", "-t", "2", "slow")
        wait_for("the stop", lambda: "kill" in supervised.docker("events", "--since", "5s", "--until", "0s"))
        if by == "SIGTERM":
            supervised.signal(signal.SIGTERM)
        else:
            agent_ask(supervised, "daemon.restart")
        wait_for("another daemon", lambda: supervised.pid_file.exists() and supervised.daemon_pid() != pid)
        _, err = client.communicate(timeout=DEADLINE)
        assert client.returncode == 0, err
        idle.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(idle).endswith(b"OK")
    supervised.docker("rm", "slow")


def test_requests_outlive_agent_and_daemon_one_after_the_other(supervised: Moored) -> None:
    supervised.docker("run", "-d", "--name", "slow", "busybox", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    with closing(connect(supervised)) as idle:
        client = supervised.docker_popen("stop", "-t", "6", "slow")
        wait_for("the stop", lambda: "kill" in supervised.docker("events", "--since", "5s", "--until", "0s"))
        idle.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        answer(idle)
        assert supervised.process is not None
        agent = supervised.sandbox.run("pgrep", "-x", "moorage-agent").stdout.split()[0]
        supervised.sandbox.run("kill", "-9", agent)
        supervised.process.wait(DEADLINE)
        supervised.spawn()
        wait_for("the next agent to find the daemon", lambda: agent_state(supervised) == "running")
        supervised.docker("version")
        kill_and_wait(supervised)
        _, err = client.communicate(timeout=DEADLINE)
        assert client.returncode == 0, err
        idle.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(idle).endswith(b"OK")
    supervised.docker("rm", "slow")


def test_agent_and_daemon_killed_at_once_end_what_they_answered_and_nothing_else(supervised: Moored) -> None:
    script = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i; usleep 5000; done; echo end $i"
    supervised.docker("run", "-d", "--network=none", "--name", "prints", "busybox", "sh", "-c", script)
    follower = supervised.docker_popen("logs", "-f", "prints")
    attached = supervised.docker_popen("attach", "--no-stdin", "prints")
    assert follower.stdout is not None and attached.stdout is not None
    first = int(attached.stdout.readline())
    assert follower.stdout.readline() == b"1\n"
    inode = supervised.socket.stat().st_ino
    assert supervised.process is not None
    agent = supervised.sandbox.run("pgrep", "-x", "moorage-agent").stdout.split()[0]
    supervised.sandbox.run("kill", "-9", agent, str(supervised.daemon_pid()))
    supervised.process.wait(DEADLINE)
    follower.communicate(timeout=DEADLINE)  # it is told, and does not hang
    waiting = supervised.docker_popen("ps", "-q")  # nobody is there: it waits
    supervised.spawn()
    listed, err = waiting.communicate(timeout=DEADLINE)
    assert (waiting.returncode, listed.count(b"\n")) == (0, 1), err
    assert supervised.socket.stat().st_ino == inode
    supervised.docker("exec", "prints", "touch", "/stop", check=False)
    shown, _ = attached.communicate(timeout=DEADLINE)
    *lines, end = shown.decode().splitlines()
    assert lines == [str(number) for number in range(first + 1, int(end.removeprefix("end ")) + 1)]
    assert supervised.docker("logs", "prints").splitlines()[-1] == end
    supervised.docker("rm", "prints")
