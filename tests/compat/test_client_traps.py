"""What clients stumble over when an engine is nearly right, each with the real client."""

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator

import docker
import pytest
import websocket

from tests.support.moored import DEADLINE, Moored, wait_for


@pytest.fixture
def box(moored: Moored) -> Iterator[str]:
    """A container that does nothing, called box."""
    moored.docker("run", "-d", "--name", "box", "--network=none", "busybox", "sleep", "1000")
    yield "box"
    moored.docker("rm", "-f", "box", check=False)


def with_version(moored: Moored, version: str, *argv: str) -> "subprocess.CompletedProcess[str]":
    """Run the docker CLI with an API version that is not negotiated."""
    return subprocess.run(
        ["docker", *argv], env={**moored.docker_environment(), "DOCKER_API_VERSION": version}, capture_output=True,
        text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip


def test_a_client_that_is_too_new_is_told_the_newest_version(moored: Moored) -> None:
    done = with_version(moored, "1.99", "ps")
    assert done.returncode == 1
    assert "client version 1.99 is too new. Maximum supported API version is 1.51" in done.stderr
    for version in ("1.24", "1.40", "1.51"):
        assert with_version(moored, version, "run", "--rm", "--network=none", "busybox", "echo", "x").stdout == "x\n"


def test_input_that_a_container_never_reads_is_no_error(moored: Moored) -> None:
    done = moored.docker_run("run", "--rm", "-i", "--network=none", "busybox", "true", input="x" * 5_000_000)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_end_of_input_is_not_the_end_of_output(moored: Moored) -> None:
    script = "cat > /dev/null; seq 100000; echo done >&2"
    done = moored.docker_run("run", "--rm", "-i", "--network=none", "busybox", "sh", "-c", script, input="x" * 300_000)
    assert (done.returncode, done.stderr) == (0, "done\n")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 100_001))


