"""What quickstart shows: a container that goes on, and loses nothing, while its daemon is killed.

Run as `python -m moorage_host.demonstration` with the machine running. It talks to the engine's socket on the host like any
other client, and to the machine with the `moorage` command; a docker CLI is mentioned where there is one, and not needed.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import docker
import requests
from docker.errors import DockerException, ImageNotFound, NotFound

from moorage_host.paths import user_paths

CONTAINER = "moorage-proof"
IMAGE = "busybox:latest"
MAKE_IMAGE = [sys.executable, "-m", "moorage_images.sample", "-"]
COMMAND = ["sh", "-c", "trap exit TERM; n=0; while :; do n=$((n+1)); echo line $n; sleep 1; done"]
LINES = 3  # before the kill and after it
DEADLINE_S = 120


@dataclass(frozen=True)
class Seen:
    """What identifies a container's one run."""

    pid: int
    started_at: str
    last_line: int


class Demonstration:
    """The steps, on one engine."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    def run(self) -> bool:
        """Run all steps and print what they show; returns whether the proof holds."""
        self._image()
        container = self._container()
        before = self._wait_lines(container, LINES)
        daemon = daemon_pid()
        _print(f"Container {CONTAINER}: PID {before.pid}, started {before.started_at}, at line {before.last_line}")
        _print(f"Killing the daemon, moored (PID {daemon} in the guest), with SIGKILL")
        with Asking(self._client) as asking:
            moorage("ssh", "kill", "-KILL", str(daemon))
            self._wait_answer()
        after = self._wait_lines(container, before.last_line + LINES)
        gaps = missing(self._lines(container))
        new_daemon = daemon_pid()
        _print(
            f"A new daemon (PID {new_daemon}) answers; nobody who asked meanwhile waited longer than {asking.longest:.1f} s"
        )
        _print(f"Container {CONTAINER}: PID {after.pid}, started {after.started_at}, at line {after.last_line}")
        proven = (before.pid, before.started_at) == (after.pid, after.started_at) and not gaps and daemon != new_daemon
        if gaps:
            _print(f"Lines missing or doubled: {', '.join(map(str, gaps))}")
        _print(
            f"Same process, same start, lines 1 to {after.last_line} without a gap: the container never noticed."
            if proven
            else "The proof FAILED: see `moorage logs`."
        )
        return proven

    def _image(self) -> None:
        try:
            self._client.images.get(IMAGE)
        except ImageNotFound:
            _print(f"Loading {IMAGE}, made from Debian's busybox-static")
            self._client.images.load(io.BytesIO(sample_image()))

    def _container(self) -> str:
        try:
            found = self._client.containers.get(CONTAINER)
            if found.status == "running":
                return str(found.id)
            found.remove(force=True)
        except NotFound:
            _print(f"Running {CONTAINER}, which logs a line a second")
        created = self._client.containers.run(IMAGE, COMMAND, name=CONTAINER, detach=True)
        return str(created.id)

    def _lines(self, container: str) -> list[int]:
        text = self._client.containers.get(container).logs().decode()
        return [int(number) for number in re.findall(r"^line (\d+)$", text, re.MULTILINE)]

    def _wait_lines(self, container: str, wanted: int) -> Seen:
        for _ in _tries(f"line {wanted} of {CONTAINER}"):
            lines = self._lines(container)
            if lines and lines[-1] >= wanted:
                state = self._client.api.inspect_container(container)["State"]
                return Seen(int(state["Pid"]), str(state["StartedAt"]), lines[-1])
        raise AssertionError("not reached")

    def _wait_answer(self) -> None:
        for _ in _tries("an answer of the new daemon"):
            try:
                self._client.containers.list()
                return
            except (DockerException, requests.exceptions.RequestException):
                continue


class Asking:
    """Asks the engine for its containers again and again in a thread, while the block runs.

    `longest` is how many seconds one who asks at the worst moment has waited for an answer, failed attempts included.
    """

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asking", daemon=True)
        self.longest = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=DEADLINE_S)

    def _run(self) -> None:
        while not self._end.wait(0.05):
            asked = time.monotonic()
            while not self._answered() and not self._end.wait(0.05):
                pass
            self.longest = max(self.longest, time.monotonic() - asked)

    def _answered(self) -> bool:
        try:
            self._client.containers.list()
        except (DockerException, requests.exceptions.RequestException):
            return False
        return True


def missing(lines: list[int]) -> list[int]:
    """The numbers between 1 and the last line that are not there exactly once."""
    return [number for number in range(1, (lines or [0])[-1] + 1) if lines.count(number) != 1]


def moorage(*arguments: str, ends_with: tuple[int, ...] = (0,)) -> str:
    """Run the moorage command and return its output; raises CalledProcessError for another exit status."""
    command = [str(Path(sys.executable).with_name("moorage")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode not in ends_with:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def sample_image() -> bytes:
    """The archive of `IMAGE`, made by the image builder's distribution; raises CalledProcessError."""
    done = subprocess.run(MAKE_IMAGE, capture_output=True, timeout=DEADLINE_S)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, MAKE_IMAGE, "", done.stderr.decode(errors="replace"))
    return done.stdout


def daemon_pid() -> int:
    """moored's process in the guest, as the agent reports it."""
    for _ in _tries("the daemon's process"):
        status: dict[str, Any] = json.loads(moorage("status", "--json", ends_with=(0, 3)))
        daemon = (status.get("engine") or {}).get("daemon") or {}
        if daemon.get("state") == "running" and daemon.get("pid"):
            return int(daemon["pid"])
    raise AssertionError("not reached")


def _tries(what: str) -> Iterator[None]:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        yield
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come within {DEADLINE_S} s; see `moorage status` and `moorage logs`")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Show the proof and what to try next; ends with 0 when the proof holds."""
    socket = user_paths().docker_socket
    try:
        client = docker.DockerClient(base_url=f"unix://{socket}", version="auto", timeout=DEADLINE_S)
        proven = Demonstration(client).run()
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{' '.join(error.cmd)}: {error.stderr.strip()}\n")
        return 1
    except (DockerException, requests.exceptions.RequestException, TimeoutError) as error:
        sys.stderr.write(f"the engine at {socket} did not do what was asked: {error}\n")
        return 1
    docker_cli = shutil.which("docker")
    _print("\nTry next:")
    if docker_cli:
        _print("  docker --context moorage ps")
        _print(f"  docker --context moorage logs -f {CONTAINER}      and, meanwhile: moorage ssh pkill -KILL moored")
    else:
        _print(f"  export DOCKER_HOST=unix://{socket}      for any Docker client (there is no docker CLI here)")
    _print("  moorage status | moorage pipes | moorage config edit")
    _print("  moorage-gui          the settings window and the tray icon")
    _print("  moorage stop         containers get their stop signal; everything is there again after moorage start")
    _print("(these commands are in .venv/bin)")
    return 0 if proven else 1


if __name__ == "__main__":
    sys.exit(main())
