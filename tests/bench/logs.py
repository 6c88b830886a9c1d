"""200 MB of 65-byte lines: through the log of a detached container, and read back with `docker logs`, beside dockerd."""

import os
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench.daemon import both
from tests.bench.registry import Result, bench, seconds

RUNS = 5
BYTES = 200_000_000
#: `yes` writes lines of 64 characters and a newline in blocks of 4 KiB, as any program with buffered output does.
WRITER = f"yes {'x' * 64} | head -c {BYTES}"


def _logged(docker: Callable[..., str], name: str) -> Callable[[], object]:
    """Return what writes the lines: from `docker run -d` until the container has ended and its log is complete."""

    def run() -> None:
        docker("rm", "-f", name)
        docker("run", "-d", "--network=none", "--name", name, "busybox", "sh", "-c", WRITER)
        docker("wait", name, timeout=600)

    return run


def _read(socket: Path, name: str) -> Callable[[], object]:
    """Return what reads the log to its end."""

    def run() -> None:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}"}
        with subprocess.Popen(["docker", "logs", name], env=environment, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            count = 0
            while data := os.read(client.stdout.fileno(), 1 << 20):
                count += len(data)
            if client.wait() != 0 or count != BYTES:
                raise AssertionError(f"docker logs gave {count} bytes instead of {BYTES}")

    return run


@bench("log_detached_200mb", "logs_read_200mb")
def logs() -> list[Result]:
    """Both directions of the json-file log."""
    with both() as pair:
        found = []
        sides = ((pair.ours.docker, pair.ours.socket), (pair.peer.docker, pair.peer.socket))
        for name, calls, command, aim in (
            (
                "log_detached_200mb",
                [_logged(docker, "writer") for docker, _ in sides],
                "docker run -d … and docker wait: 200 MB of 65-byte lines into json-file",
                "≤ 0.25",
            ),
            (
                "logs_read_200mb",
                [_read(socket, "writer") for _, socket in sides],
                "docker logs of 200 MB of 65-byte lines",
                "≤ 0.2",
            ),
        ):
            timings: list[list[float]] = [[], []]
            for _ in range(RUNS):
                for side in (0, 1):
                    timings[side].append(seconds(calls[side]))
            ours, peer = (statistics.median(each) for each in timings)
            found.append(Result(name, ours, peer, "s", RUNS, command, aim))
        return found
