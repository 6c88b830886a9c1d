"""Sentences of Docker's page on live restore, one by one; docs/live-restore.md says where the others are tested."""

import json
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, Sandbox, running_moored, wait_for

pytestmark = pytest.mark.root

#: Ends at once when it is told to.
WILLING = ("busybox", "sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done")


def _run(moored: Moored, name: str) -> str:
    """Start a container and return its pid."""
    moored.docker("run", "-d", "--network", "none", "--name", name, *WILLING)
    wait_for("its first word", lambda: moored.docker("logs", name) == "up")
    return moored.docker("inspect", "-f", "{{.State.Pid}}", name)


def _lives(moored: Moored, pid: str) -> bool:
    return moored.sandbox.run("kill", "-0", pid, check=False).returncode == 0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def _configured(sandbox: Sandbox, *arguments: str, **settings: object) -> Moored:
    moored = Moored(sandbox, list(arguments))
    moored.config_file.write_text(json.dumps(settings))
    moored.start()
    moored.docker("load", "-i", str(busybox_archive()))
    return moored


def test_by_default_containers_are_shut_down_when_the_daemon_terminates() -> None:
    """Docker's default is what the daemon has under dockerd's name; here the setting is written out."""
    with running_moored("--live-restore=false") as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        pid = _run(moored, "web")
        assert moored.stop() == 0
        assert not _lives(moored, pid)


def test_containers_remain_running_when_the_daemon_becomes_unavailable(sandbox: Sandbox) -> None:
    moored = _configured(sandbox, **{"live-restore": True})
    pid = _run(moored, "web")
    assert moored.stop() == 0  # a planned outage
    assert _lives(moored, pid)
    moored.start()
    moored.kill()  # a crash
    assert _lives(moored, pid)
    moored.start()
    assert moored.docker("inspect", "-f", "{{.State.Pid}}", "web") == pid
    moored.docker("stop", "web")
    moored.stop()


def test_live_restore_is_enabled_by_the_key_in_daemon_json(sandbox: Sandbox) -> None:
    moored = _configured(sandbox, **{"live-restore": True})
    assert moored.api.get("/info").json["LiveRestoreEnabled"] is True
    moored.stop()
    moored.config_file.write_text('{"live-restore": false}')
    moored.start()
    assert moored.api.get("/info").json["LiveRestoreEnabled"] is False
    moored.stop()


def test_a_reload_by_sighup_enables_it_without_downtime_for_containers(sandbox: Sandbox) -> None:
    moored = _configured(sandbox, **{"live-restore": False})
    pid, daemon = _run(moored, "web"), moored.daemon_pid()
    moored.config_file.write_text('{"live-restore": true}')
    moored.signal(signal.SIGHUP)
    wait_for("the reload", lambda: moored.api.get("/info").json["LiveRestoreEnabled"])
    assert moored.daemon_pid() == daemon and _lives(moored, pid)
    assert moored.stop() == 0
    assert _lives(moored, pid)
    moored.start()
    moored.docker("stop", "web")
    moored.stop()


def test_the_flag_enables_it_for_a_daemon_started_by_hand(sandbox: Sandbox) -> None:
    moored = _configured(sandbox, "--live-restore")
    pid = _run(moored, "web")
    assert moored.stop() == 0
    assert _lives(moored, pid)
    moored.start()
    moored.docker("stop", "web")
    moored.stop()


def test_only_one_of_flag_and_key_may_be_given(sandbox: Sandbox) -> None:
    moored = Moored(sandbox, ["--live-restore"])
    moored.config_file.write_text('{"live-restore": true}')
    assert moored.spawn().wait(DEADLINE) == 1
    moored.process = None
    words = "the following directives are specified both as a flag and in the configuration file: live-restore"
    assert words in moored.log()


def test_the_pipes_hold_64k_whatever_the_kernel_allows(sandbox: Sandbox) -> None:
    """As on Docker Desktop: the buffer's size is not for the user to change."""
    moored = _configured(sandbox, "--live-restore")
    pid = _run(moored, "web")
    code = f"import fcntl, os; print(fcntl.fcntl(os.open('/proc/{pid}/fd/1', os.O_WRONLY), fcntl.F_GETPIPE_SZ))"
    assert moored.sandbox.run(sys.executable, "-c", code).stdout == "65536\n"
    moored.docker("rm", "-f", "web")
    moored.stop()
