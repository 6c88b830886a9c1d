"""Supervision when several processes die at once, when nothing starts, and at the end."""

import asyncio
import functools
import json
import signal
from pathlib import Path

import pytest

from tests.support.shims import end_process, until
from tests.support.supervised import Supervised, ping, socket_inode, supervised

pytestmark = pytest.mark.root


def recorded(guest: Supervised, name: str) -> int:
    """Return a pid that the agent has recorded."""
    return int(json.loads((guest.exec_root.root / "supervised.json").read_text())[name])


async def test_ten_kills_in_a_row_are_survived_and_each_is_counted(guest: Supervised) -> None:
    daemon = (await guest.running())["daemon"]
    for count in range(1, 11):
        await end_process(daemon["pid"], signal.SIGKILL)
        assert (await ping(guest.exec_root.docker_sock)).startswith(b"HTTP/1.1 200")
        daemon = (await guest.running(other_than=daemon["pid"]))["daemon"]
        assert daemon["restarts"] == count


async def test_zygote_killed_is_replaced_and_the_daemon_not_touched(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    zygote = recorded(guest, "zygote_pid")
    await end_process(zygote, signal.SIGKILL)
    await until("another zygote", lambda: recorded(guest, "zygote_pid") not in (0, zygote))
    assert (await guest.running())["daemon"]["pid"] == before["pid"]
    await end_process(before["pid"], signal.SIGKILL)
    await guest.running(other_than=before["pid"])


async def test_zygote_and_daemon_killed_together_come_back(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    inode = socket_inode(guest.exec_root.docker_sock)
    zygote = recorded(guest, "zygote_pid")
    await asyncio.gather(end_process(zygote, signal.SIGKILL), end_process(before["pid"], signal.SIGKILL))
    assert (await ping(guest.exec_root.docker_sock)).startswith(b"HTTP/1.1 200")
    await guest.running(other_than=before["pid"])
    assert socket_inode(guest.exec_root.docker_sock) == inode


async def test_agent_and_daemon_killed_together_keep_the_socket(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    inode = socket_inode(guest.exec_root.docker_sock)
    await guest.kill()
    await end_process(before["pid"], signal.SIGKILL)
    later = asyncio.create_task(ping(guest.exec_root.docker_sock))
    await guest.start()
    await guest.running(other_than=before["pid"])
    assert (await later).startswith(b"HTTP/1.1 200")
    assert socket_inode(guest.exec_root.docker_sock) == inode


async def test_everything_killed_starts_anew(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    zygote = recorded(guest, "zygote_pid")
    await guest.kill()
    await end_process(zygote, signal.SIGKILL)
    await end_process(before["pid"], signal.SIGKILL)
    await guest.start()
    await guest.running(other_than=before["pid"])
    assert (await ping(guest.exec_root.docker_sock)).startswith(b"HTTP/1.1 200")


async def test_daemon_that_cannot_start_is_reported_with_its_own_words() -> None:
    async with supervised("--no-such-flag") as guest:

        async def failed() -> dict[str, object] | None:
            daemon: dict[str, object] = (await guest.status())["daemon"]
            return daemon if daemon["state"] == "failed" else None

        daemon = await until("the daemon to be given up", failed)
        assert "--no-such-flag" in str(daemon["last_error"])
        assert daemon["last_exit"] == 2


async def test_sigterm_ends_daemon_zygote_and_agent_and_removes_the_sockets(guest: Supervised) -> None:
    daemon = (await guest.running())["daemon"]
    zygote = recorded(guest, "zygote_pid")
    assert guest.process is not None
    guest.process.terminate()
    async with asyncio.timeout(60):
        assert await guest.process.wait() == 0
    for pid in (daemon["pid"], zygote):
        await until("the process to end", functools.partial(_ended, pid))
    left = {path.name for path in guest.exec_root.root.iterdir()}
    assert not left & {"docker.sock", "agent.sock", "supervise.sock", "supervised.json", "moored.pid"}


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True
