"""System operations with the real clients: what the CLI, docker-py and the specification expect of them."""

import json
import re
import signal
import socket
import threading
import time
from functools import partial

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, Sandbox, running_moored, wait_for
from tests.support.openapi import Api, UnixConnection


def test_ping_answers_get_and_head_with_all_headers(moored: Moored) -> None:
    for method in ("GET", "HEAD"):
        connection = UnixConnection(moored.socket)
        connection.request(method, "/_ping")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200
        assert body == (b"OK" if method == "GET" else b"")
        headers = answer.headers
        assert headers["Api-Version"] == "1.51"
        assert headers["Ostype"] == "linux"
        assert headers["Builder-Version"] == "2"
        assert headers["Swarm"] == "inactive"
        assert headers["Docker-Experimental"] == "false"
        assert headers["Cache-Control"] == "no-cache, no-store, must-revalidate"
        assert headers["Pragma"] == "no-cache"
        if method == "HEAD":
            assert headers["Content-Length"] == "0"


def test_version_and_info_fit_the_specification(moored: Moored) -> None:
    version = moored.api.get("/version").json
    assert version["ApiVersion"] == "1.51" and version["MinAPIVersion"] == "1.24" and version["Os"] == "linux"
    info = moored.api.get("/info").json
    assert info["ServerVersion"] == version["Version"]
    assert info["LiveRestoreEnabled"] is True
    assert info["DockerRootDir"] == str(moored.data_root)
    assert info["NCPU"] >= 1 and info["MemTotal"] > 0
    assert info["Swarm"]["LocalNodeState"] == "inactive"


def test_info_counts_what_there_is(fresh_moored: Moored) -> None:
    fresh_moored.docker("run", "-d", "--name", "up", "busybox", "sleep", "1000")
    fresh_moored.docker("create", "--name", "made", "busybox", "true")
    info = fresh_moored.api.get("/info").json
    assert (info["Containers"], info["ContainersRunning"], info["ContainersStopped"]) == (2, 1, 1)
    assert info["Images"] == 1
    first = info["ID"]
    fresh_moored.kill()
    fresh_moored.start()
    assert fresh_moored.api.get("/info").json["ID"] == first


def test_docker_info_and_version_print_without_an_error(moored: Moored) -> None:
    assert "Live Restore Enabled: true" in moored.docker("info")
    assert "Moorage Engine" in moored.docker("version")


@pytest.mark.parametrize("path", ["/nodes", "/services", "/tasks", "/secrets", "/configs", "/swarm", "/services/x"])
def test_swarm_operations_answer_as_on_a_node_without_swarm(moored: Moored, path: str) -> None:
    reply = moored.api.get(path)
    assert reply.status == 503
    assert reply.message.startswith("This node is not a swarm manager.")


def test_swarm_init_is_refused_because_of_live_restore(moored: Moored) -> None:
    done = moored.docker_run("swarm", "init")
    assert done.returncode != 0
    assert "--live-restore daemon configuration is incompatible with swarm mode" in done.stderr


def test_swarm_init_without_live_restore_says_that_there_is_no_swarm() -> None:
    with running_moored("--live-restore=false") as moored:
        done = moored.docker_run("swarm", "init")
        assert done.returncode != 0 and "Moorage has no swarm mode" in done.stderr


def test_plugins_are_an_empty_list_and_are_not_installed(moored: Moored) -> None:
    assert moored.api.get("/plugins").json == []
    assert (
        "Moorage has no managed plugins"
        in moored.docker_run("plugin", "install", "--grant-all-permissions", "x/y").stderr
    )


def test_checkpoints_are_refused_in_words_and_not_as_an_unknown_page(moored: Moored) -> None:
    answers = [
        moored.api.call(method, f"/containers/some{path}", body=body, check=False)
        for method, path, body in (
            ("GET", "/checkpoints", None), ("POST", "/checkpoints", {"CheckpointID": "c"}), ("DELETE", "/checkpoints/c", None),
        )
    ]  # fmt: skip
    assert [answer.status for answer in answers] == [501, 501, 501]
    assert all("makes no checkpoints" in answer.json["message"] for answer in answers)


def test_events_replay_the_past_and_follow_the_present(moored: Moored) -> None:
    begin = time.time() - 1
    moored.docker("run", "--name", "told", "busybox", "true")
    past = moored.docker("events", "--since", str(begin), "--until", str(time.time() + 1), "--format", "{{json .}}")
    actions = [json.loads(line)["Action"] for line in past.splitlines() if '"told"' in line]
    assert actions == ["create", "attach", "start", "die"]
    seen: list[str] = []
    ready = threading.Event()

    def follow() -> None:
        query = {"filters": {"container": ["told"], "event": ["destroy"]}, "since": str(int(begin))}
        ready.set()
        for event in moored.api.lines("GET", "/events", query=query):
            seen.append(event["Action"])
            return

    thread = threading.Thread(target=follow)
    thread.start()
    ready.wait()
    moored.docker("rm", "told")
    thread.join(60)
    assert seen == ["destroy"]


