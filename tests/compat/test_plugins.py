"""Plugins that somebody else runs, as dockerd's legacy plugins: found by name, asked, outlived, and never waited for in vain."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox, wait_for
from tests.support.plugins import AuthorizationPlugin, VolumePlugin, body_of

pytestmark = pytest.mark.root


@pytest.fixture
def daemon() -> Iterator[Moored]:
    """A daemon of the test's own, with the busybox image."""
    with Sandbox() as sandbox:
        moored = Moored(sandbox)
        moored.start()
        try:
            moored.docker("load", "-i", str(busybox_archive()))
            yield moored
        finally:
            if moored.process is not None:
                moored.kill()
            print(moored.log())


@pytest.fixture
def driver(daemon: Moored) -> Iterator[VolumePlugin]:
    """A volume driver named "shelf", whose socket lies in the daemon's folder for plugins."""
    plugin = VolumePlugin(daemon.exec_root / "plugins/shelf.sock", daemon.sandbox.root / "shelf")
    with plugin:
        yield plugin


def test_a_volume_of_a_plugin_is_made_mounted_shown_and_removed(daemon: Moored, driver: VolumePlugin) -> None:
    daemon.docker("volume", "create", "-d", "shelf", "-o", "colour=red", "books")
    daemon.docker("run", "--rm", "-v", "books:/data", "busybox", "sh", "-c", "echo kept > /data/file")
    daemon.docker("run", "--rm", "-v", "/data", "--volume-driver", "shelf", "busybox", "true")
    assert (daemon.sandbox.root / "shelf/books/file").read_text() == "kept\n"
    shown = daemon.api.get("/volumes/books").json
    assert (shown["Driver"], shown["Scope"], shown["Status"]) == ("shelf", "global", {"hello": {"is": "world"}})
    assert shown["Options"] == {"colour": "red"} and shown["Mountpoint"] == str(daemon.sandbox.root / "shelf/books")
    assert daemon.docker("volume", "ls", "--format", "{{.Driver}} {{.Name}}") == "shelf books"
    assert "shelf" in daemon.api.get("/info").json["Plugins"]["Volume"]
    daemon.docker("volume", "rm", "books")
    assert not driver.volumes and "no such volume" in daemon.docker_run("volume", "inspect", "books").stderr
    assert [len(driver.called(each)) for each in ("Create", "Mount", "Unmount", "Remove")] == [2, 2, 2, 2]
    assert [method for method, _ in driver.calls].count("Plugin.Activate") == 1
    assert {each["ID"] for each in driver.called("Mount")} == {each["ID"] for each in driver.called("Unmount")}


def test_a_volume_that_only_the_plugin_knew_is_used_and_not_taken_for_a_new_one(
    daemon: Moored, driver: VolumePlugin
) -> None:
    driver.volumes["old"] = {}
    done = daemon.docker_run("create", "-v", "old:/data", "--mount", "type=volume,src=o,dst=/x", "busybox")
    assert "volume name is too short" in done.stderr and "old" in driver.volumes
    daemon.docker("create", "--name", "user", "-v", "old:/data", "busybox", "true")
    mount = json.loads(daemon.docker("inspect", "-f", "{{json .Mounts}}", "user"))[0]
    assert (mount["Name"], mount["Driver"]) == ("old", "shelf") and "old" in driver.volumes
    conflict = daemon.docker_run("volume", "create", "-d", "local", "old").stderr
    assert "create old: driver 'shelf' already has volume 'old': volume name must be unique" in conflict
    driver.volumes.clear()  # behind the engine's back
    assert "you may need to remove containers referencing" in daemon.docker_run("volume", "create", "old").stderr
    daemon.docker("rm", "user")
    daemon.docker("volume", "create", "-d", "local", "old")
    assert daemon.docker("volume", "inspect", "-f", "{{.Driver}}", "old") == "local"


def test_a_plugin_that_does_not_mount_fails_the_start_and_is_not_told_to_unmount(
    daemon: Moored, driver: VolumePlugin
) -> None:
    driver.instead["VolumeDriver.Mount"] = lambda request: {"Err": "the shelf is full"}
    done = daemon.docker_run("run", "--name", "full", "-v", "/data", "--volume-driver", "shelf", "busybox", "true")
    assert "VolumeDriver.Mount: the shelf is full" in done.stderr and done.returncode == 125
    assert not driver.called("Unmount") and daemon.docker("rm", "-v", "full") == "full" and not driver.volumes


