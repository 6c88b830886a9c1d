"""What the controller does when the machine changes by itself. libvirt's answers are played; everything else is real."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from moorage_host.api import MachineStatus
from moorage_host.control import Controller
from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder
from moorage_host.machine.connection import Connection
from moorage_host.machine.machine import Machine, Power, Record, Started
from moorage_host.machine.place import Progress
from moorage_host.paths import Paths, user_paths
from moorage_host.settings import Settings

from tests.support.host import user_home

pytestmark = pytest.mark.timeout(120)


class PlayedMachine(Machine):
    """A machine whose libvirt says what the test wants."""

    def __init__(self, paths: Paths, accelerator: str) -> None:
        super().__init__(paths, Connection("test:///default", paths.embedded_root))
        private_folder(paths.machine)
        record = Record("6ba7b810-9dad-11d1-80b4-00c04fd430c8", accelerator=accelerator, arch="amd64")
        paths.machine_record.write_text(json.dumps({"format": 1} | dataclasses.asdict(record)))
        self.says = (Power.RUNNING, "running: booted")
        self.asked: list[str] = []
        self.asked_why = asyncio.Event()
        self.started = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def power(self, name: str) -> Power:
        return self.says[0]

    async def reason(self, name: str) -> str:
        told = self.says[1]
        self.asked_why.set()
        await self.answers.wait()
        return told

    async def ssh_port(self, name: str) -> int:
        raise HostError("no port yet", code=ErrorCode.UNAVAILABLE)

    async def kill(self, name: str) -> None:
        self.asked.append("kill")
        self.says = (Power.OFF, "off: destroyed")

    async def resume(self, name: str) -> None:
        self.asked.append("resume")

    async def start(
        self, settings: Settings, progress: Progress, *, cpu_model: str = "", use_saved: bool = True
    ) -> Started:
        self.asked.append("start")
        self.started.set()
        self.says = (Power.RUNNING, "running: booted")
        return Started("tcg", 1, "")


@pytest.fixture
def paths() -> Iterator[Paths]:
    with user_home():
        yield user_paths()


@pytest.fixture
async def controllers(paths: Paths, tmp_path: Path) -> AsyncIterator[dict[str, tuple[Controller, PlayedMachine]]]:
    """A controller that watches a machine running with `accelerator`, made on first use."""

    class Made(dict[str, tuple[Controller, PlayedMachine]]):
        def __missing__(self, accelerator: str) -> tuple[Controller, PlayedMachine]:
            machine = PlayedMachine(paths, accelerator)
            controller = Controller(paths, tmp_path, machine)
            tasks.append(asyncio.create_task(controller.run()))
            self[accelerator] = (controller, machine)
            return self[accelerator]

    tasks: list[asyncio.Task[None]] = []
    yield Made()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(controller: Controller, state: str, words: str = "") -> MachineStatus:
    async for status in controller.watch():
        if status.state == state and words in status.message + status.warning:
            return status
    raise AssertionError("the controller ended")


async def test_kvm_that_stops_the_running_guest_is_replaced_and_remembered(
    controllers: dict[str, tuple[Controller, PlayedMachine]], paths: Paths
) -> None:
    controller, machine = controllers["kvm"]
    await until(controller, "starting")
    machine.says = (Power.PAUSED, "paused: unknown")
    status = await until(controller, "starting", "does not work on this host")
    assert machine.asked == ["kill", "start"]
    assert "tcg" in status.warning
    assert "paused: unknown" in json.loads(paths.accelerators.read_text())["failures"]["kvm"]["reason"]


async def test_machine_that_was_being_restored_when_the_backend_died_is_cut(
    controllers: dict[str, tuple[Controller, PlayedMachine]],
) -> None:
    """Nothing in there has run, and resuming it would not help."""
    controller, machine = controllers["tcg"]
    machine.says = (Power.PAUSED, "paused: starting up")
    await until(controller, "stopped")
    assert machine.asked == ["kill"]


async def test_machine_that_libvirt_finds_never_to_have_been_whole_is_started(
    controllers: dict[str, tuple[Controller, PlayedMachine]],
) -> None:
    """libvirt's embedded driver says `running` of it until it has looked."""
    controller, machine = controllers["tcg"]
    await until(controller, "starting")
    start = asyncio.create_task(controller.start(lambda _step: None))
    await asyncio.sleep(0)
    machine.says = (Power.OFF, "off: daemon")
    async for status in controller.watch():
        if "start" in machine.asked and status.state == "starting":
            break
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)


async def test_full_host_disk_is_waited_out(controllers: dict[str, tuple[Controller, PlayedMachine]]) -> None:
    controller, machine = controllers["kvm"]
    await until(controller, "starting")
    machine.says = (Power.PAUSED, "paused: ioerror")
    await until(controller, "paused", "disk has space")
    machine.says = (Power.RUNNING, "running: unpaused")
    await until(controller, "starting")
    assert set(machine.asked) == {"resume"}


async def test_machine_that_the_user_paused_is_left_so(
    controllers: dict[str, tuple[Controller, PlayedMachine]],
) -> None:
    controller, machine = controllers["kvm"]
    await until(controller, "starting")
    machine.says = (Power.PAUSED, "paused: user")
    await until(controller, "paused", "paused: user")
    assert machine.asked == []


async def test_crash_is_told_apart_from_a_power_off(controllers: dict[str, tuple[Controller, PlayedMachine]]) -> None:
    controller, machine = controllers["tcg"]
    await until(controller, "starting")
    machine.says = (Power.CRASHED, "crashed: panicked")
    await until(controller, "failed", "panicked")


async def test_power_off_from_inside_is_said(controllers: dict[str, tuple[Controller, PlayedMachine]]) -> None:
    controller, machine = controllers["tcg"]
    await until(controller, "starting")
    machine.says = (Power.OFF, "off: shutdown")
    await until(controller, "stopped", "from inside")


async def test_commands_exclude_each_other(controllers: dict[str, tuple[Controller, PlayedMachine]]) -> None:
    controller, machine = controllers["tcg"]
    await until(controller, "starting")
    starting = asyncio.create_task(controller.start(lambda _step: None))
    await asyncio.sleep(0)
    with pytest.raises(HostError, match="another command is starting the machine"):
        await controller.stop(lambda _step: None)
    machine.says = (Power.OFF, "off: destroyed")
    with pytest.raises(HostError):
        await starting


async def test_what_is_told_of_a_machine_that_was_killed_is_not_held_against_the_next_start(
    controllers: dict[str, tuple[Controller, PlayedMachine]],
) -> None:
    controller, machine = controllers["tcg"]
    await until(controller, "starting")
    machine.answers.clear()
    machine.says = (Power.OFF, "off: destroyed")
    await machine.asked_why.wait()
    await controller.kill(lambda _step: None)
    start = asyncio.create_task(controller.start(lambda _step: None))
    await until(controller, "starting")
    await machine.started.wait()
    machine.answers.set()
    for _turn in range(20):
        await asyncio.sleep(0)
        assert controller.state.value == "starting"
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
