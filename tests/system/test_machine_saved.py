"""A saved start: what is saved after a stop is what the next start goes on from, a new boot in all that matters."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from moorage_host.client import Client

from tests.support.host import wait_ended
from tests.support.images import BUSYBOX_IMAGE, busybox_archive
from tests.support.moored import wait_for
from tests.support.vm import Vm, vm_of_its_own, wait_saved

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

# boot's id, randomness of the kernel's, randomness of the daemon's (an id that it made), clock, clock of the hardware
LOOK = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx8; cat /sys/class/rtc/rtc0/since_epoch"


@dataclass
class Seen:
    """What tells one boot from another, and how far its clocks were off in seconds."""

    unique: set[str]
    drift: float
    hardware_drift: float


def look(vm: Vm) -> Seen:
    boot, random, hardware = vm.run(LOOK).split("\n")[:3]
    volume = vm.docker("volume", "create").strip()
    clock = vm.status().engine
    assert clock is not None
    return Seen({boot, random.strip(), volume}, clock.clock - time.time(), int(hardware) - time.time())


@pytest.fixture(scope="module")
def vm() -> Iterator[Vm]:
    """A machine that has been started once, by booting, and runs a container that comes back."""
    with vm_of_its_own(accelerator="tcg") as found:
        steps: list[str] = []
        found.client.start(steps.append)
        assert not any("restoring" in step for step in steps), steps
        assert not list(found.paths.machine.glob("saved.*")), "the first start does not save"
        found.docker("load", "-i", str(busybox_archive()))
        found.docker("run", "-d", "--name", "kept", "--restart", "always", BUSYBOX_IMAGE, "sleep", "1000000")
        yield found


def restored(vm: Vm) -> bool:
    """Whether the machine that runs goes on from a saved state."""
    return "saved here; restored" in vm.paths.console_log.read_text(errors="replace")


def wait_container(vm: Vm) -> None:
    end = time.monotonic() + 120
    while vm.docker("inspect", "-f", "{{.State.Running}}", "kept").strip() != "true":
        assert time.monotonic() < end, "the container did not come back"
        time.sleep(0.2)


def test_each_start_is_a_new_boot_with_the_right_time_and_the_data_of_the_last(vm: Vm) -> None:
    seen = [look(vm)]
    vm.run("echo in order > /var/lib/moorage/mark")
    vm.client.stop()
    last_words = vm.paths.console_log.read_text(errors="replace")
    wait_saved(vm.paths)
    assert vm.paths.console_log.read_text(errors="replace") == last_words
    assert vm.status().state == "stopped"
    assert vm.paths.saved_state.stat().st_mode & 0o777 == 0o600
    steps: list[str] = []
    began = vm.client.start(steps.append).since
    assert any("restoring" in step for step in steps), steps
    assert vm.run("cat /var/lib/moorage/mark") == "in order\n"
    seen.append(look(vm))
    wait_container(vm)
    state = json.loads(vm.docker("inspect", "-f", "{{json .State}}", "kept"))
    assert state["StartedAt"] > time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began - 60))
    vm.run("echo cut > /var/lib/moorage/mark; sync")
    vm.client.kill()
    vm.client.start()
    assert restored(vm)
    assert vm.run("cat /var/lib/moorage/mark") == "cut\n"
    seen.append(look(vm))
    wait_container(vm)
    assert len(set[str]().union(*(one.unique for one in seen))) == 9, seen
    assert all(abs(one.drift) < 5 and abs(one.hardware_drift) < 5 for one in seen), seen


def test_console_tells_of_both_boot_and_restore(vm: Vm) -> None:
    text = vm.paths.console_log.read_text(errors="replace")
    steps = ["agent starts", "held", "saved here; restored at", "released", "data disk: mounted", "engine ready"]
    places = [text.index(step) for step in steps]
    assert places == sorted(places), text


def test_damaged_state_gives_way_to_a_boot_with_one_warning(vm: Vm) -> None:
    vm.client.stop()
    before = vm.paths.saved_state.stat()
    with vm.paths.saved_state.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"\xa5" * (1 << 20))
    os.utime(vm.paths.saved_state, ns=(before.st_atime_ns, before.st_mtime_ns))
    steps: list[str] = []
    status = vm.client.start(steps.append)
    assert status.state == "ready" and "saved state cannot be used" in status.warning
    assert len([step for step in steps if "boots instead" in step]) == 1, steps
    assert not restored(vm) and not vm.paths.saved_state.exists()
    wait_container(vm)


def wait_preparing(vm: Vm) -> None:
    """Until the machine that is off is being prepared, and its guest boots."""
    console = vm.paths.machine / "saved.console.new"
    wait_for("the preparation", lambda: console.exists() and console.stat().st_size > 0, 300)


def test_start_in_the_middle_of_a_preparation_boots_and_leaves_nothing_of_it(vm: Vm) -> None:
    vm.client.stop()
    wait_preparing(vm)
    assert vm.status().state == "stopped"
    steps: list[str] = []
    assert vm.client.start(steps.append).state == "ready"
    assert not restored(vm) and not vm.status().warning
    assert not list(vm.paths.machine.glob("saved.*.new"))
    wait_container(vm)


def test_machine_that_a_killed_backend_was_preparing_is_nobodys(vm: Vm) -> None:
    vm.client.stop()
    wait_preparing(vm)
    backend = vm.status().backend.pid
    os.kill(backend, signal.SIGKILL)
    wait_ended(backend)
    assert vm.status().state == "stopped"
    assert not list(vm.paths.machine.glob("saved.*.new"))
    assert vm.client.start().state == "ready"
    assert not restored(vm)
    wait_container(vm)


def test_start_works_after_a_backend_that_was_killed_while_it_restored(vm: Vm) -> None:
    """Whatever it left of machine and files is taken over, or made anew."""
    vm.client.stop()
    wait_saved(vm.paths)
    backend = vm.status().backend.pid
    there = threading.Event()

    def start() -> None:
        def step(text: str) -> None:
            if "restoring the machine" in text:
                there.set()

        try:
            Client(vm.paths).start(step)
        except Exception:  # its backend dies
            there.set()

    thread = threading.Thread(target=start)
    thread.start()
    assert there.wait(300)
    os.kill(backend, signal.SIGKILL)
    wait_ended(backend)
    thread.join()
    assert vm.client.start().state == "ready"
    wait_container(vm)
