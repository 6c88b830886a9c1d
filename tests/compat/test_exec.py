"""Exec sessions by the CLI and by checked requests."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.support.moored import DEADLINE, Moored, wait_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def box(moored: Moored) -> Iterator[str]:
    """The name of a running container."""
    moored.docker("run", "-d", "--name", "box", "--network", "none", "-e", "OWN=1", "busybox", "sleep", "10000")
    yield "box"
    moored.docker("rm", "-f", "box")


def test_exec_gives_output_streams_and_exit_code(moored: Moored, box: str) -> None:
    done = moored.docker_run("exec", box, "sh", "-c", "echo out; echo err >&2; exit 4")
    assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "err\n")


def test_exec_feeds_standard_input(moored: Moored, box: str) -> None:
    text = "x" * 300_000 + "\n"
    assert moored.docker("exec", "-i", box, "cat", input=text) + "\n" == text


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc", 126)])
def test_exec_of_what_cannot_run(moored: Moored, box: str, command: str, code: int) -> None:
    done = moored.docker_run("exec", box, command)
    assert done.returncode == code
    assert "OCI runtime exec failed" in done.stdout + done.stderr


def test_exec_in_a_folder_that_is_not_there_ends_with_126(moored: Moored, box: str) -> None:
    done = moored.docker_run("exec", "-w", "/no/such", box, "pwd")
    assert done.returncode == 126 and "/no/such" in done.stdout + done.stderr


def test_exec_has_the_containers_surroundings_and_its_own(moored: Moored, box: str) -> None:
    out = moored.docker(
        "exec", "-u", "1000", "-w", "/tmp", "-e", "MORE=2", box, "sh", "-c", "id -u; pwd; echo $OWN$MORE"
    )
    assert out.split() == ["1000", "/tmp", "12"]


def test_exec_with_a_terminal(moored: Moored, box: str) -> None:
    out = moored.docker("exec", "-t", box, "sh", "-c", "[ -t 1 ] && echo terminal")
    assert out.strip() == "terminal"


def test_detached_exec_runs_on(moored: Moored, box: str) -> None:
    moored.docker("exec", "-d", box, "sh", "-c", "echo done > /tmp/detached")
    wait_for("the file", lambda: moored.docker_run("exec", box, "cat", "/tmp/detached").stdout == "done\n")


def test_exec_record_tells_its_life(moored: Moored, box: str) -> None:
    api = moored.api
    body = {"Cmd": ["sh", "-c", "exit 6"], "AttachStdout": True}
    session = api.post(f"/containers/{box}/exec", body).json["Id"]
    before = api.get(f"/exec/{session}/json").json
    assert (before["Running"], before["ExitCode"]) == (False, None)
    assert before["ProcessConfig"]["arguments"] == ["-c", "exit 6"]
    assert api.post(f"/exec/{session}/start", {"Detach": True}).status == 200
    after = wait_for("its end", lambda: (r := api.get(f"/exec/{session}/json").json)["ExitCode"] is not None and r)
    assert (after["Running"], after["ExitCode"], after["CanRemove"]) == (False, 6, True)
    assert api.post(f"/exec/{session}/start", {"Detach": True}).status == 409


def test_exec_errors_are_dockerds(moored: Moored, box: str) -> None:
    api = moored.api
    assert api.get("/exec/nope/json").message == "No such exec instance: nope"
    assert api.post("/containers/nope/exec", {"Cmd": ["true"]}).status == 404
    empty = api.call("POST", f"/containers/{box}/exec", body={"Cmd": []}, check=False)  # a 400 the API forgot
    assert (empty.status, empty.message) == (400, "No exec command specified")
    moored.docker("create", "--name", "still", "--network", "none", "busybox", "true")
    refused = api.post("/containers/still/exec", {"Cmd": ["true"]})
    assert refused.status == 409
    assert "is not running" in refused.message
    moored.docker("rm", "still")


def test_exec_ends_with_its_container(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "short", "--network", "none", "busybox", "sleep", "10000")
    client = moored.docker_popen("exec", "short", "sleep", "10000")
    wait_for("the exec", lambda: json.loads(moored.docker("inspect", "-f", "{{json .ExecIDs}}", "short")))
    moored.docker("kill", "short")
    assert client.wait(DEADLINE) == 137
    client.communicate()
    moored.docker("rm", "short")


def test_many_execs_at_once(moored: Moored, box: str) -> None:
    clients = [moored.docker_popen("exec", box, "sh", "-c", f"echo {n}; exit {n}") for n in range(8)]
    for number, client in enumerate(clients):
        out, _ = client.communicate(timeout=DEADLINE)
        assert (client.returncode, out) == (number, f"{number}\n".encode())


def test_a_resize_right_behind_the_answer_to_the_start_waits_for_the_terminal(moored: Moored, box: str) -> None:
    """As dockerode sends it: the answer comes before the process is there."""
    for _ in range(5):
        body = {"Cmd": ["sh"], "Tty": True, "AttachStdin": True, "AttachStdout": True}
        session = moored.api.post(f"/containers/{box}/exec", body).json["Id"]
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect(str(moored.socket))
            text = b'{"Tty":true}'
            client.sendall(
                b"POST /v1.44/exec/%s/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (session.encode(), len(text), text)
            )
            assert client.recv(4096).startswith(b"HTTP/1.1 101")
            assert moored.api.post(f"/exec/{session}/resize", h=33, w=77).status == 200
            client.sendall(b"stty size; exit\n")
            output = b""
            while data := client.recv(4096):
                output += data
        assert b"33 77" in output
