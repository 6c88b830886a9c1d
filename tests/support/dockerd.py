"""Debian's dockerd beside moored, as the peer of measurements: unpacked, never installed, run in a sandbox of its own.

The packages are unpacked once into ``.cache/tools`` of the checkout with mmdebstrap's extract variant.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.moored import DEADLINE, Sandbox, wait_for
from tests.support.openapi import Api
from tests.support.packages import unpacked

PACKAGES = "docker.io,containerd,runc,iptables,docker-cli,docker-compose"
SUITE = "trixie"


#: Makes a folder the root of this process's mount namespace, says its pid, and waits to be killed.
_HOLD = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
if libc.pivot_root(b".", b".") != 0 or libc.umount2(b".", 2) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print(os.getpid(), flush=True)
signal.pause()
"""


def tools_root() -> Path:
    """Return the folder with the unpacked packages, made on first use (about 350 MB)."""
    return unpacked("dockerd-root", SUITE, PACKAGES, "usr/sbin/iptables", _complete)


def _complete(root: Path) -> None:
    """Add what installing would have."""
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "run", "root", "var/run", "mnt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"):
        link = root / "usr/sbin" / name
        if not link.exists():
            link.symlink_to("xtables-nft-multi")


@dataclass
class Dockerd:
    """dockerd with a containerd of its own, both in one sandbox, so that dockerd alone can be killed."""

    sandbox: Sandbox
    arguments: list[str] = field(default_factory=list)
    containerd: "subprocess.Popen[bytes] | None" = None
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        root = tools_root()
        self.base = self.sandbox.root / "peer"
        self.base.mkdir(exist_ok=True)
        self.socket = self.base / "docker.sock"
        self.log_file = self.sandbox.root / "dockerd.log"
        self.sandbox.run("mount", "--bind", str(root), str(root))  # dockerd remounts / private: it has to be a mount
        for name in ("proc", "sys", "dev"):
            self.sandbox.run("mount", "--rbind", f"/{name}", f"{root}/{name}")
        self.sandbox.run("mount", "-t", "tmpfs", "tmpfs", f"{root}/run")
        self.sandbox.run("mkdir", "-p", f"{root}{self.base}")
        self.sandbox.run("mount", "--bind", str(self.base), f"{root}{self.base}")
        self.sandbox.run(
            "sh",
            "-c",
            "umount /sys/fs/cgroup/unified 2>/dev/null; umount " + f"{root}/sys/fs/cgroup/unified",
            check=False,
        )
        self._inside = self._enter_root(root)

    def _enter_root(self, root: Path) -> str:
        """Start a process that holds a mount namespace whose root is ours; return its pid inside the sandbox.

        A chroot would not do: runc finds the mount namespace's root, not ours, when it executes something in a container.
        """
        command = self.sandbox.command("unshare", "--mount", sys.executable, "-c", _HOLD, root)
        self._holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        with self._holder.stdout as stdout:
            pid = stdout.readline().decode().strip()
        if not pid:
            raise AssertionError(f"cannot make {root} the root of a mount namespace")
        return pid

    def _spawn(self, *argv: str) -> "subprocess.Popen[bytes]":
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                self.sandbox.command("nsenter", "-t", self._inside, "-m", "--", *argv),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )  # fmt: skip

    @property
    def api(self) -> Api:
        """Client of the peer; it speaks an older API, so replies are not checked against ours."""
        return Api(self.socket, version="1.45")

    def start(self) -> "Dockerd":
        """Start containerd (once) and dockerd, and wait for the API."""
        address = f"{self.base}/containerd.sock"
        if self.containerd is None:
            self.containerd = self._spawn(
                "containerd",
                "--address",
                address,
                "--root",
                f"{self.base}/containerd",
                "--state",
                f"{self.base}/containerd-state",
            )
            wait_for("containerd's socket", Path(address).exists)
        self.spawn()
        try:
            wait_for("dockerd to answer", self.answers)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_file.read_text()[-8000:]}") from None
        return self

    def spawn(self) -> None:
        """Start dockerd without waiting; containerd has to run."""
        self.process = self._spawn(
            "dockerd", "--containerd", f"{self.base}/containerd.sock", "--data-root", f"{self.base}/data", "--exec-root", f"{self.base}/exec",
            "--pidfile", f"{self.base}/dockerd.pid", "--host", f"unix://{self.socket}", "--live-restore",
            "--cgroup-parent", f"/{self.sandbox.root.name}", *self.arguments,
        )  # fmt: skip

    def answers(self) -> bool:
        """Whether /_ping answers now."""
        try:
            return self.api.call("GET", "/_ping", check=False, timeout=10).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL dockerd alone; containerd and the containers go on."""
        assert self.process is not None
        pid = int((self.base / "dockerd.pid").read_text())
        self.sandbox.run("kill", f"-{int(signal.SIGKILL)}", str(pid))
        self.process.wait(DEADLINE)
        (self.base / "dockerd.pid").unlink(missing_ok=True)

    def close(self) -> None:
        """Kill dockerd and containerd; the sandbox ends the rest."""
        for process in (self.process, self.containerd, self._holder):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(DEADLINE)

    def docker(self, *argv: str, timeout: float = DEADLINE) -> str:
        """Run the docker CLI against the peer and return its standard output without the last newline."""
        done = self.docker_run(*argv, timeout=timeout)
        if done.returncode != 0:
            raise AssertionError(f"docker {' '.join(argv)} ended with {done.returncode}: {done.stderr}")
        return done.stdout.removesuffix("\n")

    def docker_run(self, *argv: str, timeout: float = DEADLINE) -> "subprocess.CompletedProcess[str]":
        """Run the docker CLI against the peer and return status, output and errors."""
        config = self.base / "docker-config"
        config.mkdir(exist_ok=True)
        return subprocess.run(
            ["docker", *argv], capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(config), "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip
