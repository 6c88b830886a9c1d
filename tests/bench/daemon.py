"""What a command costs and what the daemon weighs, beside dockerd: run_rm, run_d, rm_f, exec_true, …"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.bench.registry import Result, alternate, bench
from tests.support.dockerd import Dockerd
from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox

RUNS = 11
CONTAINERS = 10


@dataclass
class Pair:
    """Both daemons, each in a sandbox of its own, with the same image."""

    ours: Moored
    peer: Dockerd


@contextlib.contextmanager
def both(*, supervised: bool = False) -> Iterator[Pair]:
    """Start moored and dockerd with the busybox image loaded."""
    with Sandbox() as first, Sandbox() as second:
        ours = Moored(first, supervised=supervised)
        peer = Dockerd(second)
        try:
            ours.start()
            peer.start()
            for docker in (ours.docker, peer.docker):
                docker("load", "-i", str(busybox_archive()))
            yield Pair(ours, peer)
        finally:
            peer.close()
            if ours.process is not None:
                ours.process.kill()
                ours.process.wait()


def _result(
    name: str, ours: float, peer: float, command: str, aim: str = "≤ 0.5", unit: str = "s", runs: int = RUNS
) -> Result:
    return Result(name, ours, peer, unit, runs, command, aim)


@bench("run_rm", "run_d", "rm_f", "exec_true", "run_30_parallel")
def commands() -> list[Result]:
    """The docker CLI's everyday commands."""
    with both() as pair:
        found = []
        by_turns = [(pair.ours.docker, "o"), (pair.peer.docker, "p")]
        run = [lambda d=docker: d("run", "--rm", "busybox", "true") for docker, _ in by_turns]
        found.append(_result("run_rm", *alternate(run[0], run[1], RUNS), "docker run --rm busybox true"))

        counters = {"o": 0, "p": 0}

        def detached(docker: Callable[..., str], who: str) -> Callable[[], object]:
            def call() -> None:
                counters[who] += 1
                docker("run", "-d", "--name", f"d{counters[who]}", "busybox", "sleep", "1000")

            return call

        def removed(docker: Callable[..., str], who: str) -> Callable[[], object]:
            def call() -> None:
                docker("rm", "-f", f"d{counters[who]}")
                counters[who] -= 1

            return call

        starts = [detached(*turn) for turn in by_turns]
        found.append(_result("run_d", *alternate(starts[0], starts[1], RUNS), "docker run -d busybox sleep 1000"))
        programs = {docker("exec", "d1", "sha256sum", "/bin/true") for docker, _ in by_turns}
        assert len(programs) == 1, f"both execute the image's own program, not {programs}"
        execs = [lambda d=docker: d("exec", "d1", "true") for docker, _ in by_turns]
        found.append(_result("exec_true", *alternate(execs[0], execs[1], RUNS), "docker exec d1 true"))
        ends = [removed(*turn) for turn in by_turns]
        found.append(_result("rm_f", *alternate(ends[0], ends[1], RUNS), "docker rm -f"))

        def parallel(docker: Callable[..., str]) -> Callable[[], object]:
            def call() -> None:
                with ThreadPoolExecutor(30) as pool:
                    list(pool.map(lambda _: docker("run", "--rm", "busybox", "true", timeout=300), range(30)))

            return call

        ours, peer = alternate(parallel(pair.ours.docker), parallel(pair.peer.docker), 3)
        found.append(_result("run_30_parallel", ours, peer, "30 × docker run --rm busybox true at once", runs=3))
        return found


def _pss(sandbox: Sandbox, names: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the proportional memory, in KiB, of the sandbox's processes whose command line has one of the names."""
    script = "for p in /proc/[0-9]*; do printf '%s\\t%s\\t' ${p#/proc/} \"$(tr '\\0' ' ' < $p/cmdline)\"; grep ^Pss: $p/smaps_rollup; echo; done"
    text = sandbox.run("sh", "-c", script, check=False).stdout
    found: dict[str, list[int]] = {name: [] for name in names}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) == 3 and fields[2].startswith("Pss:"):
            for name in names:
                if name in fields[1]:
                    found[name].append(int(fields[2].split()[1]))
                    break
    return found


@bench("pss_idle", "pss_per_container")
def memory() -> list[Result]:
    """Proportional memory of the engines, idle and per idle container."""
    with both() as pair:

        def total() -> tuple[float, float]:
            ours = sum(
                sum(values) for values in _pss(pair.ours.sandbox, ("moorage_guest", "moorage", "moored")).values()
            )
            names = ("containerd-shim", "dockerd", "containerd")
            return ours, float(sum(sum(values) for values in _pss(pair.peer.sandbox, names).values()))

        idle = total()
        for docker in (pair.ours.docker, pair.peer.docker):
            for number in range(CONTAINERS):
                docker("run", "-d", "--name", f"m{number}", "busybox", "sleep", "1000")
        full = total()
        command = "sum of Pss in /proc/*/smaps_rollup"
        return [
            _result("pss_idle", idle[0] / 1024, idle[1] / 1024, command, "≤ 0.45", "MiB", 1),
            _result(
                "pss_per_container",
                (full[0] - idle[0]) / 1024 / CONTAINERS,
                (full[1] - idle[1]) / 1024 / CONTAINERS,
                f"{command}, with {CONTAINERS} containers less with none",
                "≤ 0.35", "MiB", 1,
            ),
        ]  # fmt: skip
