"""moored killed in the middle of creates and removals: what they leave is found and freed at the next start."""

import json
import random
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored

pytestmark = pytest.mark.root

#: Fills the anonymous volume from the image and then removes all of it again.
WORK = "for i in 1 2 3 4 5; do id=$(docker create -v /etc -v /anonymous busybox true) && docker rm -v $id; done"


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with running_moored("--live-restore") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _folders(moored: Moored, name: str) -> set[str]:
    folder = moored.data_root / name
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def _check(moored: Moored) -> None:
    """Nothing is there but what the containers that are listed have."""
    ids = set(moored.docker("ps", "-aq", "--no-trunc").split())
    assert _folders(moored, "mounts") == ids
    assert _folders(moored, "containers") == ids
    held = {
        mount["Name"]
        for each in ids
        for mount in json.loads(moored.docker("inspect", "-f", "{{json .Mounts}}", each))
        if mount["Type"] == "volume"
    }
    assert set(moored.docker("volume", "ls", "-q").split()) == held | {"named"}
    assert _folders(moored, "volumes") == held | {"named"}
    mounted = moored.sandbox.run("cat", "/proc/self/mounts").stdout
    assert f"{moored.data_root}/mounts" not in mounted


def test_creates_and_removals_leave_nothing(moored: Moored) -> None:
    moored.docker("volume", "create", "named")
    chance = random.Random(7)
    survivors = 0
    for _ in range(10):
        client = subprocess.Popen(
            ["sh", "-c", WORK], env=dict(moored.docker_environment()), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(0.05 + chance.random() * 0.6)  # an instant somewhere in the middle; any is as good as another
        moored.kill()
        client.wait(DEADLINE)
        moored.start()
        _check(moored)
        for each in moored.docker("ps", "-aq").split():
            survivors += 1
            moored.docker("start", each)  # whoever is listed is whole
            moored.docker("rm", "-f", "-v", each)
        _check(moored)
    assert survivors < 10 * 2


def test_destroy_of_a_removal_that_was_cut_short_is_told_once(moored: Moored) -> None:
    since = f"{time.time():.3f}"
    chance = random.Random(8)
    made = []
    for _ in range(5):
        ids = [moored.docker("create", "busybox", "true") for _ in range(3)]
        made += ids
        client = moored.docker_popen("rm", *ids)
        time.sleep(chance.random() * 0.25)
        moored.kill()
        client.communicate(timeout=DEADLINE)
        moored.start()
        for each in set(moored.docker("ps", "-aq", "--no-trunc").split()):
            moored.docker("rm", each)
    text = moored.docker(
        "events", "--since", since, "--until", f"{time.time() + 0.2:.3f}", "--filter", "event=destroy", "--format",
        "{{.Actor.ID}}",
    )  # fmt: skip
    assert sorted(text.split()) == sorted(made)
