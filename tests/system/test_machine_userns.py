"""`userns-remap` in the machine: its users are there, and its kernel's namespaces and control groups take them."""

import json

import pytest

from tests.support.images import busybox_archive
from tests.support.vm import Vm, moorage

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

MAP = ["0", "100000", "65536"]


def test_containers_have_users_of_their_own_once_the_setting_is_applied(
    engine_ready: Vm, container_running: str
) -> None:
    before = moorage("config", "get").stdout
    try:
        result = moorage("config", "set", "userns-remap", '"default"')
        assert result.returncode == 0, result.stderr
        engine_ready.wait("ready")
        engine_ready.docker("load", "-i", str(busybox_archive()))
        info = json.loads(engine_ready.docker("info", "--format", "{{json .}}"))
        assert "name=userns" in info["SecurityOptions"]
        assert info["DockerRootDir"] == "/var/lib/moorage/100000.100000"
        assert any(f"container {container_running} is unmanaged" in line for line in info["Warnings"])
        _look(engine_ready)
    finally:
        assert moorage("config", "apply", "-", stdin=before).returncode == 0
        engine_ready.wait("ready")
    assert engine_ready.docker("inspect", "-f", "{{.State.Running}}", container_running).strip() == "true"
    assert engine_ready.docker("run", "--rm", "busybox", "cat", "/proc/self/uid_map").split()[1] == "0"


def _look(vm: Vm) -> None:
    run = ("run", "-d", "--name", "web", "--ipc", "shareable", "-m", "64m", "--cpus", "0.5", "-v", "vol:/vol")
    vm.docker(*run, "busybox", "sh", "-c", "echo started > /dev/stdout; exec sleep 10000")
    inside = (
        "cat /proc/self/uid_map; touch /vol/x /x; stat -c %u:%g /vol/x /x / /bin/busybox /etc/hosts; "
        "ping -c 1 -W 5 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') > /dev/null && echo pinged; "
        "echo max > /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory.max"
    )
    seen = vm.docker("exec", "web", "sh", "-c", f"({inside}) 2>/dev/null").split()
    assert seen == [*MAP, *["0:0"] * 5, "pinged", str(64 << 20)]
    assert vm.docker("logs", "web").strip() == "started"
    assert vm.docker("top", "web").splitlines()[1].split()[0] == "100000"
    for option in ("--pid=container:web", "--ipc=container:web", "--network=container:web"):
        assert vm.docker("run", "--rm", option, "busybox", "cat", "/proc/self/uid_map").split() == MAP
    assert (
        vm.docker("run", "--rm", "--privileged", "--userns=host", "busybox", "cat", "/proc/self/uid_map").split()[1]
        == "0"
    )
    assert vm.docker("run", "--rm", "-t", "busybox", "id", "-u").strip() == "0"
    vm.docker("commit", "web", "committed")
    assert vm.docker("run", "--rm", "committed", "stat", "-c", "%u", "/x").strip() == "0"
    vm.docker("rm", "-f", "web")
    vm.docker("volume", "rm", "vol")