def test_event_filters_are_checked(moored: Moored) -> None:
    reply = moored.api.get("/events", filters={"nope": ["x"]}, until="1")
    assert (reply.status, reply.message) == (400, "invalid filter 'nope'")
    reply = moored.api.get("/events", since="20", until="10")
    assert reply.status == 400


def test_disk_usage_adds_up(moored: Moored) -> None:
    moored.docker("volume", "create", "counted")
    usage = moored.api.get("/system/df").json
    assert usage["LayersSize"] > 0 and usage["Images"][0]["Size"] > 0
    assert any(volume["Name"] == "counted" for volume in usage["Volumes"])
    assert "Images" in moored.docker("system", "df")
    moored.docker("volume", "rm", "counted")


def test_unknown_types_of_disk_usage_are_refused(moored: Moored) -> None:
    assert moored.api.call("GET", "/system/df", query={"type": "nonsense"}, check=False).status == 400


def test_a_second_daemon_with_the_same_roots_is_refused(moored: Moored) -> None:
    done = moored.sandbox.run(*moored.argv(), check=False)
    assert done.returncode == 1
    assert re.search(r"process with PID \d+ is still running", done.stderr)
    assert moored.answers()


def test_an_unknown_directive_is_refused_in_dockerd_s_words(moored: Moored) -> None:
    path = moored.sandbox.root / "bad.json"
    path.write_text('{"bogus": 1, "nonsense": true}')
    done = moored.sandbox.run(*moored.argv()[:3], "--validate", "--config-file", str(path), check=False)
    assert done.returncode == 1
    assert "the following directives don't match any configuration option: bogus, nonsense" in done.stderr
    path.write_text('{"debug": true}')
    done = moored.sandbox.run(*moored.argv()[:3], "--validate", "--config-file", str(path))
    assert "configuration OK" in done.stderr


def test_sighup_puts_settings_in_force_and_says_so() -> None:
    with running_moored() as moored:
        moored.config_file.write_text('{"labels": ["tier=front"], "debug": true}')
        begin = time.time() - 1
        moored.signal(signal.SIGHUP)
        wait_for("the new labels", lambda: moored.api.get("/info").json["Labels"] == ["tier=front"])
        assert moored.api.get("/info").json["Debug"] is True
        events = moored.docker(
            "events", "--since", str(begin), "--until", str(time.time()), "--format", "{{.Type}} {{.Action}}"
        )
        assert "daemon reload" in events


def test_a_broken_file_changes_nothing_on_sighup() -> None:
    with running_moored("--label=a=b") as moored:
        moored.config_file.write_text('{"debug": true, "bogus": 1}')
        moored.signal(signal.SIGHUP)
        wait_for("the refusal in the log", lambda: "Failed to reload the configuration" in moored.log())
        info = moored.api.get("/info").json
        assert info["Debug"] is False and info["Labels"] == ["a=b"]


def test_sigterm_with_live_restore_leaves_containers_and_stops_quickly(fresh_moored: Moored) -> None:
    fresh_moored.docker("run", "-d", "--name", "stays", "busybox", "sleep", "1000")
    pid = fresh_moored.docker("inspect", "-f", "{{.State.Pid}}", "stays")
    events = fresh_moored.docker_popen("events")
    assert fresh_moored.stop() == 0
    events.communicate(timeout=60)
    assert fresh_moored.sandbox.run("cat", f"/proc/{pid}/comm").stdout.strip() == "sleep"
    fresh_moored.start()
    assert fresh_moored.docker("inspect", "-f", "{{.State.Pid}}", "stays") == pid


def test_sigterm_without_live_restore_stops_containers() -> None:
    from tests.support.images import busybox_archive

    with running_moored("--live-restore=false") as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        moored.docker(
            "run", "-d", "--name", "ends", "busybox", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"
        )
        pid = moored.docker("inspect", "-f", "{{.State.Pid}}", "ends")
        assert moored.stop() == 0
        assert moored.sandbox.run("test", "-d", f"/proc/{pid}", check=False).returncode == 1
        moored.start()
        assert moored.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends") == "exited 7"


def test_docker_py_speaks_to_it(moored: Moored) -> None:
    with moored.client() as client:
        assert client.ping() is True
        assert client.version()["ApiVersion"] == "1.51"
        assert client.info()["OSType"] == "linux"


def test_disk_usage_of_the_build_cache_alone_counts_no_layers(moored: Moored) -> None:
    usage = moored.api.call("GET", "/system/df", query={"type": "build-cache"}, check=False).json
    assert usage["LayersSize"] == 0 and "Images" not in usage


