"""Runs moored on the test machine, in namespaces of its own, and drives it with the real clients.

A `Sandbox` is a network, mount and pid namespace whose first process reaps orphans: whatever a test starts in it
(moored, agent, shims, containers, mounts, bridges) ends with it. Needs root. Linux only.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker import DockerClient

from tests.support.openapi import Api

#: Seconds that anything may take on a slow, busy machine before a test calls it hung.
DEADLINE = 60.0


def wait_for(what: str, condition: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """Return the first true value of ``condition``; fail with ``what`` when there is none in time."""
    end = time.monotonic() + deadline
    pause = 0.01
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:.0f} s in vain: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    return value


class Sandbox:
    """Namespaces that end with the test; use as a context manager."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mo-", dir="/var/tmp"))
        self.root.chmod(0o755)
        self._holder = subprocess.Popen(
            [
                "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
                "tini", "-g", "--", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity",
            ],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise AssertionError(
                "cannot make namespaces on this machine: unshare, tini and iproute2 are needed, and root"
            )
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.init_pid = int(children[0])

    def command(self, *argv: str | Path) -> list[str]:
        """Return argv that runs inside the namespaces."""
        return ["nsenter", "-t", str(self.init_pid), "-n", "-m", "-p", "--", *map(str, argv)]

    def run(
        self, *argv: str | Path, check: bool = True, timeout: float = DEADLINE, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the namespaces and return what it printed."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, check=False, timeout=timeout, **more)
        if check and done.returncode != 0:
            raise AssertionError(f"{argv} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def close(self) -> None:
        """End everything inside and remove the files; fails when something outlives it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init_pid, signal.SIGKILL)
        self._holder.wait(DEADLINE)
        if self._holder.stdout is not None:
            self._holder.stdout.close()
        wait_for("the sandbox's cgroups to empty", self._remove_cgroups)
        shutil.rmtree(self.root, ignore_errors=False)

    def _remove_cgroups(self) -> bool:
        """Remove the cgroups that containers of this sandbox left; they carry its name in the path."""
        left = False
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            parent = hierarchy / self.root.name
            if not parent.is_dir():
                continue
            for folder, _, _ in os.walk(parent, topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError:
                    left = True
        return not left

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Moored:
    """One daemon with roots of its own. `start` and `stop` as often as a test likes."""

    sandbox: Sandbox
    arguments: list[str] = field(default_factory=list)
    supervised: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self.data_root = self.sandbox.root / "data"
        self.exec_root = self.sandbox.root / "run"
        self.config_file = self.data_root / "daemon.json"
        self.log_file = self.sandbox.root / "moored.log"
        self.docker_config = self.sandbox.root / "docker-config"
        self.data_root.mkdir(exist_ok=True)
        self.docker_config.mkdir(exist_ok=True)

    @property
    def socket(self) -> Path:
        return self.exec_root / "docker.sock"

    @property
    def pid_file(self) -> Path:
        return self.exec_root / "moored.pid"

    @property
    def api(self) -> Api:
        """Client whose replies are checked against the API."""
        return Api(self.socket)

    def argv(self) -> list[str]:
        """Return the command line inside the sandbox."""
        common = ["--cgroup-parent", f"/{self.sandbox.root.name}", *self.arguments]
        roots = ["--data-root", str(self.data_root), "--exec-root", str(self.exec_root)]
        if self.supervised:
            return [sys.executable, "-m", "moorage_guest.agent.main", "--supervise", *roots, *common]
        return [
            sys.executable, "-m", "moorage_guest.daemon", *roots, "--config-file", str(self.config_file),
            "--pidfile", str(self.pid_file), "--host", f"unix://{self.socket}", *common,
        ]  # fmt: skip

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start the process without waiting for it to answer."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.sandbox.command(*self.argv()), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        return self.process

    def start(self) -> "Moored":
        """Start and wait until the API answers."""
        process = self.spawn()

        def answers() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"moored ended with {process.returncode}:\n{self.log()}")
            return self.answers()

        try:
            wait_for("moored to answer /_ping", answers)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return self

    def answers(self) -> bool:
        """Whether /_ping answers now."""
        try:
            return self.api.call("GET", "/_ping", timeout=10).status == 200
        except OSError:
            return False

    def log(self) -> str:
        """Return the last part of what moored printed."""
        return self.log_file.read_text(errors="replace")[-20000:] if self.log_file.exists() else ""

    def daemon_pid(self) -> int:
        """Return moored's pid inside the sandbox."""
        return int(self.pid_file.read_text())

    def signal(self, number: int) -> None:
        """Send moored itself a signal."""
        self.sandbox.run("kill", f"-{number}", str(self.daemon_pid()))

    def kill(self) -> None:
        """SIGKILL moored and wait until it is gone."""
        pid = self.daemon_pid()
        self.sandbox.run("kill", "-9", str(pid))
        if self.supervised:
            return
        assert self.process is not None
        self.process.wait(DEADLINE)
        self.process = None

    def stop(self, timeout: float = DEADLINE) -> int:
        """SIGTERM and wait; returns the exit status."""
        assert self.process is not None
        if self.supervised:
            self.process.terminate()
        else:
            self.signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self.process = None
        return status

    def end(self) -> None:
        """SIGKILL what was started, the agent when supervised, and wait. Idempotent.

        Not nsenter, whose child it is: orphaned it would be left to a process outside of the sandbox, which does not end
        before that one has looked after it.
        """
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        process.wait(DEADLINE)

    # -- clients --------------------------------------------------------------------------------------------------

    def docker_environment(self) -> Mapping[str, str]:
        """Return the environment in which the docker CLI speaks to this daemon."""
        return {
            **os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(self.docker_config),
            "DOCKER_BUILDKIT": "0", "DOCKER_CLI_HINTS": "false",
        }  # fmt: skip

    def docker(self, *argv: str, check: bool = True, input: str | None = None, timeout: float = DEADLINE) -> str:
        """Run the docker CLI and return its standard output without the last newline."""
        done = self.docker_run(*argv, input=input, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(
                f"docker {' '.join(argv)} ended with {done.returncode}: {done.stderr}{done.stdout}\n{self.log()}"
            )
        return done.stdout.removesuffix("\n")

    def docker_run(
        self, *argv: str, input: str | None = None, timeout: float = DEADLINE
    ) -> "subprocess.CompletedProcess[str]":
        """Run the docker CLI and return status, output and errors."""
        return subprocess.run(
            ["docker", *argv], capture_output=True, text=True, input=input, timeout=timeout, check=False,
            env=dict(self.docker_environment()), stdin=subprocess.DEVNULL if input is None else None,
        )  # fmt: skip

    def docker_popen(self, *argv: str, **more: Any) -> "subprocess.Popen[bytes]":
        """Start the docker CLI; the caller ends it."""
        more.setdefault("stdout", subprocess.PIPE)
        more.setdefault("stderr", subprocess.PIPE)
        more.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(["docker", *argv], env=dict(self.docker_environment()), **more)

    @contextlib.contextmanager
    def client(self) -> Iterator[DockerClient]:
        """Return a docker-py client, closed at the end."""
        client = DockerClient(base_url=f"unix://{self.socket}", timeout=int(DEADLINE))
        try:
            yield client
        finally:
            client.close()


@contextlib.contextmanager
def running_moored(
    *arguments: str, supervised: bool = False, prepare: Callable[[Sandbox], None] | None = None
) -> Iterator[Moored]:
    """A sandbox with a running daemon in it; everything ends at the end. On failure its log is in the report.

    ``prepare`` changes the sandbox before the daemon starts.
    """
    with Sandbox() as sandbox:
        if prepare is not None:
            prepare(sandbox)
        moored = Moored(sandbox, list(arguments), supervised)
        try:
            yield moored.start()
        finally:
            if moored.process is not None and moored.process.poll() is None:
                with contextlib.suppress(AssertionError, ProcessLookupError, FileNotFoundError):
                    moored.kill()
            moored.end()
            print(f"--- moored's log ---\n{moored.log()}", file=sys.stderr)
