"""The daemon, or the runtime, is killed in the middle of create, start and exec: what the client is told, what is left.

With the daemon nothing is lost: the next one goes on with the request. With the runtime the request is, which its client is told.
"""

import json
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, Sandbox, wait_for
from tests.support.runtime import Runtime

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Moored, Runtime]]:
    """A supervised daemon, and its runtime that can be held back."""
    with Sandbox() as sandbox:
        moored = Moored(sandbox, supervised=True)
        runtime = Runtime(moored)
        moored.start()
        moored.docker("load", "-i", str(busybox_archive()))
        try:
            yield moored, runtime
        finally:
            moored.end()


def _state(moored: Moored, name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(moored.docker("inspect", "-f", "{{json .State}}", name))
    return state


def _kill_daemon(moored: Moored) -> None:
    pid = moored.daemon_pid()
    moored.kill()
    wait_for("another daemon", lambda: moored.pid_file.exists() and moored.pid_file.read_text() not in ("", str(pid)))


def test_a_start_whose_daemon_was_killed_is_finished_and_known(both: tuple[Moored, Runtime]) -> None:
    moored, runtime = both
    moored.docker("create", "--name", "begun", "--network=none", "busybox", "sh", "-c", "echo well; sleep 1000")
    runtime.hold("run")
    with moored.docker_popen("start", "begun") as client:
        runtime.wait_held()
        _kill_daemon(moored)
        assert client.poll() is None
        runtime.release()
        assert client.wait(DEADLINE) == 0
    assert _state(moored, "begun")["Status"] == "running"
    assert moored.docker("exec", "begun", "echo", "in") == "in"
    wait_for("its output", lambda: moored.docker("logs", "begun") == "well")
    assert moored.docker("stats", "--no-stream", "--format", "{{.PIDs}}", "begun") != "0"
    moored.docker("stop", "-t", "0", "begun")
    assert moored.docker("rm", "begun") == "begun"


def test_a_start_again_whose_daemon_was_killed_has_its_new_address_and_ports(both: tuple[Moored, Runtime]) -> None:
    moored, runtime = both
    serve = "mkdir -p /www; echo good > /www/index.html; exec httpd -f -p 80 -h /www"
    moored.docker("run", "-d", "--name", "serves", "-p", "80", "busybox", "sh", "-c", serve)
    moored.docker("stop", "-t", "0", "serves")
    runtime.hold("run")
    with moored.docker_popen("start", "serves") as client:
        runtime.wait_held()
        _kill_daemon(moored)
        runtime.release()
        assert client.wait(DEADLINE) == 0
    address = moored.docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "serves")
    assert address in moored.docker("exec", "serves", "ip", "addr")
    port = moored.docker("port", "serves", "80").splitlines()[0].rpartition(":")[2]
    url = f"http://127.0.0.1:{port}/"
    wait_for("its page", lambda: moored.sandbox.run("busybox", "wget", "-qO-", url, check=False).stdout == "good\n")
    moored.docker("rm", "-f", "serves")


@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize(("command", "code", "output"), [("echo in; exit 5", 5, "in\n"), ("", 127, "")])
def test_an_exec_whose_daemon_was_killed_goes_on_with_its_client(
    both: tuple[Moored, Runtime], command: str, code: int, output: str, back: bool
) -> None:
    """Whether the runtime is at its end before or after the next daemon is there."""
    moored, runtime = both
    moored.docker("run", "-d", "--name", "asked", "--network=none", "busybox", "sleep", "1000")
    runtime.hold("exec")
    with moored.docker_popen("exec", "asked", *(("sh", "-c", command) if command else ("/no/such",))) as client:
        assert client.stdout is not None
        runtime.wait_held()
        if back:
            _kill_daemon(moored)
            wait_for("the daemon to answer", moored.answers)
        else:
            moored.kill()
        runtime.release()
        assert (client.wait(DEADLINE), client.stdout.read().decode()) == (code, output)
    moored.docker("rm", "-f", "asked")


