"""The ladder: vm_defined, vm_booted, engine_ready, container_running. One machine serves a whole run.

A test that breaks its machine, or changes its life, takes `own_vm`. When a test fails, what the machine's processes
said is kept in artifacts/.
"""

import re
from collections.abc import Iterator

import pytest

from tests.support.images import BUSYBOX_IMAGE, busybox_archive
from tests.support.vm import Vm, alive, vm_of_its_own


@pytest.fixture(scope="session")
def vm_defined() -> Iterator[Vm]:
    """A user with settings and an image, and no machine yet."""
    with vm_of_its_own() as vm:
        yield vm


@pytest.fixture(scope="session")
def vm_booted(vm_defined: Vm) -> Vm:
    """The machine runs; start waits for the engine too, so what this adds to `engine_ready` is only the name of the rung."""
    vm_defined.client.start()
    return vm_defined


@pytest.fixture
def engine_ready(vm_booted: Vm) -> Vm:
    """The engine answers, also after a test that killed it, and has the busybox image."""
    if vm_booted.status().state != "ready":
        vm_booted.client.start()
    if not vm_booted.docker("images", "-q", BUSYBOX_IMAGE):
        vm_booted.docker("load", "-i", str(busybox_archive()))
    return vm_booted


@pytest.fixture
def container_running(engine_ready: Vm) -> Iterator[str]:
    """Id of a container that logs twenty numbered lines a second."""
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"
    container = engine_ready.docker("run", "-d", BUSYBOX_IMAGE, "sh", "-c", script).strip()
    yield container
    engine_ready.docker("rm", "-f", container, check=False)


@pytest.fixture
def own_vm() -> Iterator[Vm]:
    """A user of this test alone, without a machine yet, which boots: saving it for one start would only take time."""
    with vm_of_its_own(saved_start="off") as vm:
        yield vm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep the logs of the machine that a failed test used, before its fixtures go."""
    report = yield
    if call.when in ("setup", "call") and call.excinfo is not None:
        for vm in alive:
            vm.keep_logs(re.sub(r"[^\w.-]+", "_", item.name))
    return report
