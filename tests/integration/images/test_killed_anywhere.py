"""A daemon killed at any change of the file system leaves an image store as it was before or after, and nothing else."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.images import names
from moorage_guest.images.pushing import push
from moorage_guest.images.registry import Credentials

from tests.support.images import docker_archive, layer_tar
from tests.support.imagestore import Shelf, assert_whole, shelf
from tests.support.killedwork import WORK
from tests.support.registry import Registry, registry

pytestmark = pytest.mark.root

#: At how many of the changes that a piece of work makes it is killed.
MOMENTS = 5


class Worker:
    """The process that does the work, in forks of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killedwork"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[3], env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip

    def do(self, work: str, data: Path, at: int, more: dict[str, str]) -> str:
        """Do a piece of work and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"work": work, "data": str(data), "at": at, **more}) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    running = Worker()
    yield running
    running.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


def image(tag: str, seed: int) -> bytes:
    noise = random.Random(seed)
    layers = [layer_tar({f"{n}/{i}": noise.randbytes(40_000) for i in range(4)}) for n in range(2)]
    return docker_archive(layers, tags=[tag])


def state(opened: Shelf) -> set[tuple[str, ...]]:
    """Every image by its names: digests of a push aside, which may be noted a moment later."""
    return {tuple(sorted(each.repo_tags)) for each in opened.images.all()}


@pytest.mark.parametrize("work", sorted(WORK))
async def test_killed_anywhere_it_is_before_or_after(
    worker: Worker, plain: Registry, tmp_path: Path, work: str
) -> None:
    first = tmp_path / "first"
    pushed = f"{plain.host}/app:1"
    async with shelf(first) as opened:
        opened.load(image("base:1", 1))
        opened.load(image(pushed, 2))
        if work == "pull":
            await push(opened.images, names.parse(pushed), lambda message: None, credentials=Credentials())
            await opened.images.remove(pushed, force=True)
        before = state(opened)
    (tmp_path / "load.tar").write_bytes(image("loaded:1", 3))
    (tmp_path / "import.tar").write_bytes(layer_tar({"file": b"x" * 100_000}))
    more: dict[str, Any] = {"name": "base:1" if work == "commit" else pushed, "file": str(tmp_path / f"{work}.tar")}

    def copy(name: str) -> Path:
        subprocess.run(["cp", "-a", str(first), str(tmp_path / name)], check=True, timeout=60)
        return tmp_path / name

    data = copy("whole")
    answer = worker.do(work, data, 0, more)
    assert answer.isdigit(), answer
    async with shelf(data) as opened:
        assert_whole(opened)
        after = state(opened)
    total = int(answer)
    assert total > 3
    for moment in sorted(random.Random(work).sample(range(1, total + 1), min(MOMENTS, total))):
        data = copy(f"killed-{moment}")
        assert worker.do(work, data, moment, more) == "killed", f"change {moment} of {total}"
        async with shelf(data) as opened:
            assert_whole(opened)
            assert state(opened) in (before, after), f"killed at change {moment} of {total}"
            done = state(opened) == after != before
        if not done:
            assert worker.do(work, data, 0, more).isdigit()
        async with shelf(data) as opened:
            assert_whole(opened)
            assert state(opened) == after
            assert opened.images.content.half_bytes() == 0