def test_info_tells_old_clients_what_they_expect(moored: Moored) -> None:
    oldest = Api(moored.socket, version="1.24").call("GET", "/info", check=False).json
    assert oldest["ExecutionDriver"] == "<not supported>"
    assert "seccomp" in oldest["SecurityOptions"]
    old = Api(moored.socket, version="1.45").call("GET", "/info", check=False).json
    assert old["RuncCommit"]["Expected"] == old["RuncCommit"]["ID"] != ""
    assert "FirewallBackend" not in old and "ExecutionDriver" not in old
    assert "Expected" not in moored.api.get("/info").json["RuncCommit"]


class _Renamed(Moored):
    """The daemon as it is installed under dockerd's name."""

    def argv(self) -> list[str]:
        script = self.sandbox.root / "dockerd"
        script.write_text("import sys\nfrom moorage_guest.daemon import main\nsys.exit(main())\n")
        interpreter, _dash_m, _module, *arguments = super().argv()
        place = arguments.index("--config-file")
        del arguments[place : place + 2]
        return [interpreter, str(script), *arguments]


def _reloaded(moored: Moored) -> bool:
    return "reload" in moored.log().lower()


def test_under_dockerds_name_live_restore_is_off_until_asked_for() -> None:
    with Sandbox() as sandbox:
        # Its configuration is in dockerd's place: this one is not looked at.
        (sandbox.root / "data").mkdir(exist_ok=True)
        (sandbox.root / "data" / "daemon.json").write_text('{"no-such-option": 1}')
        for arguments, live_restore in (([], False), (["--live-restore"], True)):
            moored = _Renamed(sandbox, arguments).start()
            assert moored.api.get("/info").json["LiveRestoreEnabled"] is live_restore
            moored.signal(signal.SIGHUP)
            wait_for("the reload", partial(_reloaded, moored))
            assert moored.api.get("/info").json["LiveRestoreEnabled"] is live_restore
            assert "level=info" in moored.log()
            assert moored.stop() == 0


def test_events_until_a_moment_are_those_that_were(moored: Moored) -> None:
    moored.docker("run", "--name", "past", "busybox", "true")
    until = f"{time.time() + 0.1:.6f}"
    said = moored.docker("events", "--filter", "container=past", "--until", until, "--format", "{{.Action}}")
    assert said.splitlines() == ["create", "attach", "start", "die"]
    moored.docker("rm", "past")


def test_who_sees_the_end_of_the_output_can_ask_how_it_ended(moored: Moored) -> None:
    body = {"Image": "busybox", "Cmd": ["sh", "-c", "echo out; exit 7"], "AttachStdout": True}
    for _ in range(15):
        container = moored.api.post("/containers/create", body).json["Id"]
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(moored.socket))
            path = f"/containers/{container}/attach?stream=1&stdout=1"
            connection.sendall(
                f"POST {path} HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 101")
            moored.api.post(f"/containers/{container}/start")
            while connection.recv(4096):
                pass
        state = moored.api.get(f"/containers/{container}/json").json["State"]
        assert (state["Running"], state["ExitCode"]) == (False, 7)
        moored.api.delete(f"/containers/{container}")


def test_the_engines_id_and_overridden_proxies_are_where_people_look() -> None:
    with Sandbox() as sandbox:
        moored = Moored(sandbox, ["--http-proxy", "http://me:secret@proxy.example"])
        moored.environment["HTTP_PROXY"] = "http://you:secret@other.example"
        file = moored.data_root / "engine-id"
        assert moored.start().api.get("/info").json["ID"] == file.read_text()
        moored.signal(signal.SIGHUP)
        wait_for("the reload", partial(_reloaded, moored))
        assert "overriding existing proxy variable with value from configuration: HTTP_PROXY was" in moored.log()
        assert "secret" not in moored.log() and "http://xxxxx:xxxxx@proxy.example" in moored.log()
        assert moored.stop() == 0
        file.write_text("this-one\n")
        assert moored.start().api.get("/info").json["ID"] == "this-one"
        assert moored.stop() == 0


def test_with_live_restore_off_nothing_is_shown_running_that_a_killed_daemon_left() -> None:
    with running_moored("--live-restore=false") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        for number in range(3):
            daemon.docker("run", "-d", "--name", f"left{number}", "busybox", "sleep", "1000")
        daemon.kill()
        daemon.start()
        for number in range(3):
            assert daemon.api.get(f"/containers/left{number}/json").json["State"]["Status"] == "exited"
        daemon.docker("run", "-d", "--name", "again", "--restart", "always", "busybox", "sleep", "1000")
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.docker("ps", "--format", "{{.Names}}") == "again"
