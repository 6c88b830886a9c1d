"""The daemon is killed between two of its steps: afterwards record and kernel agree, and what was asked can be asked again.

May be lost: the request that was under way.
"""

import random
import threading
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored, wait_for

pytestmark = pytest.mark.root

KILLS = 8


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _killed_meanwhile(moored: Moored, delay: float, *words: str) -> None:
    """Run the CLI and kill the daemon after a while."""
    pid = moored.daemon_pid()
    timer = threading.Timer(delay, lambda: moored.sandbox.run("kill", "-9", str(pid), check=False))
    timer.start()
    moored.docker_run(*words)
    timer.join()
    wait_for("another daemon", lambda: moored.pid_file.exists() and moored.pid_file.read_text() not in ("", str(pid)))
    wait_for("the daemon to answer", moored.answers)


def test_a_container_is_in_a_network_or_not_but_never_half(moored: Moored) -> None:
    chance = random.Random(72)
    moored.docker("network", "create", "half")
    moored.docker("run", "-d", "--name", "joins", "busybox", "sleep", "1000")
    for _ in range(KILLS):
        for verb in ("connect", "disconnect"):
            _killed_meanwhile(moored, 0.02 + chance.random() * 0.1, "network", verb, "half", "joins")
            networks = moored.api.get("/containers/joins/json").json["NetworkSettings"]["Networks"]
            addresses = moored.docker("exec", "joins", "ip", "addr")
            assert all(each["IPAddress"] in addresses for each in networks.values()), f"{networks} {addresses}"
            assert addresses.count(" scope global ") == len(networks)
            if ("half" in networks) != (verb == "connect"):
                moored.docker("network", verb, "half", "joins")
    moored.docker("rm", "-f", "joins")
    moored.docker("network", "rm", "half")


def test_a_restart_that_is_due_while_the_daemon_takes_containers_back_finds_its_files(moored: Moored) -> None:
    """Many containers end while the daemon is away: all are restarted, none fails since its root was unmounted again."""
    names = [f"again-{number}" for number in range(8)]
    for name in names:
        moored.docker(
            "run", "-d", "--name", name, "--network=none", "--restart=always", "busybox", "sh", "-c",
            "echo begun; exec sleep 1000",
        )  # fmt: skip
    for _ in range(3):
        pids = [moored.docker("inspect", "-f", "{{.State.Pid}}", name) for name in names]
        pid = moored.daemon_pid()
        moored.sandbox.run("kill", "-9", str(pid), *pids, check=False)
        for name, old in zip(names, pids, strict=True):
            wait_for(
                f"{name} to run again",
                lambda name=name, old=old: moored.docker("inspect", "-f", "{{.State.Pid}}", name) not in ("0", old),  # type: ignore[misc]
            )
    for name in names:
        done = moored.docker_run("logs", name)
        assert (done.stdout, done.stderr) == ("begun\n" * 4, "")
    moored.docker("rm", "-f", *names)
