"""A user with a machine of his own, for tests that need the real thing: backend, libvirt, QEMU, engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docker import DockerClient
from moorage_host.client import Client, MachineStatus
from moorage_host.machine.accelerator import native_arch
from moorage_host.paths import Paths, user_paths
from moorage_images.build import build_image, is_current

from tests.support.host import backend_pid, user_home, wait_ended
from tests.support.moored import wait_for

CHECKOUT = Path(__file__).parents[2]
IMAGE = CHECKOUT / ".cache" / "image"
ARTIFACTS = CHECKOUT / "artifacts"


def image_folder() -> Path:
    """The guest image of this checkout, built when it is missing or older than the code in it."""
    named = os.environ.get("MOORAGE_TEST_IMAGE")
    if named:
        return Path(named)
    arch = native_arch()
    if not is_current(IMAGE, arch):
        IMAGE.mkdir(parents=True, exist_ok=True)
        build_image(arch, IMAGE)
    return IMAGE


alive: list[Vm] = []
"""The machines that tests have now; whose logs are kept when one fails."""


@dataclass
class Vm:
    """One machine: its folders, its client, and ways to look inside."""

    paths: Paths
    client: Client

    def docker(self, *arguments: str, timeout: float = 240, check: bool = True) -> str:
        """The docker CLI against the machine's engine; its output, errors in the failure's text."""
        result = subprocess.run(
            ["docker", "--host", f"unix://{self.paths.docker_socket}", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert not check or result.returncode == 0, f"docker {' '.join(arguments)}: {result.stderr or result.stdout}"
        return result.stdout

    def api(self) -> DockerClient:
        """docker-py against the machine's engine."""
        return DockerClient(base_url=f"unix://{self.paths.docker_socket}", timeout=240)

    def run(self, command: str, *, check: bool = True, timeout: float = 240) -> str:
        """A shell command in the guest, as root; its output."""
        result = moorage("ssh", "--", "sh", "-c", command, timeout=timeout)
        assert not check or result.returncode == 0, f"{command!r} in the guest: {result.stderr or result.stdout}"
        return result.stdout

    def status(self) -> MachineStatus:
        """The status, the agent asked anew."""
        return self.client.status()

    def wait(self, state: str) -> MachineStatus:
        """Until the machine is in `state`; the test's own time limit ends it otherwise."""
        for status in self.client.watch():
            if status.state == state:
                return status
        raise AssertionError("the backend ended")

    def keep_logs(self, name: str) -> None:
        """Leave console, backend, agent and daemon logs in artifacts/<name>/."""
        folder = ARTIFACTS / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.paths.console_log, self.paths.backend_log):
            if path.exists():
                shutil.copy(path, folder / path.name)
        for what in ("agent", "daemon"):
            with contextlib.suppress(Exception):
                (folder / f"{what}.log").write_text(self.client.logs(what, 2000))
        with contextlib.suppress(Exception):
            (folder / "status.json").write_text(self.client.status().model_dump_json(indent=2))


def moorage(*arguments: str, timeout: float = 240, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command line as a user runs it, in the folders that `user_home` set."""
    program = Path(sys.executable).with_name("moorage")
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        input=stdin if stdin is not None else "",
    )


def wait_saved(paths: Paths) -> None:
    """Until the machine, which has been stopped, has the saved state that its next start goes on from."""
    wait_for("the saved state", lambda: paths.saved_state.exists() and not any(paths.machine.glob("*.new")), 300)


@contextlib.contextmanager
def vm_of_its_own(**settings: object) -> Iterator[Vm]:
    """A user without a machine yet; whatever machine there is at the end is removed with its backend."""
    with user_home():
        paths = user_paths()
        client = Client(paths)
        vm = Vm(paths, client)
        alive.append(vm)
        client.change_settings(
            **({"image": str(image_folder()), "memory_mib": 1536, "cpus": 2, "disk_gib": 8} | settings)
        )
        try:
            yield vm
        finally:
            alive.remove(vm)
            with contextlib.suppress(Exception):
                client.kill()
            client.delete()
            pid = backend_pid(paths)
            client.stop_backend()
            if pid is not None:
                wait_ended(pid)
