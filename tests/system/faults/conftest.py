"""A busy container in the shared machine: what it prints is numbered, so that a lost or doubled line is seen."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from moorage_host.api import MachineStatus
from moorage_host.machine.connection import Connection
from moorage_host.machine.machine import Machine

from tests.support.host import wait_ended
from tests.support.images import BUSYBOX_IMAGE
from tests.support.vm import Vm

#: Two streams, about two hundred lines a second on each.
SCRIPT = (
    "trap 'exit 3' TERM; i=0; while [ ! -e /stop ]; do n=0; while [ $n -lt 20 ]; do n=$((n+1)); i=$((i+1)); echo out $i; "
    "echo err $i >&2; done; sleep 0.1; done; exit 7"
)


@dataclass
class Busy:
    """One busy container and what must stay true of it."""

    vm: Vm
    name: str
    before: str = ""
    #: Lines that must be in the log, at the least.
    least: int = 0

    def state(self) -> str:
        """Process, start and status."""
        return self.vm.docker("inspect", "-f", "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}}", self.name)

    def check_untouched(self) -> None:
        """The same process runs, and every line is there once."""
        assert self.state() == self.before
        self.check_log()

    def check_log(self) -> int:
        """Every line is there once, in order, and none that was there before is gone; returns how many there are."""
        text = self.vm.docker("logs", self.name)
        lines = text.splitlines()
        wanted = [f"out {number}" for number in range(1, len(lines) + 1)]
        assert lines == wanted, next((pair for pair in zip(lines, wanted, strict=True) if pair[0] != pair[1]), None)
        assert len(lines) >= self.least
        self.least = len(lines)
        return len(lines)

    def check_goes_on(self) -> None:
        """More lines come."""
        before = self.check_log()
        eventually("more lines", lambda: self.check_log() > before)

    def finish(self) -> None:
        """Let it end: its exit code is right and its log whole."""
        self.vm.docker("exec", self.name, "touch", "/stop", check=False)
        assert self.vm.docker("wait", self.name).strip() == "7"
        self.check_log()


def eventually(what: str, condition: Callable[[], object], deadline: float = 120) -> None:
    """Wait for a condition that no event tells of."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline:.0f} s in vain: {what}"
        time.sleep(0.3)


def until(vm: Vm, what: str, condition: Callable[[MachineStatus], object], deadline: float = 180) -> MachineStatus:
    """The first status that fulfils the condition, of those that the backend tells."""
    end = time.monotonic() + deadline
    for status in vm.client.watch():
        if condition(status):
            return status
        assert time.monotonic() < end, f"waited {deadline:.0f} s in vain: {what}; last: {status.state} {status.message}"
    raise AssertionError("the backend ended")


def suspend(vm: Vm) -> None:
    """Pause the machine through libvirt, as `virsh suspend` does, while no backend has it."""
    status = vm.status()
    os.kill(status.backend.pid, signal.SIGKILL)
    wait_ended(status.backend.pid)
    connection = Connection(status.libvirt_uri, vm.paths.embedded_root)
    identity = Machine(vm.paths, connection).record().uuid
    code = (
        "import sys; from pathlib import Path; from moorage_host.machine.connection import Connection; import asyncio\n"
        "c = Connection(sys.argv[1], Path(sys.argv[2]))\n"
        "asyncio.run(c.call(lambda v: v.lookupByUUIDString(sys.argv[3]).suspend())); c.close()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, status.libvirt_uri, str(vm.paths.embedded_root), identity], check=True, timeout=120
    )


@pytest.fixture
def busy(engine_ready: Vm) -> Iterator[Busy]:
    """A busy container; at the end it is asked to end, and removed."""
    vm = engine_ready
    vm.docker("rm", "-f", "busy", check=False)
    vm.docker("run", "-d", "--name", "busy", BUSYBOX_IMAGE, "sh", "-c", SCRIPT)
    found = Busy(vm, "busy")
    found.before = found.state()
    yield found
    with contextlib.suppress(Exception):
        vm.client.start()
    vm.docker("rm", "-f", "busy", check=False)