def test_an_exec_in_the_middle_of_its_start_runs_to_the_next_daemon(both: tuple[Moored, Runtime]) -> None:
    moored, runtime = both
    container = moored.docker("run", "-d", "--name", "halfway", "--network=none", "busybox", "sleep", "1000")
    runtime.hold("exec")
    with moored.docker_popen("exec", "halfway", "sleep", "1000") as client:
        runtime.wait_held()
        _kill_daemon(moored)
        wait_for("the daemon to answer", moored.answers)
        (session,) = moored.api.get(f"/containers/{container}/json").json["ExecIDs"]
        found = moored.api.get(f"/exec/{session}/json").json
        assert (found["Running"], found["ExitCode"], found["CanRemove"]) == (True, None, False)
        runtime.release()
        wait_for("its process", lambda: moored.api.get(f"/exec/{session}/json").json["Pid"] > 0)
        moored.docker("rm", "-f", "halfway")
        assert client.wait(DEADLINE) == 137


def test_an_exec_lost_between_its_client_and_the_shim_has_not_succeeded(both: tuple[Moored, Runtime]) -> None:
    """The client was told that it begins, and asks for the exit code when its connection breaks; null would be 0 to it."""
    moored, _ = both
    container = moored.docker("run", "-d", "--name", "unasked", "--network=none", "busybox", "sleep", "1000")
    session = moored.api.post(f"/containers/{container}/exec", {"Cmd": ["true"]}).json["Id"]
    record = moored.exec_root / "exec" / container / f"{session}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"started": True}))
    _kill_daemon(moored)
    found = moored.api.get(f"/exec/{session}/json").json
    assert (found["Running"], found["ExitCode"]) == (False, 255)
    moored.docker("rm", "-f", "unasked")


def test_docker_run_rm_whose_start_was_lost_ends_and_leaves_nothing(both: tuple[Moored, Runtime]) -> None:
    """The CLI waits for its container's removal when the start fails: without it it would hang for ever."""
    moored, _ = both
    with moored.docker_popen(
        "run", "--rm", "--name", "lost", "--network=none", "-v", "/x", "busybox", "true"
    ) as client:
        wait_for("the container", lambda: moored.docker("ps", "-aq", "--filter", "name=lost"))
        _kill_daemon(moored)
        assert client.wait(DEADLINE) in (0, 125)
    wait_for("it to go", lambda: not moored.docker("ps", "-aq", "--filter", "name=lost"))


def test_a_created_container_with_rm_can_still_be_started_after_a_kill(both: tuple[Moored, Runtime]) -> None:
    moored, _ = both
    moored.docker("create", "--rm", "--name", "kept", "--network=none", "busybox", "true")
    _kill_daemon(moored)
    wait_for("the daemon to answer", moored.answers)
    moored.docker("start", "-a", "kept")
    wait_for("it to go", lambda: not moored.docker("ps", "-aq", "--filter", "name=kept"))


@pytest.mark.parametrize("after", [0.002, 0.006, 0.012, 0.02, 0.04])
def test_runtime_killed_in_a_start_is_an_error_and_the_next_start_works(
    both: tuple[Moored, Runtime], after: float
) -> None:
    moored, runtime = both
    moored.docker("create", "--name", "struck", "busybox", "sleep", "1000")
    runtime.die(after)
    started = moored.docker_run("start", "struck")
    runtime.live()
    if started.returncode != 0:
        assert "crun" in started.stderr
        state = _state(moored, "struck")
        assert (state["Running"], state["Pid"]) == (False, 0)
        assert state["Error"]
        moored.docker("start", "struck")
    assert moored.docker("exec", "struck", "echo", "in") == "in"
    moored.docker("rm", "-f", "struck")
    assert not [line for line in moored.sandbox.run("ps", "-eo", "args").stdout.splitlines() if "sleep 1000" in line]


@pytest.mark.parametrize("after", [0.002, 0.006, 0.012, 0.02])
def test_runtime_killed_in_an_exec_does_not_touch_the_container(both: tuple[Moored, Runtime], after: float) -> None:
    moored, runtime = both
    moored.docker("run", "-d", "--name", "patient", "--network=none", "busybox", "sleep", "1000")
    before = _state(moored, "patient")
    runtime.die(after)
    done = moored.docker_run("exec", "patient", "echo", "in")
    runtime.live()
    assert done.stdout == "in\n" if done.returncode == 0 else done.stderr or done.stdout
    assert moored.docker("exec", "patient", "echo", "again") == "again"
    assert _state(moored, "patient") == before
    moored.docker("rm", "-f", "patient")