def test_a_client_that_ends_its_half_of_the_connection_is_still_answered(moored: Moored) -> None:
    for request, answer in (
        (b"HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET /v1.99/info HTTP/1.1\r\nHost: d\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /info HTTP/1.1\r\nHost: d\r\n\r\n" * 2, b"HTTP/1.1 200 OK"),
        (b"GET /events HTTP/1.1\r\nHost: d\r\n\r\n", b"HTTP/1.1 200 OK"),  # and let go of in the end
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect(str(moored.socket))
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert said.count(answer) == request.count(b"HTTP/1.1"), said


def test_the_exit_code_of_what_ends_at_once_is_never_missed(moored: Moored) -> None:
    for code in range(10):
        done = moored.docker_run("run", "--rm", "--network=none", "busybox", "sh", "-c", f"exit {code}")
        assert (done.returncode, done.stderr) == (code, "")


def test_log_options_mean_what_they_mean_to_dockerd(moored: Moored) -> None:
    moored.docker("run", "--name", "logged", "--network=none", "busybox", "sh", "-c", "echo a; sleep 1.1; echo b")
    try:
        assert moored.docker("logs", "--tail", "nonsense", "logged") == "a\nb"
        assert moored.docker("logs", "--tail", "1", "logged") == "b"
        assert moored.docker("logs", "--tail", "0", "logged") == ""
        assert moored.docker("logs", "-f", "logged") == "a\nb", "following what has ended does not end"
        stamped = moored.docker("logs", "--timestamps", "logged").splitlines()
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z [ab]", line) for line in stamped), stamped
        second = stamped[1].split()[0]
        assert moored.docker("logs", "--since", second, "logged") == "b"
        assert moored.docker("logs", "--until", second, "logged") in ("a", "a\nb")
        silent = moored.docker("create", "--log-driver=none", "busybox", "true")
        done = moored.docker_run("logs", silent)
        assert done.returncode == 1 and "configured logging driver does not support reading" in done.stderr
        moored.docker("rm", silent)
    finally:
        moored.docker("rm", "-f", "logged")


def test_events_filter_by_the_beginning_of_long_actions(moored: Moored) -> None:
    since = f"{time.time():.9f}"
    health = ("--health-cmd", "true", "--health-interval", "200ms")
    moored.docker("run", "-d", "--name", "watched", "--network=none", *health, "busybox", "sleep", "1000")
    try:
        status = ("inspect", "-f", "{{.State.Health.Status}}", "watched")
        wait_for("health", lambda: moored.docker(*status) == "healthy")
        moored.docker("exec", "watched", "echo", "hello")

        def seen(event: str) -> list[str]:
            argv = ("--since", since, "--until", f"{time.time():.9f}", "--filter", f"event={event}")
            return moored.docker(
                "events", *argv, "--filter", "container=watched", "--format", "{{.Action}}"
            ).splitlines()

        assert seen("health_status") == ["health_status: healthy"]
        assert seen("health_status: healthy") == ["health_status: healthy"] and seen("health_status: unhealthy") == []
        assert "exec_create: echo hello" in seen("exec_create") and "exec_start: echo hello" in seen("exec_start")
        assert seen("start") == ["start"]
    finally:
        moored.docker("rm", "-f", "watched")


def test_stats_go_on_and_end_with_their_client(moored: Moored, box: str) -> None:
    client = moored.docker_popen("stats", "--format", "{{json .}}", box)
    assert client.stdout is not None
    try:
        shown: list[str] = []
        while len(shown) < 4:
            text = re.sub(rb"\x1b\[[0-9;]*[A-Za-z]", b"", client.stdout.readline()).strip()
            assert client.poll() is None, text
            if text.startswith(b"{"):
                shown.append(json.loads(text)["PIDs"])
        assert shown[-1] == "1"
    finally:
        client.kill()
        client.communicate()
    assert moored.docker("top", box, "-o", "pid,comm").splitlines()[1].split()[1] == "sleep"


def test_hundreds_of_events_reach_a_client_in_order(moored: Moored, box: str) -> None:
    since = f"{time.time():.9f}"
    client = moored.docker_popen("events", "--since", since, "--filter", "container=box", "--format", "{{.Action}}")
    assert client.stdout is not None
    try:
        for _ in range(100):
            moored.api.post(f"/containers/{box}/pause")
            moored.api.post(f"/containers/{box}/unpause")
        seen = [client.stdout.readline().decode().strip() for _ in range(200)]
        assert seen == ["pause", "unpause"] * 100
    finally:
        client.kill()
        client.communicate()


def test_what_is_already_so_is_no_error_and_what_cannot_be_is_a_conflict(moored: Moored, box: str) -> None:
    assert moored.docker("start", box) == box
    moored.docker("kill", box)
    moored.docker("wait", box)
    assert moored.docker("stop", box) == box
    done = moored.docker_run("kill", box)
    assert done.returncode == 1 and "is not running" in done.stderr
    with moored.client() as client, pytest.raises(docker.errors.APIError) as caught:
        client.containers.create("busybox", name=box)
    assert caught.value.status_code == 409


def test_a_failure_after_the_answer_has_begun_ends_the_client_with_an_error(moored: Moored) -> None:
    script = "FROM busybox\nRUN exit 7\n"
    done = moored.docker_run("build", "-", input=script)
    assert done.returncode == 7 and "returned a non-zero code: 7" in done.stderr
    done = moored.docker_run("load", input="this is no archive")
    assert done.returncode == 1 and done.stderr.strip()


def test_a_websocket_client_attaches(moored: Moored) -> None:
    container = moored.docker(
        "run", "-di", "--network=none", "busybox", "sh", "-c", "read line; echo got $line; sleep 1000"
    )
    connection = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        connection.connect(str(moored.socket))
        url = f"ws://docker/v1.51/containers/{container}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1"
        client = websocket.create_connection(url, socket=connection, timeout=DEADLINE)
        client.send_binary(b"hello\n")
        seen = b""
        while b"got hello" not in seen:
            data = client.recv()
            seen += data if isinstance(data, bytes) else data.encode()
        client.close()
    moored.docker("rm", "-f", container)
