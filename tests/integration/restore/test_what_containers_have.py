"""What containers were given goes on to be true for a daemon that comes back after SIGKILL."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

pytestmark = pytest.mark.root

SLEEP = ("busybox", "sleep", "10000")


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with running_moored("--live-restore") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _come_back(moored: Moored) -> None:
    moored.kill()
    moored.start()


def _end_while_away(moored: Moored, name: str) -> str:
    """Kill the daemon and a container's process, bring the daemon back, and return the pid of that process."""
    pid = moored.docker("inspect", "-f", "{{.State.Pid}}", name)
    assert int(pid) > 1, f"{name} does not run"
    moored.kill()
    moored.sandbox.run("kill", "-9", pid)
    moored.start()
    return pid


def test_terminal_sizes_are_kept(moored: Moored) -> None:
    script = "until [ -e /go ]; do sleep 0.02; done; stty size"
    moored.docker("run", "-dt", "--network", "none", "--name", "term", "busybox", "sh", "-c", script)
    moored.api.call("POST", "/containers/term/resize", query={"h": 33, "w": 77})
    _come_back(moored)
    moored.docker("exec", "term", "touch", "/go", check=False)
    assert moored.docker("wait", "term") == "0"
    assert moored.docker("logs", "term").strip() == "33 77"
    moored.docker("rm", "term")


def test_standard_input_stays_open_and_is_reached_by_the_next_attach(moored: Moored) -> None:
    moored.docker("run", "-di", "--network", "none", "--name", "reads", "busybox", "sh", "-c", "read x; echo got $x")
    _come_back(moored)
    assert moored.docker("inspect", "-f", "{{.State.Running}}", "reads") == "true"
    assert moored.docker("attach", "reads", input="word\n") == "got word"
    moored.docker("rm", "-f", "reads")


def test_stop_timeout_and_stop_signal_are_kept(moored: Moored) -> None:
    script = "trap 'echo heard' USR1; trap '' TERM; echo up; while :; do sleep 0.02; done"
    moored.docker(
        "run", "-d", "--network", "none", "--name", "slow", "--stop-timeout", "1", "--stop-signal", "USR1", "busybox",
        "sh", "-c", script,
    )  # fmt: skip
    wait_for("its first word", lambda: moored.docker("logs", "slow") == "up")
    _come_back(moored)
    begin = time.monotonic()
    moored.docker("stop", "slow")
    assert time.monotonic() - begin < 10  # the default
    assert "heard" in moored.docker("logs", "slow")
    assert moored.docker("inspect", "-f", "{{.State.ExitCode}}", "slow") == "137"
    moored.docker("rm", "slow")


def test_joined_namespaces_are_kept_and_can_be_joined_by_more(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "host", "--ipc", "shareable", "--network", "none", *SLEEP)
    joined = ("--network", "container:host", "--pid", "container:host", "--ipc", "container:host")
    moored.docker("run", "-d", "--name", "guest", *joined, *SLEEP)
    _come_back(moored)
    moored.docker("run", "-d", "--name", "later", *joined, *SLEEP)

    def namespaces(name: str) -> list[str]:
        pid = moored.docker("inspect", "-f", "{{.State.Pid}}", name)
        return [moored.sandbox.run("readlink", f"/proc/{pid}/ns/{kind}").stdout for kind in ("net", "pid", "ipc")]

    assert namespaces("host") == namespaces("guest") == namespaces("later")
    moored.docker("restart", "-t", "0", "guest")
    assert namespaces("guest") == namespaces("host")
    moored.docker("rm", "-f", "later", "guest", "host")


def test_links_names_and_aliases_are_kept(moored: Moored) -> None:
    moored.docker("network", "create", "talk")
    moored.docker("run", "-d", "--name", "db", *SLEEP)
    moored.docker("run", "-d", "--name", "app", "--link", "db:data", *SLEEP)
    moored.docker("run", "-d", "--name", "one", "--network", "talk", "--network-alias", "first", *SLEEP)
    moored.docker("run", "-d", "--name", "two", "--network", "talk", *SLEEP)
    _come_back(moored)
    moored.docker("exec", "app", "ping", "-c", "1", "-W", "5", "data")
    for name in ("one", "first"):
        moored.docker("exec", "two", "ping", "-c", "1", "-W", "5", name)
    address = moored.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db")
    moored.docker("run", "--rm", "--link", "db", "busybox", "ping", "-c", "1", "-W", "5", "db")
    assert f"{address}\tdata" in moored.docker("exec", "app", "cat", "/etc/hosts")
    moored.docker("rename", "one", "uno")
    moored.docker("exec", "two", "ping", "-c", "1", "-W", "5", "uno")
    moored.docker("rm", "-f", "app", "db", "uno", "two")
    moored.docker("network", "rm", "talk")


def test_anonymous_volumes_go_with_their_container(moored: Moored) -> None:
    moored.docker("run", "-d", "--network", "none", "--name", "keeps", "-v", "/data", *SLEEP)
    moored.docker("exec", "keeps", "sh", "-c", "echo word > /data/file")
    (volume,) = moored.docker("volume", "ls", "-q").split()
    _come_back(moored)
    assert moored.docker("exec", "keeps", "cat", "/data/file") == "word"
    assert "in use" in moored.docker_run("volume", "rm", volume).stderr
    moored.docker("rm", "-f", "-v", "keeps")
    assert moored.docker("volume", "ls", "-q") == ""


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure:5"])
def test_a_policy_restarts_what_died_while_away_and_goes_on_with_its_back_off(moored: Moored, policy: str) -> None:
    moored.docker(
        "run", "-d", "--network", "none", "--name", "fails", "--restart", policy, "busybox", "sh", "-c",
        "echo begun; exec sleep 10000",
    )  # fmt: skip
    for count in (1, 2):
        pid = _end_while_away(moored, "fails")
        view = "{{.RestartCount}} {{.State.Status}} {{ne .State.Pid " + pid + "}}"
        wait_for(
            "its restart",
            lambda view=view, count=count: moored.docker("inspect", "-f", view, "fails") == f"{count} running true",  # type: ignore[misc]
        )
    assert moored.docker("logs", "fails") == "begun\n" * 2 + "begun"
    moored.docker("rm", "-f", "fails")


def test_without_a_policy_and_when_stopped_by_hand_nothing_is_restarted(moored: Moored) -> None:
    moored.docker("run", "-d", "--network", "none", "--name", "plain", *SLEEP)
    moored.docker("run", "-d", "--network", "none", "--name", "halted", "--restart", "unless-stopped", *SLEEP)
    moored.docker("stop", "-t", "0", "halted")
    _end_while_away(moored, "plain")
    wait_for("its end to be known", lambda: moored.docker("ps", "-q") == "")
    assert moored.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "plain") == "exited 137"
    assert moored.docker("inspect", "-f", "{{.State.Status}}", "halted") == "exited"
    moored.docker("rm", "plain", "halted")


def test_the_output_of_an_exec_flows_on(moored: Moored) -> None:
    moored.docker("run", "-d", "--network", "none", "--name", "box", *SLEEP)
    script = "echo before; until [ -e /go ]; do sleep 0.02; done; echo after; exit 4"
    client = moored.docker_popen("exec", "box", "sh", "-c", script, bufsize=0)
    assert client.stdout is not None
    assert os.read(client.stdout.fileno(), 100) == b"before\n"
    _come_back(moored)
    moored.docker("exec", "box", "touch", "/go")
    out, _ = client.communicate(timeout=DEADLINE)
    assert out == b"after\n"
    moored.docker("rm", "-f", "box")