def test_volumes_in_use_outlive_the_daemon_and_each_use_ends_once(daemon: Moored, driver: VolumePlugin) -> None:
    for name in ("stays", "ends"):
        daemon.docker(
            "run", "-d", "--name", name, "-v", f"{name}:/data", "--volume-driver", "shelf", "busybox", "sleep", "1000"
        )
    ids = {each["Name"]: each["ID"] for each in driver.called("Mount")}
    pid = daemon.docker("inspect", "-f", "{{.State.Pid}}", "ends")
    daemon.kill()
    daemon.sandbox.run("kill", "-9", pid)
    wait_for(
        "its end", lambda: not daemon.sandbox.run("ps", "-p", pid, "-o", "stat=", check=False).stdout.strip(" Z\n")
    )
    daemon.start()
    wait_for("the use to end", lambda: [each["ID"] for each in driver.called("Unmount")] == [ids["ends"]])
    assert daemon.docker("exec", "stays", "ls", "-d", "/data") == "/data"
    daemon.docker("rm", "-f", "stays", "ends")
    assert [each["ID"] for each in driver.called("Unmount")] == [ids["ends"], ids["stays"]]
    daemon.docker("volume", "rm", "stays", "ends")
    assert not driver.volumes


def test_a_dead_plugin_is_told_of_and_its_volumes_can_be_forgotten(daemon: Moored) -> None:
    socket = daemon.exec_root / "plugins/shelf.sock"
    with VolumePlugin(socket, daemon.sandbox.root / "shelf"):
        daemon.docker("volume", "create", "-d", "shelf", "books")
    socket.parent.rmdir()  # with no folder for plugins nobody waits for one
    assert daemon.docker("volume", "ls", "-q") == "books"
    assert 'error looking up volume plugin gone: plugin "gone" not found' in (
        daemon.docker_run("volume", "create", "-d", "gone").stderr
    )
    daemon.kill()
    daemon.start()
    assert 'plugin "shelf" not found' in daemon.docker_run("volume", "rm", "books").stderr
    daemon.docker("volume", "rm", "-f", "books")
    assert daemon.docker("volume", "ls", "-q") == ""


def test_a_plugin_that_hangs_holds_up_nobody_else(daemon: Moored, driver: VolumePlugin) -> None:
    let_go = threading.Event()
    driver.volumes["slow"] = {}

    def hang(request: dict[str, object]) -> None:
        let_go.wait(60)

    driver.instead["VolumeDriver.Mount"] = hang
    waiting = daemon.docker_popen("run", "--name", "waiting", "-v", "slow:/data", "busybox", "true")
    try:
        wait_for("the call", lambda: driver.called("Mount"))
        daemon.docker("run", "--rm", "-v", "own:/data", "busybox", "true")
        assert daemon.docker("ps", "-aq", "--filter", "name=waiting")
        driver.instead.clear()
        daemon.docker("run", "--rm", "-v", "other:/data", "--volume-driver", "shelf", "busybox", "true")
    finally:
        let_go.set()
        waiting.communicate(timeout=60)
    assert waiting.returncode == 125  # what came in the end was no folder


def test_a_plugin_that_does_not_even_shake_hands_is_passed_over(daemon: Moored, driver: VolumePlugin) -> None:
    let_go = threading.Event()

    def hang(request: dict[str, object]) -> None:
        let_go.wait(60)

    driver.instead["Plugin.Activate"] = hang
    try:
        daemon.docker(
            "run", "--rm", "-v", "one:/data", "busybox", "true"
        )  # the plugin might have a volume of that name
        assert [method for method, _ in driver.calls] == ["Plugin.Activate"]
        daemon.docker("run", "--rm", "-v", "two:/data", "-v", "/anonymous", "busybox", "true")
        assert daemon.docker("volume", "ls", "-q").split() == ["one", "two"]
        assert [method for method, _ in driver.calls] == ["Plugin.Activate"]
    finally:
        let_go.set()


def test_a_plugin_that_comes_late_is_waited_for(daemon: Moored) -> None:
    folder = daemon.data_root / "plugins"
    folder.mkdir()
    waiting = daemon.docker_popen("volume", "create", "-d", "late", "books")
    wait_for("a first look", lambda: "Unable to locate plugin: late" in daemon.log())
    with VolumePlugin(daemon.sandbox.root / "elsewhere.sock", daemon.sandbox.root / "late"):
        (folder / "late.spec").write_text(f"unix://{daemon.sandbox.root}/elsewhere.sock\n")
        out, error = waiting.communicate(timeout=60)
        assert (out, error) == (b"books\n", b"")


