"""Daemon or agent killed in every phase of an upgrade and of going back: one of the two engines is in force then, and whole."""

import asyncio
import contextlib
import json
import os
import signal
from asyncio import Task
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.engines import build_engine
from tests.support.shims import Harness, until
from tests.support.supervised import AgentRefused, Supervised, ping

pytestmark = pytest.mark.root

NEW = "26.11.7"

Record = dict[str, int]


def engines(guest: Supervised) -> Path:
    return guest.data_root.root / "engine"


def record(guest: Supervised) -> Record:
    """What the agent has noted of its processes."""
    try:
        found: Record = json.loads((guest.exec_root.root / "supervised.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def current(guest: Supervised) -> str:
    with contextlib.suppress(OSError):
        return (engines(guest) / "current").readlink().name
    return ""


#: When to kill: whether it is the moment, given what the agent had noted and which engine was in force before the change.
PHASES: dict[str, Callable[[Supervised, Record, str], bool]] = {
    "unpacking": lambda guest, _before, _name: (engines(guest) / "staging").exists(),
    "import test": lambda guest, _before, _name: (guest.exec_root.root / "import-test.log").exists(),
    "switched": lambda guest, _before, name: current(guest) != name,
    "new zygote": lambda guest, before, _name: record(guest).get("zygote_pid", 0) not in (0, before["zygote_pid"]),
    "new daemon": lambda guest, before, _name: record(guest).get("moored_pid", 0) not in (0, before["moored_pid"]),
}


async def kill_daemon(guest: Supervised) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid := record(guest).get("moored_pid", 0):
            os.kill(pid, signal.SIGKILL)


async def kill_agent(guest: Supervised) -> None:
    await guest.kill()
    await guest.start()


async def change(guest: Supervised, method: str, **params: str) -> None:
    """Ask for a change; how it is answered, if at all, is not what matters here."""
    host = await guest.host()
    with contextlib.suppress(AgentRefused, AssertionError, ConnectionError):
        await host.ask(method, **params)
    await host.close()


async def settled(guest: Supervised) -> str:
    """Wait until agent and daemon run and nothing is left to do; return the version in force, which is the daemon's as well."""

    async def look() -> str:
        try:
            status = await guest.status()
            host = await guest.host()
            version: str = (await host.ask("engine.versions"))["current"]
            await host.close()
        except (AssertionError, OSError):  # it is changing to the agent of another engine
            return ""
        state = engines(guest) / "state.json"
        proven = not state.exists() or "unproven" not in json.loads(state.read_text())
        good = status["daemon"]["state"] == "running" and status["engine_version"] == version
        return version if good and proven else ""

    version: str = await until("everything to be settled", look)
    assert f"Server: Moorage/{version} ".encode() in await ping(guest.exec_root.docker_sock), guest.log()
    return version


@pytest.mark.parametrize(
    ("kill", "phases"),
    [
        (kill_daemon, ("switched", "new zygote", "new daemon", "new daemon")),
        (kill_agent, ("unpacking", "import test", "switched", "new daemon")),
    ],
    ids=["daemon", "agent"],
)
async def test_killed_in_any_phase_of_a_change_one_of_the_two_engines_is_in_force(
    guest: Supervised,
    harness: Harness,
    tmp_path: Path,
    kill: Callable[[Supervised], Awaitable[None]],
    phases: tuple[str, ...],
) -> None:
    shim, started = await harness.run("sleep", "1000")
    file = tmp_path / "engine.tar.gz"
    digest = build_engine(file, NEW)
    built_in = await settled(guest)
    for phase in phases:
        if await settled(guest) == built_in:
            method, params = "engine.upgrade", {"path": str(file), "sha256": digest}
        else:
            method, params = "engine.rollback", {}
        (guest.exec_root.root / "import-test.log").unlink(missing_ok=True)
        before, name = record(guest), current(guest)
        changing = asyncio.create_task(change(guest, method, **params))

        def come(at: str = phase, before: Record = before, name: str = name, change: Task[None] = changing) -> bool:
            return PHASES[at](guest, before, name) or change.done()

        await until(phase, come)
        await kill(guest)
        await changing
        assert await settled(guest) in (built_in, NEW), (phase, method)
        assert (await shim.status()).pid == started.pid, (phase, method)
    another, _ = await harness.run("sleep", "1000")
    assert (await another.status()).running


async def test_engine_that_does_not_come_up_goes_back_although_the_agent_is_killed_meanwhile(
    guest: Supervised, harness: Harness, tmp_path: Path
) -> None:
    shim, _ = await harness.run("sleep", "1000")
    file = tmp_path / "engine.tar.gz"
    broken = "import sys\n\ndef main(argv):\n    sys.stderr.write('this engine is broken\\n')\n    return 1\n"
    digest = build_engine(file, NEW, {"moorage_guest/daemon.py": broken})
    built_in = await settled(guest)
    changing = asyncio.create_task(change(guest, "engine.upgrade", path=str(file), sha256=digest))
    await until("the new engine to be in force", lambda: current(guest) == NEW)
    await kill_agent(guest)
    await changing
    assert await settled(guest) == built_in
    assert (await shim.status()).running
    assert "going on with that" in guest.log()
