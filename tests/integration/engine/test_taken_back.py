"""What a daemon that comes back after SIGKILL knows of its containers: everything, and true."""

import json
import sqlite3
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def moored() -> Iterator[Moored]:
    with running_moored("--live-restore") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _run(moored: Moored, name: str, *words: str) -> str:
    return moored.docker("run", "-d", "--network", "none", "--name", name, *words)


def _state(moored: Moored, name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(moored.docker("inspect", "-f", "{{json .State}}", name))
    return state


def _ended(moored: Moored, pid: object) -> bool:
    """Whether a process inside the sandbox has ended."""
    return moored.sandbox.run("kill", "-0", str(pid), check=False).returncode != 0


def test_running_and_paused_containers_keep_process_and_start_time(moored: Moored) -> None:
    _run(moored, "runs", "busybox", "sleep", "10000")
    _run(moored, "rests", "busybox", "sleep", "10000")
    moored.docker("pause", "rests")
    before = [_state(moored, name) for name in ("runs", "rests")]
    for _ in range(3):
        moored.kill()
        moored.start()
    assert [_state(moored, name) for name in ("runs", "rests")] == before
    assert moored.docker("exec", "runs", "echo", "ok") == "ok"
    moored.docker("unpause", "rests")
    assert moored.docker("exec", "rests", "echo", "ok") == "ok"
    moored.docker("stop", "-t", "0", "runs", "rests")


def test_exit_code_time_and_die_event_of_what_ended_while_away(moored: Moored) -> None:
    _run(moored, "away", "busybox", "sh", "-c", "until [ -e /go ]; do sleep 0.02; done; echo last words; exit 42")
    pid = _state(moored, "away")["Pid"]
    moored.docker("exec", "-d", "away", "sh", "-c", "sleep 0.3; touch /go")
    moored.kill()
    wait_for("the container to end", lambda: _ended(moored, pid))
    away_until = time.time()
    moored.start()
    state = _state(moored, "away")
    assert (state["Status"], state["ExitCode"]) == ("exited", 42)
    finished = moored.docker("inspect", "-f", "{{.State.FinishedAt}}", "away")
    assert finished < time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(away_until + 1))
    assert moored.docker("logs", "away") == "last words"
    assert moored.docker("wait", "away") == "42"
    events = moored.docker(
        "events", "--since", "1h", "--until", f"{time.time() + 0.2:.3f}", "--filter", "event=die", "--format",
        "{{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}",
    )  # fmt: skip
    assert events.splitlines() == ["away 42"]


def test_rm_containers_go_after_ending_while_away_and_stay_while_alive(moored: Moored) -> None:
    moored.docker(
        "run", "-d", "--rm", "--network", "none", "--name", "goes", "busybox", "sh", "-c",
        "until [ -e /go ]; do sleep 0.02; done",
    )  # fmt: skip
    moored.docker("run", "-d", "--rm", "--network", "none", "--name", "stays", "busybox", "sleep", "10000")
    pid = _state(moored, "goes")["Pid"]
    moored.docker("exec", "-d", "goes", "sh", "-c", "sleep 0.3; touch /go")
    moored.kill()
    wait_for("the container to end", lambda: _ended(moored, pid))
    moored.start()
    wait_for("the removal", lambda: moored.docker("ps", "-a", "--format", "{{.Names}}") == "stays")
    moored.docker("stop", "-t", "0", "stays")
    wait_for("the removal", lambda: moored.docker("ps", "-aq") == "")


def test_restart_policy_goes_on_counting(moored: Moored) -> None:
    script = "until [ -e /v/go ]; do sleep 0.02; done; rm /v/go; exit 3"
    _run(moored, "again", "--restart", "always", "-v", "vol:/v", "busybox", "sh", "-c", script)
    moored.docker("exec", "again", "touch", "/v/go")
    wait_for("a restart", lambda: moored.docker("inspect", "-f", "{{.RestartCount}}", "again") == "1")
    wait_for("the process", lambda: _state(moored, "again")["Pid"])
    pid = _state(moored, "again")["Pid"]
    moored.docker("exec", "-d", "again", "sh", "-c", "sleep 0.3; touch /v/go")
    moored.kill()
    wait_for("the container to end", lambda: _ended(moored, pid))
    moored.start()
    wait_for("the next process", lambda: _state(moored, "again")["Pid"] not in (0, pid))
    assert moored.docker("inspect", "-f", "{{.RestartCount}}", "again") == "2"
    moored.docker("rm", "-f", "again")


def test_health_keeps_its_history_and_goes_on(moored: Moored) -> None:
    _run(
        moored, "checked", "--health-cmd", "test ! -e /sick", "--health-interval", "200ms", "--health-retries", "1",
        "busybox", "sleep", "10000",
    )  # fmt: skip

    def health() -> dict[str, object]:
        found = _state(moored, "checked")["Health"]
        assert isinstance(found, dict)
        return found

    wait_for("healthy", lambda: health()["Status"] == "healthy")
    moored.kill()
    moored.start()
    assert health()["Status"] == "healthy"
    assert health()["Log"]
    moored.docker("exec", "checked", "touch", "/sick")
    wait_for("unhealthy", lambda: health()["Status"] == "unhealthy")
    moored.docker("rm", "-f", "checked")