@pytest.fixture
def guard(daemon: Moored) -> Iterator[AuthorizationPlugin]:
    """A plugin named "guard" that the daemon asks for leave, since a reload."""
    with AuthorizationPlugin(daemon.exec_root / "plugins/guard.sock") as plugin:
        daemon.config_file.write_text('{"authorization-plugins": ["guard", "guard"]}')
        daemon.signal(signal.SIGHUP)
        wait_for("the plugin to be asked", lambda: daemon.answers() and plugin.called("AuthZReq"))
        plugin.calls.clear()
        assert isinstance(plugin, AuthorizationPlugin)
        yield plugin


def answer_to(daemon: Moored, first_line: bytes, body: bytes) -> bytes:
    """Return how the answer to a request begins that says nothing of what its body is."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(daemon.socket))
        client.sendall(b"%s\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (first_line, len(body), body))
        return client.recv(4096)


def test_nothing_is_done_or_answered_without_leave(daemon: Moored, guard: AuthorizationPlugin) -> None:
    daemon.docker("run", "--rm", "--name", "mine", "-e", "A=b", "busybox", "true")
    (asked,) = [each for each in guard.called("AuthZReq") if "/containers/create" in each["RequestUri"]]
    assert asked["RequestMethod"] == "POST" and asked["RequestUri"].endswith("?name=mine")
    assert body_of(asked)["Env"] == ["A=b"] and "User" not in asked
    answered = next(each for each in guard.called("AuthZRes") if "/containers/create" in each["RequestUri"])
    assert answered["ResponseStatusCode"] == 201 and "Id" in body_of(answered, "ResponseBody")
    assert daemon.api.get("/info").json["Plugins"]["Authorization"] == ["guard"]
    guard.refuse = lambda method, asked: "not you" if method == "AuthZReq" and asked["RequestMethod"] == "POST" else ""
    done = daemon.docker_run("volume", "create", "none")
    assert done.stderr.strip() == "Error response from daemon: authorization denied by plugin guard: not you"
    assert answer_to(daemon, b"POST /volumes/create HTTP/1.1", b"").startswith(b"HTTP/1.1 403 Forbidden")
    assert daemon.docker("volume", "ls", "-q") == ""
    guard.refuse = lambda method, asked: "nor that" if method == "AuthZRes" and "/json" in asked["RequestUri"] else ""
    assert "denied by plugin guard: nor that" in daemon.docker_run("ps").stderr
    guard.instead["AuthZPlugin.AuthZReq"] = lambda asked: {"Err": "no idea"}
    done = daemon.docker_run("volume", "ls")
    assert "plugin guard failed with error: AuthZPlugin.AuthZReq: no idea" in done.stderr
    del guard.instead["AuthZPlugin.AuthZReq"]
    guard.refuse = lambda method, asked: ""
    daemon.docker_run("login", "-u", "u", "-p", "secret", "registry.invalid")
    assert all(body_of(each) is None for each in guard.called("AuthZReq") if "/auth" in each["RequestUri"])


def test_no_body_is_read_that_a_plugin_was_not_shown(daemon: Moored, guard: AuthorizationPlugin) -> None:
    body = b'{"Name":"smuggled"}'
    assert answer_to(daemon, b"POST /volumes/create HTTP/1.1", body).startswith(b"HTTP/1.1 400")
    assert daemon.docker("volume", "ls", "-q") == ""


def test_a_daemon_that_cannot_ask_for_leave_does_not_start(daemon: Moored, guard: AuthorizationPlugin) -> None:
    daemon.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    for command in (("run", "--rm", "-i", "busybox", "cat"), ("exec", "-i", "box", "cat")):
        streamed = daemon.docker_popen(*command, stdin=subprocess.PIPE)
        assert streamed.communicate(b"through\n", timeout=60)[0] == b"through\n"
    daemon.docker("rm", "-f", "box")
    daemon.stop()
    daemon.config_file.write_text('{"authorization-plugins": ["nobody"]}')
    (daemon.exec_root / "plugins/guard.sock").rename(daemon.sandbox.root / "guard.sock")
    (daemon.exec_root / "plugins").rmdir()
    try:
        assert daemon.spawn().wait(60) == 1
        daemon.process = None
        assert 'error validating authorization plugin nobody: plugin "nobody" not found' in daemon.log()
    finally:
        (daemon.exec_root / "plugins").mkdir(parents=True)
        (daemon.sandbox.root / "guard.sock").rename(daemon.exec_root / "plugins/guard.sock")
