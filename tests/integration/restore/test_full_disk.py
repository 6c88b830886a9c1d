"""The disk below the data root is full: no line is lost, no record, and a daemon can be started.

May be lost: what was asked for while there was no room, which is refused with the reason.
"""

import json
from collections.abc import Iterator

import pytest

from tests.soak.leftovers import agent_status
from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox, wait_for

pytestmark = pytest.mark.root

WRITER = "i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo line $i; usleep 2000; done; exit 7"


@pytest.fixture(params=[False, True], ids=["by hand", "supervised"])
def moored(request: pytest.FixtureRequest) -> Iterator[Moored]:
    with Sandbox() as sandbox:
        daemon = Moored(sandbox, supervised=request.param)
        sandbox.run("mount", "-t", "tmpfs", "-o", "size=256m", "data", daemon.data_root)
        daemon.start()
        daemon.docker("load", "-i", str(busybox_archive()))
        try:
            yield daemon
        finally:
            daemon.end()
            print(daemon.log())


def _fill(moored: Moored) -> None:
    """Leave not one block."""
    filler = moored.data_root / "filler"
    moored.sandbox.run(
        "sh",
        "-c",
        f"dd if=/dev/zero of={filler} bs=4k 2> /dev/null; dd if=/dev/zero of={filler}2 bs=1 2> /dev/null; true",
    )


def _free(moored: Moored) -> None:
    moored.sandbox.run("sh", "-c", f"rm -f {moored.data_root}/filler*")


def _kill_and_wait(moored: Moored) -> None:
    pid = moored.daemon_pid()
    moored.kill()
    if moored.supervised:
        wait_for(
            "another daemon", lambda: moored.pid_file.exists() and moored.pid_file.read_text() not in ("", str(pid))
        )
        wait_for("the daemon to answer", moored.answers)
    else:
        moored.start()


def _state(moored: Moored, name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(moored.docker("inspect", "-f", "{{json .State}}", name))
    return state


def _shortages(moored: Moored) -> list[str]:
    """What `docker info` says has run out; under an agent, its status has to say the same."""
    warnings = json.loads(moored.docker("info", "--format", "{{json .Warnings}}")) or []
    found = [each for each in warnings if str(moored.data_root) in each]
    if moored.supervised:
        assert found == [each for each in agent_status(moored)["warnings"] if str(moored.data_root) in each]
    return found


def test_daemon_starts_and_answers_on_a_full_disk_and_no_line_is_lost(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "writer", "--tmpfs", "/tmp", "busybox", "sh", "-c", WRITER)
    moored.docker("run", "-d", "--name", "ends", "--network=none", "--tmpfs", "/tmp", "busybox", "sh", "-c",
                  "until [ -e /tmp/stop ]; do usleep 20000; done; exit 5")  # fmt: skip
    wait_for("some lines", lambda: "line 50" in moored.docker("logs", "writer"))
    before = _state(moored, "writer")
    assert not _shortages(moored)
    _fill(moored)
    assert any("the data disk" in each and "is full" in each for each in _shortages(moored)), _shortages(moored)
    moored.sandbox.run("touch", f"/proc/{_state(moored, 'ends')['Pid']}/root/tmp/stop")
    for _ in range(3):
        _kill_and_wait(moored)
        assert _state(moored, "writer") == before
        wait_for("the end to be seen", lambda: _state(moored, "ends")["ExitCode"] == 5)
    refused = moored.docker_run("create", "--name", "roomless", "busybox")
    assert refused.returncode == 0 or "space" in refused.stderr or "full" in refused.stderr, refused.stderr
    _free(moored)
    assert not _shortages(moored)
    _kill_and_wait(moored)
    assert _state(moored, "ends")["ExitCode"] == 5
    assert _state(moored, "writer") == before
    moored.docker("exec", "writer", "touch", "/tmp/stop", check=False)
    assert moored.docker("wait", "writer") == "7"
    lines = moored.docker("logs", "writer").splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    assert moored.docker("run", "--rm", "busybox", "echo", "well") == "well"


def test_no_files_left_is_said_and_survived(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "writer", "--tmpfs", "/tmp", "busybox", "sh", "-c", WRITER)
    wait_for("some lines", lambda: "line 50" in moored.docker("logs", "writer"))
    before = _state(moored, "writer")
    used = int(moored.sandbox.run("df", "--output=iused", moored.data_root).stdout.split()[1])
    moored.sandbox.run("mount", "-o", f"remount,nr_inodes={used}", moored.data_root)
    assert any("can hold no more files" in each for each in _shortages(moored)), _shortages(moored)
    for _ in range(2):
        _kill_and_wait(moored)
        assert _state(moored, "writer") == before
    refused = moored.docker_run("run", "-d", "--name", "roomless", "busybox", "true")
    assert refused.returncode != 0 and "space" in refused.stderr, refused.stderr
    moored.sandbox.run("mount", "-o", "remount,nr_inodes=1000000", moored.data_root)
    assert not _shortages(moored)
    moored.docker("exec", "writer", "touch", "/tmp/stop", check=False)
    assert moored.docker("wait", "writer") == "7"
    lines = moored.docker("logs", "writer").splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    assert moored.docker("run", "--rm", "--name", "roomless", "busybox", "echo", "well") == "well"