def test_exec_sessions_are_known_with_their_exit_codes(moored: Moored) -> None:
    _run(moored, "box", "busybox", "sleep", "10000")
    api = moored.api
    ids = []
    for script in ("until [ -e /go ]; do sleep 0.02; done; exit 9", "sleep 10000"):
        ids.append(api.post("/containers/box/exec", {"Cmd": ["sh", "-c", script]}).json["Id"])
        api.post(f"/exec/{ids[-1]}/start", {"Detach": True})
    pid = api.get(f"/exec/{ids[0]}/json").json["Pid"]
    moored.docker("exec", "-d", "box", "sh", "-c", "sleep 0.3; touch /go")
    moored.kill()
    wait_for("the first session to end", lambda: _ended(moored, pid))
    moored.start()
    first, second = (api.get(f"/exec/{each}/json").json for each in ids)
    assert (first["Running"], first["ExitCode"]) == (False, 9)
    assert (second["Running"], second["ExitCode"]) == (True, None)
    moored.docker("rm", "-f", "box")


def test_names_networks_ports_and_volumes_in_use_come_back(moored: Moored) -> None:
    moored.docker("network", "create", "own")
    moored.docker(
        "run", "-d", "--name", "web", "--network", "own", "--network-alias", "www", "-p", "18080:80", "-v", "vol:/v",
        "busybox", "sleep", "10000",
    )  # fmt: skip
    view = "{{json .NetworkSettings}} {{json .Mounts}} {{.Name}}"
    before = moored.docker("inspect", "-f", view, "web")
    moored.kill()
    moored.start()
    assert moored.docker("inspect", "-f", view, "web") == before
    assert "volume is in use" in moored.docker_run("volume", "rm", "vol").stderr
    assert moored.docker_run("network", "rm", "own").returncode != 0
    assert "already in use" in moored.docker_run("create", "--name", "web", "busybox", "true").stderr
    moored.docker("rm", "-f", "web")
    moored.docker("volume", "rm", "vol")
    moored.docker("network", "rm", "own")


def test_killed_in_the_middle_of_starts_and_ends_nothing_is_left_over(moored: Moored) -> None:
    for round_ in range(4):
        clients = [
            moored.docker_popen("run", "--rm", "--name", f"c{round_}-{n}", "busybox", "sleep", "0.1") for n in range(5)
        ]
        time.sleep(0.1 + 0.08 * round_)  # an instant somewhere in the middle; any is as good as another
        moored.kill()
        moored.start()
        for client in clients:
            client.communicate(timeout=DEADLINE)
    wait_for("all containers to end", lambda: moored.docker("ps", "-q") == "")
    for name in moored.docker("ps", "-aq").split():
        moored.docker("rm", "-f", name)
    assert (
        moored.sandbox.run("sh", "-c", f"grep -c {moored.data_root}/mounts /proc/self/mounts || true").stdout == "0\n"
    )
    wait_for("shims to end", lambda: not list((moored.exec_root / "shim").iterdir()))
    links = moored.sandbox.run("ls", "/sys/class/net").stdout.split()
    assert [name for name in links if name.startswith("veth")] == []


def test_container_without_a_record_is_shown_and_can_be_stopped(moored: Moored) -> None:
    container = _run(moored, "lost", "busybox", "sleep", "10000")
    pid = _state(moored, "lost")["Pid"]
    moored.kill()
    with sqlite3.connect(moored.data_root / "moorage.db") as database:
        database.execute("UPDATE record SET value='{\"version\":1}' WHERE kind='container'")
    database.close()
    (moored.data_root / "moorage.db.records").unlink()
    moored.start()
    assert not _ended(moored, pid)
    assert container[:12] in moored.docker("ps", "--format", "{{.ID}} {{.Names}}")
    assert f"container {container} is unmanaged" in json.dumps(moored.api.get("/info").json["Warnings"])
    assert "is unmanaged" in moored.docker_run("exec", "lost", "true").stderr
    moored.docker("stop", "-t", "1", "lost")
    wait_for("its end", lambda: _ended(moored, pid))
    wait_for("the list to be empty", lambda: moored.docker("ps", "-aq") == "")


def test_sigterm_leaves_containers_running_with_live_restore(moored: Moored) -> None:
    _run(moored, "runs", "busybox", "sleep", "10000")
    before = _state(moored, "runs")
    assert moored.stop() == 0
    moored.start()
    assert _state(moored, "runs") == before
    moored.docker("rm", "-f", "runs")


def test_sigterm_stops_containers_without_live_restore_and_policies_start_them_again() -> None:
    with running_moored("--live-restore=false") as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        script = "trap 'echo bye; exit 6' TERM; while :; do sleep 0.02; done"
        _run(moored, "plain", "busybox", "sh", "-c", f"echo up; {script}")
        _run(moored, "always", "--restart", "always", "busybox", "sh", "-c", f"echo up; {script}")
        for name in ("plain", "always"):
            wait_for("the trap", lambda name=name: "up" in moored.docker("logs", name))  # type: ignore[misc]
        assert moored.stop() == 0
        moored.start()
        state = _state(moored, "plain")
        assert (state["Status"], state["ExitCode"]) == ("exited", 6)
        assert moored.docker("logs", "plain").endswith("bye")
        wait_for("the policy", lambda: _state(moored, "always")["Status"] == "running")
        moored.kill()
        moored.start()  # without live restore a daemon stops what its predecessor left running
        wait_for("the policy again", lambda: moored.docker("logs", "always").count("up") == 3)
        moored.docker("rm", "-f", "plain", "always")
