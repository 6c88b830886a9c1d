"""A daemon with `userns-remap` dies, comes back, and comes back with other users than its running containers have."""

from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, wait_for
from tests.support.userns import ROOT, remapping_moored

pytestmark = pytest.mark.root


@pytest.fixture
def moored() -> Iterator[Moored]:
    with remapping_moored() as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _start_with(moored: Moored, *arguments: str) -> None:
    moored.kill()
    moored.arguments = ["--live-restore", *arguments]
    moored.start()


def _warnings(moored: Moored) -> str:
    return "\n".join(moored.api.get("/info").json["Warnings"])


def test_containers_keep_their_users_and_network_while_the_daemon_is_away(moored: Moored) -> None:
    moored.docker(
        "run", "-d", "--name", "web", "busybox", "sh", "-c", "while :; do echo on > /dev/stdout; sleep 0.05; done"
    )
    before = moored.docker("inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", "web")
    _start_with(moored, "--userns-remap", "dockremap")  # another word for the same
    assert moored.docker("inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", "web") == before
    assert "unmanaged" not in _warnings(moored)
    assert moored.docker("exec", "web", "sh", "-c", "id -u > /dev/stdout; cat /proc/self/uid_map").split() == [
        "0",
        "0",
        str(ROOT),
        "65536",
    ]
    lines = len(moored.docker("logs", "web").splitlines())
    wait_for("more output", lambda: len(moored.docker("logs", "web").splitlines()) > lines)
    moored.docker("restart", "-t", "0", "web")
    moored.docker("rm", "-f", "web")
    assert not list((moored.exec_root / "userns").iterdir())


@pytest.mark.parametrize(("arguments", "shown"), [((), "not set"), (("--userns-remap", "other"), "other:other")])
def test_containers_of_other_users_are_listed_and_managed_again_under_their_own(
    moored: Moored, arguments: tuple[str, ...], shown: str
) -> None:
    moored.docker("run", "-d", "--name", "web", "-v", "vol:/vol", "busybox", "sleep", "10000")
    before = moored.docker("inspect", "web")
    _start_with(moored, *arguments)
    reason = (
        f"it was started with userns-remap dockremap:dockremap, this engine's is {shown}: stop it, or start the engine"
    )
    assert reason in _warnings(moored)
    assert moored.docker("ps", "--format", "{{.Names}}") == "web"
    assert reason in moored.docker_run("exec", "web", "true").stderr
    assert moored.docker("images", "-q") == moored.docker("volume", "ls", "-q") == ""  # each has its own
    moored.docker("load", "-i", str(busybox_archive()))
    expected = "0 4294967295" if not arguments else "400000 65536"
    assert moored.docker("run", "--rm", "busybox", "cat", "/proc/self/uid_map").split()[1:] == expected.split()
    _start_with(moored, "--userns-remap", "default")
    assert moored.docker("inspect", "web") == before
    assert moored.docker("exec", "web", "cat", "/proc/self/uid_map").split()[1] == str(ROOT)
    assert "unmanaged" not in _warnings(moored)
    moored.docker("rm", "-f", "web")
    moored.docker("volume", "rm", "vol")


def test_containers_of_other_users_can_be_stopped(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "web", "busybox", "sleep", "10000")
    _start_with(moored)
    moored.docker("stop", "-t", "0", "web")
    assert moored.docker("ps", "-aq") == ""
    _start_with(moored, "--userns-remap", "default")
    assert moored.docker("inspect", "-f", "{{.State.Status}}", "web") == "exited"
    moored.docker("start", "web")
    moored.docker("rm", "-f", "web")
