"""SIGKILL of what keeps containers running, in the machine: agent, shim, sshd, backend, daemon.

May be lost: nothing; of a killed shim its container's process, of a killed crun what it was about to do. Storms of kills need
no machine: they are in tests/integration/restore.
"""

import os
import signal

import pytest

from tests.support.host import wait_ended
from tests.support.images import BUSYBOX_IMAGE
from tests.support.vm import Vm
from tests.system.faults.conftest import Busy, eventually, until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def test_killed_agent_is_back_and_finds_daemon_and_shims(engine_ready: Vm, busy: Busy) -> None:
    """Nothing may be lost: init starts the agent again; shims and daemon live on."""
    before = engine_ready.status().engine
    assert before is not None
    engine_ready.run(f"kill -9 {before.agent.pid}")
    status = until(
        engine_ready, "another agent",
        lambda s: s.state == "ready" and s.engine and s.engine.agent.pid != before.agent.pid,
    )  # fmt: skip
    assert status.engine is not None
    assert status.engine.daemon.pid == before.daemon.pid
    busy.check_untouched()
    busy.check_goes_on()
    assert engine_ready.docker("exec", busy.name, "echo", "in") == "in\n"
    busy.finish()


def test_killed_daemon_and_agent_at_once_lose_nothing(engine_ready: Vm, busy: Busy) -> None:
    """Nothing may be lost."""
    before = engine_ready.status().engine
    assert before is not None
    engine_ready.run(f"kill -9 {before.daemon.pid} {before.agent.pid}")
    until(
        engine_ready, "another agent and daemon",
        lambda s: (
            s.state == "ready"
            and s.engine
            and s.engine.agent.pid != before.agent.pid
            and s.engine.daemon.pid not in (None, before.daemon.pid)
        ),
    )  # fmt: skip
    busy.check_untouched()
    busy.check_goes_on()
    busy.finish()


def test_killed_shim_takes_its_container_along_and_nobody_else(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: the victim's process. Its end is recorded as 137, what it printed is kept, it can be started again."""
    vm = engine_ready
    victim = vm.docker("run", "-d", BUSYBOX_IMAGE, "sh", "-c", "echo last words; sleep 1000").strip()
    eventually("its words", lambda: vm.docker("logs", victim) == "last words\n")
    vm.run(f"kill -9 $(sed 's/.*\"shim_pid\": *\\([0-9]*\\).*/\\1/' /run/moorage/shim/{victim}/shim.json)")
    assert vm.docker("wait", victim).strip() == "137"
    assert vm.docker("logs", victim) == "last words\n"
    busy.check_untouched()
    vm.docker("start", victim)
    eventually("its words again", lambda: vm.docker("logs", victim) == "last words\n" * 2)
    vm.docker("rm", "-f", victim)
    busy.finish()


def test_killed_sshd_is_back_and_the_machine_ready(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: the connections of clients on the host. Nothing in the guest."""
    engine_ready.run("(sleep 0.2; kill -9 $(pidof sshd sshd-session)) > /dev/null 2>&1 &", check=False)
    until(engine_ready, "the connection to break", lambda s: s.state != "ready")
    engine_ready.wait("ready")
    busy.check_untouched()
    busy.finish()


def test_killed_backend_is_replaced_while_containers_print(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: the connections of clients on the host. Nothing in the guest."""
    backend = engine_ready.status().backend.pid
    os.kill(backend, signal.SIGKILL)
    wait_ended(backend)
    engine_ready.wait("ready")
    busy.check_untouched()
    busy.finish()


def test_killed_crun_fails_what_it_was_doing_and_leaves_nothing(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: the create, start or exec whose crun was killed, which fails in a sentence."""
    vm = engine_ready
    left = "ls /run/moorage/shim /run/moorage/crun; find /sys/fs/cgroup -type d | wc -l; ls /proc/sys/net/ipv4/conf"
    vm.docker("run", "--rm", BUSYBOX_IMAGE, "true")
    before = vm.run(left)
    vm.run("(while [ ! -e /run/enough ]; do kill -9 $(pidof crun); usleep 30000; done) > /dev/null 2>&1 &", check=False)
    try:
        runs = [vm.docker("run", "--rm", BUSYBOX_IMAGE, "echo", "well", check=False) for _ in range(4)]
        execs = [vm.docker("exec", busy.name, "echo", "well", check=False) for _ in range(4)]
    finally:
        vm.run("touch /run/enough")
    eventually("the last kill", lambda: not vm.run("pidof crun", check=False))
    vm.run("rm /run/enough")
    for said in runs + execs:  # of an exec, the client is told in its output, since its answer has begun
        assert said in ("", "well\n") or said.startswith("OCI runtime exec failed"), said
    for name in vm.docker("ps", "-aq", "--filter", "status=created", "--filter", "status=exited").split():
        vm.docker("rm", "-f", name)
    assert vm.docker("run", "--rm", BUSYBOX_IMAGE, "echo", "well") == "well\n"
    assert vm.docker("exec", busy.name, "echo", "well") == "well\n"
    eventually("nothing to be left", lambda: vm.run(left) == before)
    busy.check_untouched()
    busy.finish()
