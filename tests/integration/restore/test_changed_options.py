"""moored started with other options than its running containers: it starts, takes back what it can and lists the rest."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored, wait_for

pytestmark = pytest.mark.root

SLEEP = ("busybox", "sleep", "10000")


@pytest.fixture
def moored() -> Iterator[Moored]:
    with running_moored("--live-restore", "--bip", "10.91.0.1/24") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _start_with(moored: Moored, *arguments: str) -> None:
    moored.kill()
    moored.arguments = ["--live-restore", *arguments]
    moored.start()


def _pid(moored: Moored, name: str) -> str:
    return moored.docker("inspect", "-f", "{{.State.Pid}}", name)


def _lives(moored: Moored, pid: str) -> bool:
    return moored.sandbox.run("kill", "-0", pid, check=False).returncode == 0


def _warnings(moored: Moored) -> str:
    return "\n".join(moored.api.get("/info").json["Warnings"])


def _unmanaged_events(moored: Moored) -> list[str]:
    now = f"{time.time() + 0.2:.3f}"
    text = moored.docker(
        "events", "--since", "1h", "--until", now, "--filter", "event=unmanaged", "--format", "{{json .Actor}}"
    )
    return [json.loads(line)["Attributes"]["reason"] for line in text.splitlines()]


def _address(moored: Moored, name: str) -> str:
    return moored.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)


@pytest.mark.parametrize(
    ("option", "old", "new"),
    [("bip", "10.91.0.1/24", "10.92.0.1/24"), ("mtu", "1500", "1400"), ("icc", "true", "false")],
)
def test_containers_of_the_default_bridge_keep_what_they_have_and_are_named(
    moored: Moored, option: str, old: str, new: str
) -> None:
    moored.docker("run", "-d", "--name", "web", "-p", "18082:80", *SLEEP)
    moored.docker("run", "-d", "--name", "apart", "--network", "none", *SLEEP)
    before = [moored.docker("inspect", name) for name in ("web", "apart")]
    base = [] if option == "bip" else ["--bip", "10.91.0.1/24"]
    for _ in range(2):  # not only the first daemon with the new value knows
        _start_with(moored, *base, f"--{option}={new}")
        assert [moored.docker("inspect", name) for name in ("web", "apart")] == before
        found = [line for line in _warnings(moored).splitlines() if f"{option} was {old} and is {new} now" in line]
        assert len(found) == 1 and found[0].endswith(": web"), _warnings(moored)
    assert moored.docker("exec", "web", "echo", "managed") == "managed"
    assert _unmanaged_events(moored) == []
    moored.docker("stop", "-t", "0", "web")
    assert f"{option} was" not in _warnings(moored)
    _start_with(moored, *base, f"--{option}={new}")
    moored.docker("start", "web")
    if option == "bip":
        assert _address(moored, "web").startswith("10.92.0.")
    assert f"{option} was" not in _warnings(moored)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--bip", "10.91.0.1/24", "--default-address-pool", "base=10.99.0.0/16,size=24"),
        ("--bip", "10.91.0.1/24", "--fixed-cidr", "10.91.0.128/25"),
        ("--bip", "10.91.0.1/24", "--exec-opt", "native.cgroupdriver=cgroupfs"),
        ("--bip", "10.91.0.1/24", "--cgroup-parent", "/mo-other-parent"),
        ("--bip", "10.91.0.1/24", "--storage-opt", "overlay2.override_kernel_check=true"),
        ("--bridge", "none"),
    ],
    ids=["default-address-pools", "fixed-cidr", "cgroup driver", "cgroup parent", "storage-opt", "bridge"],
)
def test_containers_are_managed_under_another(moored: Moored, arguments: tuple[str, ...]) -> None:
    moored.docker("network", "create", "own")
    moored.docker("run", "-d", "--name", "one", *SLEEP)
    moored.docker("run", "-d", "--name", "two", "--network", "own", "-v", "vol:/v", *SLEEP)
    before = [moored.docker("inspect", name) for name in ("one", "two")]
    _start_with(moored, *arguments)
    assert [moored.docker("inspect", name) for name in ("one", "two")] == before
    assert moored.docker("exec", "two", "echo", "managed") == "managed"
    assert moored.docker("exec", "one", "ip", "addr", "show", "eth0").count("10.91.0.") >= 1
    assert "unmanaged" not in _warnings(moored)
    moored.docker("rm", "-f", "one", "two")
    moored.docker("network", "rm", "own")
    moored.docker("volume", "rm", "vol")


def test_containers_of_another_data_root_are_listed_with_the_reason_and_managed_again_under_their_own(
    moored: Moored,
) -> None:
    moored.docker("network", "create", "own")
    moored.docker("run", "-d", "--name", "one", "-p", "18083:80", *SLEEP)
    moored.docker("run", "-d", "--name", "two", "--network", "own", *SLEEP)
    moored.docker(
        "run", "-d", "--name", "ends", "busybox", "sh", "-c", "until [ -e /go ]; do sleep 0.02; done; echo bye; exit 7"
    )
    before = [moored.docker("inspect", name) for name in ("one", "two")]
    own, pids = moored.data_root, [_pid(moored, name) for name in ("one", "two", "ends")]
    moored.data_root = own.with_name("elsewhere")
    _start_with(moored, "--bip", "10.91.0.1/24")
    assert sorted(moored.docker("ps", "--format", "{{.Names}}").split()) == ["ends", "one", "two"]
    warnings = [line for line in _warnings(moored).splitlines() if "is unmanaged" in line]
    reason = f"it was started with data-root {own}, this engine's is {moored.data_root}"
    assert len(warnings) == 3 and all(reason in line for line in warnings)
    assert len([found for found in _unmanaged_events(moored) if found.startswith(reason)]) == 3
    assert reason in moored.docker_run("exec", "one", "true").stderr
    # What they have stays, and nobody else gets it.
    moored.docker("load", "-i", str(busybox_archive()))
    moored.docker("run", "-d", "--name", "new", *SLEEP)
    addresses = [json.loads(text)[0]["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] for text in before[:1]]
    assert _address(moored, "new") not in addresses
    moored.sandbox.run("nsenter", "-t", pids[1], "-m", "-n", "/bin/ping", "-c", "1", "-W", "5", _gateway(before[1]))
    moored.docker("rm", "-f", "new")
    # One ends on its own meanwhile.
    moored.sandbox.run("touch", f"/proc/{pids[2]}/root/go")
    wait_for("its end", lambda: "ends" not in moored.docker("ps", "-a", "--format", "{{.Names}}"))
    moored.data_root = own
    _start_with(moored, "--bip", "10.91.0.1/24")
    assert [moored.docker("inspect", name) for name in ("one", "two")] == before
    assert moored.docker("exec", "one", "echo", "managed") == "managed"
    assert moored.docker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ends") == "exited 7"
    assert moored.docker("logs", "ends") == "bye"
    assert "unmanaged" not in _warnings(moored)


def _gateway(inspected: str) -> str:
    gateway: str = json.loads(inspected)[0]["NetworkSettings"]["Networks"]["own"]["Gateway"]
    return gateway


def test_containers_of_another_data_root_can_be_stopped(moored: Moored) -> None:
    moored.docker(
        "run", "-d", "--name", "web", "busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.02; done"
    )
    pid = _pid(moored, "web")
    moored.data_root = moored.data_root.with_name("elsewhere")
    _start_with(moored)
    assert _lives(moored, pid)
    moored.docker("stop", "web")
    assert not _lives(moored, pid)
    assert moored.docker("ps", "-aq") == ""


def test_containers_of_another_storage_driver_are_unmanaged(moored: Moored) -> None:
    container = moored.docker("run", "-d", "--name", "web", "--network", "none", *SLEEP)
    pid = _pid(moored, "web")
    options = moored.exec_root / "options.json"
    moored.kill()
    # overlay2 is the one driver there is: what an engine with another one would have left.
    options.write_text(
        options.read_text().replace("overlay2", "fuse-overlayfs").replace('"options": {"', '"options": {"x')
    )
    shim = moored.exec_root / "shim" / container / "shim.json"
    shim.write_text(shim.read_text().replace('"options": "', '"options": "x').replace('"options":"', '"options":"x'))
    moored.start()
    reason = "it was started with storage-driver fuse-overlayfs, this engine's is overlay2"
    assert reason in _warnings(moored)
    assert _unmanaged_events(moored)[0].startswith(reason)
    assert _lives(moored, pid)
    assert moored.docker_run("restart", "web").returncode != 0
    assert _lives(moored, pid)
    moored.docker("stop", "-t", "0", "web")
    assert not _lives(moored, pid)
    moored.docker("start", "web")  # under the driver of this engine
    moored.docker("rm", "-f", "web")


def test_containers_of_another_exec_root_go_on_and_are_never_started_twice(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "web", "--restart", "always", *SLEEP)
    before = moored.docker("inspect", "web")
    pid, own = _pid(moored, "web"), moored.exec_root
    moored.kill()
    moored.exec_root = own.with_name("run2")
    moored.start()
    assert "its shim is not below" in _warnings(moored)
    assert _lives(moored, pid) and _pid(moored, "web") == pid
    assert moored.docker_run("start", "web").returncode != 0 or _pid(moored, "web") == pid
    assert moored.stop() == 0
    moored.exec_root = own
    moored.start()
    assert moored.docker("inspect", "web") == before
    moored.docker("rm", "-f", "web")


def test_options_file_that_is_damaged_does_not_keep_the_daemon_from_starting(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "web", "--network", "none", *SLEEP)
    moored.kill()
    (moored.exec_root / "options.json").write_text("{half")
    moored.start()
    assert moored.docker("exec", "web", "echo", "managed") == "managed"
    moored.signal(signal.SIGHUP)
    assert json.loads((moored.exec_root / "options.json").read_text())["version"] == 1
    moored.docker("rm", "-f", "web")
