"""Loading, saving, pulling and building images, beside dockerd: image_load_200mb, image_save_200mb, …"""

import itertools
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.daemon import both
from tests.bench.registry import Result, bench, seconds
from tests.support import buildx
from tests.support.images import cached, docker_archive, layer_tar
from tests.support.registry import registry

RUNS = 5
AIM = "≤ 0.7"

_STEPS = """FROM busybox
ENV A=1
WORKDIR /work
COPY tree /tree
RUN echo one > one
RUN echo two > two
COPY --chown=1:1 file /file
LABEL l=1
RUN echo three > three
RUN cat /tree/1 > four
CMD ["cat", "four"]
"""


def big_archive() -> Path:
    """Return an archive of 200 MB of noise in four layers of files of 5 MB."""

    def make() -> bytes:
        noise = random.Random(7)
        layers = [layer_tar({f"{n}-{i}": noise.randbytes(5_000_000) for i in range(10)}) for n in range(4)]
        return docker_archive(layers, tags=["big:1"])

    return cached("bench-big-1.tar", make)


def many_files(path: Path, seed: int) -> None:
    """Write an archive of 20000 files of a kilobyte; what is in them depends on the seed."""
    noise = random.Random(seed).randbytes(1 << 20)
    files = {f"d{i // 100}/f{i}": noise[i : i + 1000] for i in range(20_000)}
    path.write_bytes(docker_archive([layer_tar(files)], tags=[f"many:{seed}"]))


def _turns(
    ours: Callable[[], object], peer: Callable[[], object], prepare: Callable[[int], object], runs: int = RUNS
) -> tuple[float, float]:
    """Return the median seconds of both by turns; ``prepare`` is called with 0 or 1 before each, not measured."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        for index, call in enumerate((ours, peer)):
            prepare(index)
            took = seconds(call)
            if turn:
                found[index].append(took)
    return statistics.median(found[0]), statistics.median(found[1])


@bench("image_load_20000_files")
def loads_of_many_files() -> list[Result]:
    """docker load of another archive each time.

    Nothing is removed in between: ext4 looks at each inode that was deleted within the last minutes before it takes another,
    so that after a removal a hundred times the time of the load would be measured.
    """
    runs = 3
    with both() as pair, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        archive = Path(folder) / "many.tar"
        seeds = itertools.count()

        def prepare(index: int) -> None:
            if index == 0:
                many_files(archive, next(seeds))

        loads = [
            lambda d=docker: d("load", "-q", "-i", str(archive)) for docker in (pair.ours.docker, pair.peer.docker)
        ]
        numbers = _turns(loads[0], loads[1], prepare, runs)
    return [Result("image_load_20000_files", *numbers, "s", runs, "docker load -q -i many.tar", AIM)]


@bench("image_load_200mb", "image_save_200mb")
def archives() -> list[Result]:
    """docker load and docker save."""
    found = []
    with both() as pair, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        dockers = (pair.ours.docker, pair.peer.docker)
        loads = [lambda d=docker: d("load", "-q", "-i", str(big_archive())) for docker in dockers]

        def forget(index: int) -> None:
            if dockers[index]("images", "-q", "big:1"):
                dockers[index]("rmi", "big:1")

        numbers = _turns(loads[0], loads[1], forget)
        found.append(Result("image_load_200mb", *numbers, "s", RUNS, "docker load -q -i big.tar", AIM))
        saves = [lambda d=docker: d("save", "-o", f"{folder}/saved", "big:1") for docker in dockers]
        numbers = _turns(saves[0], saves[1], lambda index: None)
        found.append(Result("image_save_200mb", *numbers, "s", RUNS, "docker save -o FILE big:1", AIM))
    return found


@bench("pull_200mb_loopback")
def pulls() -> list[Result]:
    """docker pull from Debian's docker-registry on loopback."""
    with both() as pair, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        data = Path(folder) / "data"
        sandboxes = (pair.ours.sandbox, pair.peer.sandbox)
        with (
            registry(Path(folder) / "a", sandbox_command=sandboxes[0].command(), data=data) as first,
            registry(Path(folder) / "b", sandbox_command=sandboxes[1].command(), data=data) as second,
        ):
            pair.ours.docker("load", "-q", "-i", str(big_archive()))
            names = (f"{first.host}/big:1", f"{second.host}/big:1")
            pair.ours.docker("tag", "big:1", names[0])
            pair.ours.docker("push", names[0])
            pair.ours.docker("rmi", "big:1")
            dockers = (pair.ours.docker, pair.peer.docker)
            calls = [lambda d=docker, n=name: d("pull", "-q", n) for docker, name in zip(dockers, names, strict=True)]

            def forget(index: int) -> None:
                if dockers[index]("images", "-q", names[index]):
                    dockers[index]("rmi", names[index])

            numbers = _turns(calls[0], calls[1], forget)
    return [Result("pull_200mb_loopback", *numbers, "s", RUNS, "docker pull -q 127.0.0.1:PORT/big:1", AIM)]


def _write_context(folder: Path) -> None:
    """Write the files that `_STEPS` copies, and these steps."""
    (folder / "tree").mkdir()
    for number in range(50):
        (folder / "tree" / str(number)).write_text(f"{number}\n" * 100)
    (folder / "file").write_text("file")
    (folder / "Dockerfile").write_text(_STEPS)


@bench("build_10_cold", "build_10_cached")
def builds() -> list[Result]:
    """docker build of a Dockerfile with ten instructions after FROM."""
    with both() as pair, tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        _write_context(folder)
        dockers = (pair.ours.docker, pair.peer.docker)
        cold = [lambda d=docker: d("build", "-q", "--no-cache", "-t", "made", str(folder)) for docker in dockers]
        cached_ = [lambda d=docker: d("build", "-q", "-t", "made", str(folder)) for docker in dockers]
        return [
            Result(
                "build_10_cold", *_turns(cold[0], cold[1], lambda i: None), "s", RUNS, "docker build --no-cache .", AIM
            ),
            Result(
                "build_10_cached", *_turns(cached_[0], cached_[1], lambda i: None), "s", RUNS, "docker build .", AIM
            ),
        ]


@bench("buildx_10_cold", "buildx_10_cached")
def builds_of_buildx() -> list[Result]:
    """The same Dockerfile by docker buildx, against dockerd's own BuildKit."""
    with both() as pair, tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        _write_context(folder)
        buildx.install(pair.ours.docker_config)
        buildx.install(pair.peer.base / "docker-config")
        dockers = (pair.ours.docker, pair.peer.docker)
        common = ("buildx", "build", "-q", "-t", "made", str(folder))
        cold = [lambda d=docker: d(*common, "--no-cache") for docker in dockers]
        cached_ = [lambda d=docker: d(*common) for docker in dockers]
        return [
            Result(
                "buildx_10_cold",
                *_turns(cold[0], cold[1], lambda i: None),
                "s",
                RUNS,
                "docker buildx build --no-cache .",
                AIM,
            ),
            Result(
                "buildx_10_cached",
                *_turns(cached_[0], cached_[1], lambda i: None),
                "s",
                RUNS,
                "docker buildx build .",
                "≤ 1.0",  # most of it is what buildx itself takes
            ),
        ]
