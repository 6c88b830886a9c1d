"""How long the engine is away after SIGKILL, and what it loses, beside dockerd with live restore and containerd kept."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.bench.daemon import both
from tests.bench.registry import Result, bench
from tests.support.openapi import Api

RUNS = 5
KILLS = 50
#: A line carries its number; the writer never stops while daemons come and go.
WRITER = "i=0; while :; do i=$((i+1)); echo line-$i-of-the-writer; done"


def _listed(api: Api, count: int) -> bool:
    try:
        reply = api.call("GET", "/containers/json", check=False, timeout=30)
    except OSError:
        return False
    return reply.status == 200 and len(reply.json) == count


def _gap(api: Api, count: int, kill: Callable[[], object], bring_back: Callable[[], object]) -> float:
    """Return the seconds from the kill until the API lists all containers."""
    begin = time.perf_counter()
    kill()
    bring_back()
    while not _listed(api, count):
        if time.perf_counter() - begin > 300:
            raise AssertionError(f"not all of {count} containers are listed again after 300 s")
        time.sleep(0.002)
    return time.perf_counter() - begin


@bench("restart_gap_0", "restart_gap_10", "restart_gap_100", "restart_gap_500")
def restart_gap() -> list[Result]:
    """SIGKILL until all containers are listed, with 0, 10, 100 and 500 of them idle."""
    found = []
    with both(supervised=True) as pair:
        running = 0
        for count in (0, 10, 100, 500):
            with ThreadPoolExecutor(4) as pool:
                for docker in (pair.ours.docker, pair.peer.docker):
                    more = range(running, count)
                    list(
                        pool.map(
                            lambda n, d=docker: d(
                                "run", "-d", "--network=none", f"--name=g{n}", "busybox", "sleep", "100000", timeout=600
                            ),
                            more,
                        )
                    )
            running = count
            ours = [_gap(pair.ours.api, count, pair.ours.kill, lambda: None) for _ in range(RUNS)]
            peer = [_gap(pair.peer.api, count, pair.peer.kill, pair.peer.spawn) for _ in range(RUNS)]
            found.append(
                Result(
                    f"restart_gap_{count}", statistics.median(ours), statistics.median(peer), "s", RUNS,
                    f"kill -9 until GET /containers/json lists {count} containers", "≤ 0.5",
                )
            )  # fmt: skip
    return found


def lost_and_doubled(text: str) -> tuple[int, int]:
    """Return how many line numbers are missing and how many come twice in a log of the writer."""
    numbers = [
        int(line.split("-")[1]) for line in text.splitlines() if line.startswith("line-") and line.endswith("-writer")
    ]
    torn = sum(1 for line in text.splitlines() if not (line.startswith("line-") and line.endswith("-writer")))
    return max(numbers) - len(set(numbers)) + torn, len(numbers) - len(set(numbers))


@bench("lines_lost_50_kills")
def lines_lost() -> list[Result]:
    """A container logs as fast as it can while the daemon is killed fifty times."""
    counts = []
    with both(supervised=True) as pair:
        for docker, kill, back, answers in (
            (pair.ours.docker, pair.ours.kill, lambda: None, pair.ours.answers),
            (pair.peer.docker, pair.peer.kill, pair.peer.spawn, pair.peer.answers),
        ):
            docker("run", "-d", "--name", "writer", "busybox", "sh", "-c", WRITER)
            for _ in range(KILLS):
                kill()
                back()
                end = time.monotonic() + 120
                while not answers():
                    if time.monotonic() > end:
                        raise AssertionError("the daemon is not back after 120 s")
                    time.sleep(0.01)
                time.sleep(0.1)
            docker("kill", "writer")
            text = docker("logs", "writer", timeout=600)
            counts.append(lost_and_doubled(text))
    ours, peer = counts
    return [
        Result(
            "lines_lost_50_kills",
            sum(ours),
            sum(peer),
            "lines lost or doubled",
            1,
            "50 × kill -9 under full logging load",
            "0",
        )
    ]
