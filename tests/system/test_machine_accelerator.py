"""An accelerator that fails gives way to tcg within seconds, with one warning, remembered."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_host import settings
from moorage_host.control import Controller
from moorage_host.errors import HostError
from moorage_host.machine import accelerator, console
from moorage_host.machine.connection import Connection, choose_uri
from moorage_host.machine.machine import Machine, Started
from moorage_host.machine.place import Progress
from moorage_host.paths import Paths, user_paths
from moorage_host.settings import Settings

from tests.support.host import user_home
from tests.support.vm import image_folder

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

FALLBACK = 15.0  # seconds that a failing accelerator may cost

# Stands for QEMU on a host whose KVM aborts it: everything else is the real one.
ABORTING = """#!/bin/sh
case " $* " in
    *" -accel kvm "*) echo "{name}: error: failed to set MSR 0x10a to 0x69" >&2; kill -ABRT $$ ;;
esac
exec {real} "$@"
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Paths]:
    """One for the module: libvirt opens one embedded driver a process."""
    with user_home():
        yield user_paths()


@pytest.fixture
def paths(home: Paths) -> Paths:
    """A user whose host has forgotten which accelerators failed."""
    home.accelerators.unlink(missing_ok=True)
    return home


def small_settings() -> Settings:
    return Settings(image=str(image_folder()), memory_mib=1024, cpus=1, disk_gib=4)


async def started(paths: Paths, cpu_model: str = "") -> tuple[Started, list[str], Started]:
    """Start a machine with the accelerator left to choose, then once more; both results, and the steps."""
    connection = Connection(choose_uri("auto", paths.embedded_root), paths.embedded_root)
    machine = Machine(paths, connection)
    chosen = small_settings()
    steps: list[str] = []
    # libvirt asks QEMU once what it can do, which is no part of the fallback.
    await machine.power("moorage")
    try:
        first = await machine.start(chosen, steps.append, cpu_model=cpu_model)
        await machine.kill("moorage")
        second = await machine.start(chosen, steps.append, cpu_model=cpu_model)
        return first, steps, second
    finally:
        await machine.delete("moorage")
        await asyncio.to_thread(connection.close)


def assert_fell_back(result: tuple[Started, list[str], Started]) -> None:
    first, steps, second = result
    assert first.accelerator == "tcg"
    assert "does not work on this host" in first.warning
    assert len([step for step in steps if "does not work" in step]) == 1
    assert (second.accelerator, second.warning) == ("tcg", "")
    assert 0 < first.fallback_seconds <= FALLBACK


async def test_kvm_that_aborts_qemu_gives_way_to_tcg(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accelerator.emulator("amd64")
    wrapper = tmp_path / real.name
    wrapper.write_text(ABORTING.format(name=real.name, real=real))
    wrapper.chmod(0o755)
    monkeypatch.setattr(accelerator, "emulator", lambda _arch: wrapper)
    monkeypatch.setattr(accelerator, "hardware", lambda _arch: "kvm")
    assert_fell_back(await started(paths))


async def test_the_hosts_own_kvm_works_or_gives_way(paths: Paths) -> None:
    result = await started(paths)
    if result[0].accelerator == "tcg" and accelerator.hardware("amd64"):
        assert_fell_back(result)


async def test_kvm_that_stops_the_guest_later_gives_way_to_tcg(paths: Paths) -> None:
    """With a plain processor model a nested KVM starts and stops with an internal error; one that works simply works."""
    result = await started(paths, cpu_model="Westmere")
    if result[0].accelerator == "tcg" and accelerator.hardware("amd64"):
        assert_fell_back(result)


async def test_kvm_that_stops_a_guest_which_had_begun_to_run_is_replaced_and_the_engine_answers(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is made to take KVM for good, so that its internal error comes, if this KVM has one, while the guest is waited for."""
    connection = Connection(choose_uri("auto", paths.embedded_root), paths.embedded_root)

    class Westmere(Machine):
        async def start(
            self, settings: Settings, progress: Progress, *, cpu_model: str = "", use_saved: bool = True
        ) -> Started:
            return await super().start(settings, progress, cpu_model="Westmere", use_saved=use_saved)

    settings.save(small_settings(), paths.settings)
    machine = Westmere(paths, connection)
    controller = Controller(paths, tmp_path, machine)
    replaced: dict[str, float] = {}

    async def watch() -> None:
        async for status in controller.watch():
            if "does not work on this host" in status.step:
                replaced.setdefault("seen", time.monotonic())
            elif status.warning and status.accelerator == "tcg":
                replaced.setdefault("running", time.monotonic())

    tasks = [asyncio.create_task(controller.run()), asyncio.create_task(watch())]
    steps: list[str] = []
    try:
        with monkeypatch.context() as patched:
            patched.setattr(console, "size", lambda _path: 1)
            await controller.start(steps.append)
        status = controller.status()
        assert status.state == "ready"
        if status.accelerator == "tcg" and accelerator.hardware("amd64"):
            assert "stopped the running machine" in status.warning
            assert replaced["running"] - replaced["seen"] <= FALLBACK
            now = accelerator.circumstances(accelerator.emulator("amd64"))
            assert accelerator.Memory(paths.accelerators, now).failure("kvm")
        await controller.delete(steps.append)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_machine_that_stays_silent_is_given_up(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "size", lambda _path: 0)
    connection = Connection(choose_uri("auto", paths.embedded_root), paths.embedded_root)
    machine = Machine(paths, connection)
    monkeypatch.setattr("moorage_host.machine.machine.SILENCE", 3.0)
    try:
        with pytest.raises(HostError, match="said nothing"):
            await machine.start(
                Settings(image=str(image_folder()), accelerator="tcg", memory_mib=1024, cpus=1, disk_gib=4),
                lambda _step: None,
            )
        assert (await machine.power("moorage")).value == "off"
    finally:
        await machine.delete("moorage")
        await asyncio.to_thread(connection.close)


async def test_a_name_that_is_taken_at_libvirt_is_left_alone(paths: Paths) -> None:
    connection = Connection(choose_uri("auto", paths.embedded_root), paths.embedded_root)
    foreign = "<domain type='qemu'><name>moorage</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    machine = Machine(paths, connection)
    try:
        await connection.call(lambda one: one.defineXML(foreign))
        with pytest.raises(HostError, match="not Moorage's") as caught:
            await machine.start(Settings(image=str(image_folder()), accelerator="tcg", disk_gib=4), lambda _step: None)
        assert "name" in caught.value.hint
        assert await connection.call(lambda one: len(one.listAllDomains())) == 1
    finally:
        await connection.call(lambda one: one.lookupByName("moorage").undefine())
        await asyncio.to_thread(connection.close)
