"""The kernel kills daemon or agent for want of memory, in a memory cgroup of their own: to containers it is one more SIGKILL."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.leftovers import pids
from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

pytestmark = pytest.mark.root

_CGROUPS = Path("/sys/fs/cgroup")
_LIMIT = 8 << 20
#: What each of some clients sends of a request that never ends; together far more than the limit.
_PIECE = bytes(3_900_000)
_CLIENTS = 8


class MemoryCgroup:
    """A memory cgroup of the test's own, of either version of cgroups."""

    def __init__(self, name: str) -> None:
        v1 = _CGROUPS / "memory"
        self._folder = (v1 if v1.is_dir() else _CGROUPS) / name
        self._limit, self._events = ("memory.limit_in_bytes", "memory.oom_control") if v1.is_dir() else ("memory.max", "memory.events")  # fmt: skip
        if not v1.is_dir():
            (_CGROUPS / "cgroup.subtree_control").write_text("+memory")
        self._folder.mkdir()
        (self._folder / self._limit).write_text(str(_LIMIT))

    def take(self, moored: Moored, pid: int) -> None:
        """Put a process of the sandbox in; only what it takes from now on counts."""
        moored.sandbox.run("sh", "-c", f"echo {pid} >{self._folder}/cgroup.procs")

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed in here for want of memory."""
        words = (line.split() for line in (self._folder / self._events).read_text().splitlines())
        return next((int(number) for word, number in words if word == "oom_kill"), 0)

    def remove(self) -> None:
        """It has to be empty by then."""
        self._folder.rmdir()


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[MemoryCgroup]:
    made = MemoryCgroup(f"{tmp_path.parent.name}-{tmp_path.name}"[-40:])
    yield made
    made.remove()


@pytest.fixture
def supervised(cgroup: MemoryCgroup) -> Iterator[Moored]:
    """The daemon, which ends before its cgroup is removed."""
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


@contextlib.contextmanager
def hunger(path: Path, head: bytes, cgroup: MemoryCgroup) -> Iterator[None]:
    """Make whoever listens there take memory until the kernel has killed it."""
    killed = cgroup.kills
    with contextlib.ExitStack() as stack:
        for _ in range(_CLIENTS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(DEADLINE)
            with contextlib.suppress(OSError):  # killed by now
                client.connect(str(path))
                client.sendall(head + _PIECE)
        wait_for("the kernel to kill it", lambda: cgroup.kills > killed)
        yield


def test_nothing_is_lost_when_daemon_and_agent_run_out_of_memory_one_after_the_other(
    supervised: Moored, cgroup: MemoryCgroup
) -> None:
    script = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i; usleep 5000; done; exit 3"
    attached = supervised.docker_popen(
        "run", "--network=none", "--name", "busy", "busybox", "sh", "-c", script, stdout=subprocess.PIPE
    )
    wait_for("the container to print", lambda: len(supervised.docker("logs", "busy", check=False)) > 100)
    before = pids(supervised)
    cgroup.take(supervised, before["moored"])
    head = b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
    with hunger(supervised.socket, head, cgroup):
        wait_for("another daemon", lambda: pids(supervised)["moored"] not in (0, before["moored"]))
        assert supervised.docker("ps", "-q", "--filter", "name=busy") != ""

    cgroup.take(supervised, before["agent"])
    assert supervised.process is not None
    with hunger(supervised.exec_root / "agent.sock", b"", cgroup):
        supervised.process.wait(DEADLINE)
    supervised.spawn()
    wait_for("the next agent", lambda: (supervised.exec_root / "agent.sock").exists() and supervised.answers())
    supervised.docker("exec", "busy", "touch", "/stop", check=False)
    shown, _ = attached.communicate(timeout=DEADLINE)
    assert attached.returncode == 3
    lines = supervised.docker("logs", "busy").splitlines()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    assert shown.decode().splitlines() == lines
    supervised.docker("rm", "busy")
