"""What happens to the machine as a whole: its network, its clock, its pauses, its power."""

import json
import subprocess
import time

import pytest

from tests.support.images import BUSYBOX_IMAGE
from tests.support.vm import Vm
from tests.system.faults.conftest import Busy, eventually, suspend, until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

#: Drops everything between host and guest for some seconds.
_CUT = (
    "nft 'add table inet cut; add chain inet cut i {{ type filter hook input priority -300; }}; "
    "add rule inet cut i iifname eth0 drop' && (sleep {seconds}; nft delete table inet cut) > /dev/null 2>&1 &"
)


def test_ssh_cut_for_a_while_is_said_and_heals_by_itself(engine_ready: Vm, busy: Busy) -> None:
    """Nothing may be lost: the connection itself outlives the cut, and a client that follows a log misses nothing."""
    vm = engine_ready
    follow = ["docker", "--host", f"unix://{vm.paths.docker_socket}", "logs", "-f", busy.name]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as follower:
        assert follower.stdout is not None
        try:
            assert follower.stdout.readline() == "out 1\n"
            vm.run(_CUT.format(seconds=20))
            status = until(vm, "the cut to be noticed", lambda s: s.state != "ready" and s.message)
            assert "does not answer" in status.message
            vm.wait("ready")
            busy.check_untouched()
            busy.finish()
            lines = ["out 1", *follower.stdout.read().splitlines()]
            assert lines == [f"out {number}" for number in range(1, len(lines) + 1)]
            assert len(lines) >= busy.least
            assert follower.wait(60) == 0
        finally:
            follower.kill()


def test_dead_ssh_session_is_replaced(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: the connections of clients on the host. A session that hangs never ends by itself."""
    vm = engine_ready
    hanging = vm.run("pidof sshd-session").split()
    vm.run("(sleep 0.2; kill -STOP $(pidof sshd-session)) > /dev/null 2>&1 &", check=False)
    until(vm, "the silence to be noticed", lambda s: s.state != "ready")
    vm.wait("ready")
    vm.run(f"kill -9 {' '.join(hanging)}", check=False)
    busy.check_untouched()
    busy.finish()


def test_paused_machine_says_so_and_start_lets_it_go_on(engine_ready: Vm, busy: Busy) -> None:
    """Nothing may be lost: to the guest no time has passed until the host gives it the right one."""
    vm = engine_ready
    suspend(vm)
    status = until(vm, "the pause to be seen", lambda s: s.state == "paused")
    assert "moorage start" in status.message
    vm.client.start()
    busy.check_untouched()
    eventually("the guest's clock", lambda: abs(float(vm.run("date +%s")) - time.time()) < 5)
    busy.finish()


def test_clock_jumps_leave_logs_health_and_restarts_sane(engine_ready: Vm, busy: Busy) -> None:
    """May be wrong: times of what happens until the host sets the clock right, and log times until the jump is reached again."""
    vm = engine_ready
    vm.docker(
        "run", "-d", "--name", "well", "--health-cmd", "true", "--health-interval", "1s", BUSYBOX_IMAGE, "sleep", "1000"
    )
    vm.docker("run", "-d", "--name", "again", "--restart", "always", BUSYBOX_IMAGE, "sh", "-c", "sleep 1; exit 4")
    for jump in ("+86400", "-86400"):
        probes, starts = _probes(vm), _restarts(vm)
        vm.run(f"date -s @$(($(date +%s) {jump}))")
        eventually("the guest's clock", lambda: abs(float(vm.run("date +%s")) - time.time()) < 5)
        eventually("new probes", lambda p=probes: _probes(vm) not in ("", p), 30)  # type: ignore[misc]
        eventually("another restart", lambda s=starts: _restarts(vm) > s, 90)  # type: ignore[misc]
        name = "named-before" if jump == "+86400" else "named-after"
        vm.docker("rename", "well", name)
        vm.docker("rename", name, "well")
        until = str(int(time.time()) + 2)  # the CLI cuts "now" down to whole seconds
        told = vm.docker("events", "--since", "60s", "--until", until, "--filter", "event=rename")
        assert f"name={name}" in told, told
        assert vm.docker("ps", "--filter", "name=again", "--format", "{{.Status}}").startswith(("Up ", "Restarting"))
        busy.check_untouched()
        busy.check_goes_on()
    assert vm.docker("inspect", "-f", "{{.State.Health.Status}}", "well").strip() == "healthy"
    vm.docker("rm", "-f", "well", "again")
    busy.finish()


def _probes(vm: Vm) -> str:
    log = json.loads(vm.docker("inspect", "-f", "{{json .State.Health.Log}}", "well")) or []
    return str(log[-1]["Start"]) if log else ""


def _restarts(vm: Vm) -> int:
    return int(vm.docker("inspect", "-f", "{{.RestartCount}}", "again"))


def test_power_cut_under_load_leaves_a_true_state(engine_ready: Vm) -> None:
    """May be lost: what was printed in the last seconds, whole lines from the end, and what was begun in the last instant.

    Everything else is there again: images, volumes, records; what has a restart policy runs anew, the rest has ended.
    """
    vm = engine_ready
    loud = "i=0; while :; do i=$((i+1)); echo line $i; done"
    vm.docker("volume", "create", "kept")
    vm.docker("run", "--rm", "-v", "kept:/v", BUSYBOX_IMAGE, "sh", "-c", "echo kept > /v/file; sync")
    vm.docker("run", "-d", "--name", "policy", "--restart", "always", BUSYBOX_IMAGE, "sh", "-c", f"echo begin; {loud}")
    vm.docker("run", "-d", "--name", "plain", BUSYBOX_IMAGE, "sh", "-c", loud)
    eventually("output", lambda: len(vm.docker("logs", "--tail", "20000", "plain")) > 100_000)
    old = vm.docker("inspect", "-f", "{{.State.StartedAt}}", "policy")
    vm.run("sync")
    durable = int(vm.docker("logs", "--tail", "1", "plain").split()[1]) - 1
    vm.client.kill()
    assert vm.status().state == "stopped"
    vm.client.start()
    eventually("the restart", lambda: vm.docker("inspect", "-f", "{{.State.StartedAt}}", "policy") != old)
    assert vm.docker("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "plain") == "exited 0\n"
    lines = vm.docker("logs", "plain").splitlines()
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)], (
        "a line was torn, doubled or out of order"
    )
    assert len(lines) >= durable * 0.5
    assert vm.docker("run", "--rm", "-v", "kept:/v", BUSYBOX_IMAGE, "cat", "/v/file") == "kept\n"
    assert vm.docker("start", "plain") == "plain\n"
    vm.docker("rm", "-f", "plain", "policy")
    vm.docker("volume", "rm", "kept")
