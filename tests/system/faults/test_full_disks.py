"""Disk full on the data disk and on /run, and records destroyed: the engine answers, says what is wrong, and heals.

May be lost: what was asked for while there was no room, which is refused. No line: a container whose log cannot be
written waits.
"""

import pytest

from tests.support.images import BUSYBOX_IMAGE
from tests.support.vm import Vm
from tests.system.faults.conftest import Busy, until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

_FILL = "dd if=/dev/zero of={folder}/filler bs=1M 2> /dev/null; dd if=/dev/zero of={folder}/filler2 bs=4k 2> /dev/null; true"
_FREE = "rm -f {folder}/filler {folder}/filler2"


def _kill_daemon(vm: Vm) -> None:
    before = vm.status().engine
    assert before is not None
    vm.client.daemon("kill")
    until(
        vm, "another daemon",
        lambda s: s.state == "ready" and s.engine and s.engine.daemon.pid not in (None, before.daemon.pid),
    )  # fmt: skip


def test_full_data_disk_stops_logs_until_there_is_room_and_loses_no_line(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: nothing. The container waits; the daemon answers, also one that starts now."""
    vm = engine_ready
    free = int(vm.run("df -m /var/lib/moorage | tail -1").split()[3])
    vm.run(f"fallocate -l {free - 40}M /var/lib/moorage/ballast")
    folder = "/var/lib/moorage"
    try:
        vm.run(_FILL.format(folder=folder))
        assert int(vm.run(f"df -k {folder} | tail -1").split()[3]) < 1024
        assert busy.state() == busy.before
        until(
            vm, "the shortage to be told", lambda s: s.engine and any("is full" in each for each in s.engine.warnings)
        )
        assert "the data disk (/var/lib/moorage) is full" in vm.docker("info", "--format", "{{.Warnings}}")
        refused = vm.docker("volume", "create", "roomless", check=False)
        _kill_daemon(vm)
        assert busy.state() == busy.before
        assert "busy" in vm.docker("ps")
        assert refused is not None
    finally:
        vm.run(_FREE.format(folder=folder) + f" {folder}/ballast")
    until(vm, "the shortage to be over", lambda s: s.engine and not s.engine.warnings)
    busy.check_goes_on()
    busy.check_untouched()
    vm.docker("volume", "rm", "-f", "roomless")
    assert vm.docker("run", "--rm", BUSYBOX_IMAGE, "echo", "well") == "well\n"
    busy.finish()


def test_data_disk_that_became_read_only_is_said_and_heals(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: what was asked for meanwhile. A daemon that is killed then comes back when the disk can be written.

    This is what the kernel does by itself when it finds the disk damaged.
    """
    vm = engine_ready
    vm.run("echo u > /proc/sysrq-trigger")
    try:
        status = until(
            vm,
            "the disk to be called read-only",
            lambda s: s.engine and any("is read-only" in w for w in s.engine.warnings),
        )
        assert busy.state() == busy.before
        assert vm.docker("volume", "create", "unwritten", check=False) == ""
        assert status.engine is not None
        before = status.engine.daemon
        vm.run(f"kill -9 {before.pid}")
        until(
            vm,
            "the daemon to be missed",
            lambda s: s.engine and s.engine.daemon.restarts > before.restarts,
        )
    finally:
        vm.run("mount -o remount,rw /var/lib/moorage")
    until(vm, "the warning to go", lambda s: s.state == "ready" and s.engine and not s.engine.warnings)
    busy.check_untouched()
    busy.check_goes_on()
    assert vm.docker("run", "--rm", "-v", "unwritten:/v", BUSYBOX_IMAGE, "echo", "well") == "well\n"
    vm.docker("volume", "rm", "unwritten")
    busy.finish()


def test_full_run_folder_refuses_new_containers_and_touches_no_other(engine_ready: Vm, busy: Busy) -> None:
    """May be lost: nothing that ran before. Starts are refused with the reason while there is no room."""
    vm = engine_ready
    try:
        vm.run("mount -o remount,size=$(($(du -sk /run | cut -f1) + 512))k /run")
        vm.run(_FILL.format(folder="/run"))
        assert busy.state() == busy.before
        vm.docker("run", "-d", "--name", "roomless", BUSYBOX_IMAGE, "sleep", "1000", check=False)
        _kill_daemon(vm)
        assert busy.state() == busy.before
        vm.docker("ps")
    finally:
        vm.run(_FREE.format(folder="/run") + "; mount -o remount,size=50% /run")
    vm.docker("rm", "-f", "roomless", check=False)
    assert vm.docker("run", "--rm", "--name", "roomless", BUSYBOX_IMAGE, "echo", "well") == "well\n"
    busy.check_untouched()
    busy.check_goes_on()
    busy.finish()


@pytest.mark.parametrize("what", ["the database", "one record"])
def test_destroyed_records_are_made_again_from_their_copies(engine_ready: Vm, busy: Busy, what: str) -> None:
    """May be lost: what was written in the last instant."""
    vm = engine_ready
    database = "/var/lib/moorage/moorage.db"
    before = vm.status().engine
    assert before is not None
    if what == "the database":
        spoil = f"dd if=/dev/urandom of={database} bs=4k count=64 conv=notrunc 2> /dev/null; rm -f {database}-wal {database}-shm"
    else:
        statement = "UPDATE record SET value = '{' WHERE kind = 'container'"
        code = f'import sqlite3; d = sqlite3.connect("{database}", timeout=60); d.execute("{statement}"); d.commit()'
        spoil = f"python3 - <<'E'\n{code}\nE"
    # The agent sleeps meanwhile: no daemon may come back and have the database.
    pids = before.agent.pid, before.daemon.pid
    vm.run(f"kill -STOP {pids[0]}; kill -9 {pids[1]}; {spoil}\nstatus=$?; kill -CONT {pids[0]}; exit $status")
    until(
        vm, "another daemon",
        lambda s: s.state == "ready" and s.engine and s.engine.daemon.pid not in (None, before.daemon.pid),
    )  # fmt: skip
    busy.check_untouched()
    assert vm.docker("images", "-q", BUSYBOX_IMAGE)
    busy.check_goes_on()
    busy.finish()
