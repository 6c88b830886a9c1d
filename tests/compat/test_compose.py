"""Debian's Compose v2 plugin: an application of several services from `up` to `down -v`, also with moored killed on the way."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.support.dockerd import tools_root
from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored, wait_for

#: Seconds that one command of Compose may take on a slow, busy machine.
PATIENCE = 120.0

#: The database is healthy once somebody has put `go` into its volume; the shop needs it so, and workers only need it started.
APPLICATION = {
    "name": "shop",
    "services": {
        "db": {
            "image": "busybox",
            "command": ["sh", "-c", "echo waiting; until test -e /data/go; do sleep 0.2; done; echo open; sleep 1000"],
            "healthcheck": {"test": ["CMD", "test", "-e", "/data/go"], "interval": "300ms", "retries": 1000},
            "volumes": ["data:/data"],
            "networks": {"back": {"aliases": ["database"]}},
            "stop_grace_period": "0s",
        },
        "web": {
            "image": "busybox",
            "command": ["sh", "-c", "test -e /data/go && echo the database was ready && httpd -f -p 8080 -h /www"],
            "depends_on": {"db": {"condition": "service_healthy"}},
            "environment": {"GREETING": "${GREETING:-hello}"},
            "volumes": ["data:/data:ro", "./www:/www:ro"],
            "ports": ["18081:8080"],
            "networks": ["back", "front"],
            "stop_grace_period": "0s",
        },
        "worker": {
            "image": "busybox",
            "command": ["sh", "-c", "echo working; sleep 1000"],
            "depends_on": ["db"],
            "networks": ["back"],
            "stop_grace_period": "0s",
        },
        "seed": {
            "image": "busybox",
            "profiles": ["tools"],
            "command": ["sh", "-c", "echo 1 > /data/go && echo seeded"],
            "volumes": ["data:/data"],
            "network_mode": "none",
        },
    },
    "networks": {"front": {}, "back": {"internal": True, "driver_opts": {"com.docker.network.bridge.name": "br-shop"}}},
    "volumes": {"data": {"labels": {"kept": "yes"}}},
}


class Compose:
    """The plugin in a project's folder, speaking to one daemon."""

    def __init__(self, moored: Moored, folder: Path) -> None:
        self.moored = moored
        self.folder = folder
        (folder / "www").mkdir(exist_ok=True)
        (folder / "www" / "index.html").write_text("served\n")
        (folder / "compose.yaml").write_text(json.dumps(APPLICATION))
        self._argv = [str(tools_root() / "usr/libexec/docker/cli-plugins/docker-compose"), "--progress", "plain"]

    def start(self, *argv: str, output: int | IO[str] = subprocess.PIPE) -> "subprocess.Popen[str]":
        """Start a command; the caller ends it."""
        return subprocess.Popen(
            [*self._argv, *argv], cwd=self.folder, env=dict(self.moored.docker_environment()), text=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip

    def end(self, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
        """Wait for a command's end and return status, output and errors."""
        out, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, out, errors

    def __call__(self, *argv: str) -> str:
        """Run a command that has to succeed and return what it printed."""
        status, out, errors = self.end(self.start(*argv))
        assert status == 0, f"compose {' '.join(argv)} ended with {status}: {errors}{out}\n{self.moored.log()}"
        return out

    def states(self, *argv: str) -> dict[str, str]:
        """Return the state of each container, by name."""
        lines = self("ps", "-a", "--format", "json", *argv).splitlines()
        return {each["Name"]: each["State"] for each in map(json.loads, lines)}

    def fetch(self) -> str:
        """Return what the published port serves on the host, "" when nothing does."""
        url = "http://127.0.0.1:18081/"
        return self.moored.sandbox.run("busybox", "wget", "-q", "-O", "-", url, check=False).stdout


@pytest.fixture(params=[False, True], ids=["alone", "supervised"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Moored]:
    with running_moored(supervised=request.param) as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        yield moored


def left_of(moored: Moored) -> list[str]:
    """Return what of the project is still there."""
    return [
        line
        for argv in (("ps", "-a"), ("network", "ls"), ("volume", "ls"))
        for line in moored.docker(*argv, "--format", "{{.Labels}}").splitlines()
        if "com.docker.compose.project" in line
    ]


def test_an_application_goes_up_scales_and_leaves_nothing(moored: Moored, tmp_path: Path) -> None:
    compose = Compose(moored, tmp_path)
    up = compose.start("up", "-d")
    try:
        wait_for("the database to run", lambda: "shop-db-1" in moored.docker("ps", "--format", "{{.Names}}"))
        wait_for("the worker to run", lambda: "shop-worker-1" in moored.docker("ps", "--format", "{{.Names}}"))
        assert "shop-web-1" not in moored.docker("ps", "--format", "{{.Names}}"), "up did not wait for health"
        assert compose("run", "--rm", "seed") == "seeded\n"
        status, out, errors = compose.end(up)
        assert status == 0, errors + out
    finally:
        up.kill()
        up.communicate()

    assert compose.states() == {f"shop-{name}-1": "running" for name in ("db", "web", "worker")}
    assert "(healthy)" in moored.docker("ps", "--filter", "name=shop-db-1", "--format", "{{.Status}}")
    assert wait_for("the web server", compose.fetch) == "served\n"
    assert compose("port", "web", "8080") == "0.0.0.0:18081\n"
    assert "web-1  | the database was ready" in compose("logs", "web")
    assert compose("exec", "-T", "web", "sh", "-c", "echo $GREETING; ls /data") == "hello\ngo\n"
    assert compose("exec", "-T", "--index", "1", "worker", "nslookup", "-type=a", "database").count("Address") == 2
    worker = json.loads(moored.docker("inspect", "shop-worker-1"))[0]
    assert set(worker["NetworkSettings"]["Networks"]) == {"shop_back"}
    assert json.loads(moored.docker("network", "inspect", "shop_back"))[0]["Internal"]

    before = moored.docker("inspect", "-f", "{{.Id}}", "shop-db-1", "shop-web-1", "shop-worker-1").splitlines()
    compose("up", "-d", "--scale", "worker=3")
    assert sorted(compose.states("worker")) == ["shop-worker-1", "shop-worker-2", "shop-worker-3"]
    after = moored.docker("inspect", "-f", "{{.Id}}", "shop-db-1", "shop-web-1", "shop-worker-1").splitlines()
    assert after == before, "what did not change was made anew"
    assert len(re.findall(r"worker-\d +\| working$", compose("logs", "worker"), re.MULTILINE)) == 3
    assert compose("top", "worker").count("sleep 1000") == 3

    compose("--profile", "tools", "up", "-d", "--scale", "worker=1")
    assert compose.states()["shop-seed-1"] == "exited" and "shop-worker-3" not in compose.states()
    compose("restart", "-t", "0", "web")
    assert wait_for("the web server", compose.fetch) == "served\n"
    compose("cp", "web:/www/index.html", str(tmp_path / "copied"))
    assert (tmp_path / "copied").read_text() == "served\n"
    compose("pause", "worker")
    assert compose.states("worker") == {"shop-worker-1": "paused"}
    compose("unpause", "worker")
    compose("stop")
    assert set(compose.states().values()) == {"exited"}
    compose("start", "db")
    compose("--profile", "tools", "down", "-v", "--remove-orphans")
    assert left_of(moored) == []
    assert moored.sandbox.run("ip", "link", "show", "br-shop", check=False).returncode != 0


def test_up_in_the_foreground_shows_output_and_stops_what_it_started_at_sigint(moored: Moored, tmp_path: Path) -> None:
    compose = Compose(moored, tmp_path)
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        up = compose.start("up", "--no-color", "worker", output=file)
    try:
        wait_for("the worker's output", lambda: "worker-1  | working" in shown.read_text())
        up.send_signal(signal.SIGINT)
        status = up.wait(PATIENCE)
    finally:
        up.kill()
        up.communicate()
    assert status in (0, 130), shown.read_text()
    assert compose.states("worker") == {"shop-worker-1": "exited"}
    compose("down", "-v")
    assert left_of(moored) == []


def test_an_application_outlives_the_daemon_and_up_goes_on_where_it_was(daemon: Moored, tmp_path: Path) -> None:
    compose = Compose(daemon, tmp_path)
    up = compose.start("up", "-d")
    try:
        wait_for("the worker to run", lambda: "shop-worker-1" in daemon.docker("ps", "--format", "{{.Names}}"))
        pid = daemon.daemon_pid()
        daemon.kill()
        if not daemon.supervised:
            daemon.start()
        wait_for("a daemon", lambda: daemon.pid_file.exists() and daemon.pid_file.read_text() not in ("", str(pid)))
        wait_for("its answer", daemon.answers)
        daemon.docker("run", "--rm", "-v", "shop_data:/data", "busybox", "touch", "/data/go")
        compose.end(up)  # it lost its daemon, and may say so or not
    finally:
        up.kill()
        up.communicate()
    before = daemon.docker("inspect", "-f", "{{.Id}}", "shop-db-1", "shop-worker-1").splitlines()
    compose("up", "-d")
    assert daemon.docker("inspect", "-f", "{{.Id}}", "shop-db-1", "shop-worker-1").splitlines() == before
    assert compose.states() == {f"shop-{name}-1": "running" for name in ("db", "web", "worker")}
    assert wait_for("the web server", compose.fetch) == "served\n"
    assert compose("logs", "db").count("db-1  | open") == 1
    compose("down", "-v")
    assert left_of(daemon) == []
