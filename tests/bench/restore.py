"""How long the engine is away after SIGKILL, and what it loses, beside dockerd with live restore and containerd kept."""

import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.bench.daemon import both
from tests.bench.registry import Result, bench
from tests.support.moored import Sandbox
from tests.support.openapi import Api

RUNS = 5
KILLS = 50
SHIMS = 20
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


def _start_idle(api: Api, numbers: Iterable[int]) -> None:
    """Start idle containers without networks, some at a time."""
    body = {"Image": "busybox", "Cmd": ["sleep", "100000"], "HostConfig": {"NetworkMode": "none"}}

    def start(number: int) -> None:
        api.call("POST", "/containers/create", body=body, query={"name": f"g{number}"}, check=False, timeout=300)
        reply = api.call("POST", f"/containers/g{number}/start", check=False, timeout=300)
        assert reply.status == 204, reply.body

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, numbers))


def _private_kib(sandbox: Sandbox, name: str) -> float:
    """Return the median of the private memory, in KiB, of the sandbox's processes of one name."""
    script = (
        'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = "$1" ] && '
        "awk '/^Private_(Clean|Dirty):/ {sum += $2} END {print sum}' $p/smaps_rollup; done"
    )
    text = sandbox.run("sh", "-c", script, "sh", name, check=False).stdout
    return statistics.median(int(line) for line in text.split())


@bench("shim_private_mib")
def shim_memory() -> list[Result]:
    """What the process beside each container takes for itself, with twenty of them idle."""
    with both(supervised=True) as pair:
        for api in (pair.ours.api, pair.peer.api):
            _start_idle(api, range(SHIMS))
        ours = _private_kib(pair.ours.sandbox, "moorage-shim") / 1024
        peer = _private_kib(pair.peer.sandbox, "containerd-shim") / 1024
    return [
        Result(
            "shim_private_mib",
            ours,
            peer,
            "MiB",
            SHIMS,
            "private memory of a shim beside an idle container",
            "≤ 1.5 MiB",
        )
    ]


@bench("restart_gap_0", "restart_gap_10", "restart_gap_100", "restart_gap_500")
def restart_gap() -> list[Result]:
    """SIGKILL until all containers are listed, with 0, 10, 100 and 500 of them idle."""
    found = []
    with both(supervised=True) as pair:
        running = 0
        for count in (0, 10, 100, 500):
            for api in (pair.ours.api, pair.peer.api):
                _start_idle(api, range(running, count))
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
