"""SIGKILL of a shim, of the agent, and of both: who is touched and what is known afterwards."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from moorage_guest.engine.shims import ContainerExited, Shim, ShimError, ShimGone
from moorage_guest.shim import kernel

from tests.support.shims import Harness, agent_pid, end_process, private_agent, until

pytestmark = pytest.mark.root


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with private_agent() as harness:
        yield harness


async def test_sigkill_of_a_shim_touches_only_its_container(harness: Harness) -> None:
    victim, victim_started = await harness.run("sleep", "1000")
    other, other_started = await harness.run("sleep", "1000")
    await end_process((await victim.status()).shim_pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        await victim.closed.wait()
    with pytest.raises(ShimGone):
        await victim.status()

    async def dead() -> bool:
        return victim.container_id in await harness.agent.dead_shims()

    await until("the agent to notice", dead)
    record = await harness.agent.bury(victim.container_id)
    assert record.exit_code == 137
    assert not victim.folder.exists()
    await until("the container to end", lambda: not Path(f"/proc/{victim_started.pid}/stat").exists())
    assert (await other.status()).pid == other_started.pid
    assert (await other.status()).running
    again, _ = await harness.run("sleep", "1000")
    assert (await again.status()).running


async def test_exit_recorded_before_the_shims_death_is_kept(harness: Harness) -> None:
    shim, _ = await harness.run("sh", "-c", "exit 3")
    event = await anext(shim.events)
    assert isinstance(event, ContainerExited)
    await end_process((await shim.status()).shim_pid, signal.SIGKILL)

    async def dead() -> bool:
        return shim.container_id in await harness.agent.dead_shims()

    await until("the agent to notice", dead)
    record = await harness.agent.bury(shim.container_id)
    assert (record.exit_code, record.at_ns) == (3, event.at_ns)


async def test_a_shim_can_be_buried_as_soon_as_its_socket_closes(harness: Harness) -> None:
    """The agent hears of the death later than the daemon: it is told of its child when it is its turn."""
    for _ in range(5):
        shim, _ = await harness.run("sleep", "1000")
        os.kill((await shim.status()).shim_pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            await shim.closed.wait()
        assert (await harness.agent.bury(shim.container_id)).exit_code == 137
        assert not shim.folder.exists()


async def test_a_container_cannot_be_buried_alive(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    with pytest.raises(ShimError, match="runs"):
        await harness.agent.bury(shim.container_id)
    with pytest.raises(ShimError, match="runs: stop it first"):
        await shim.shutdown()


def _nurseries(agent: int) -> list[int]:
    """Return the pids of the agent's children that shims are forked off."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "moorage-nursery\n"]


async def test_a_killed_nursery_touches_no_shim_and_is_replaced(harness: Harness) -> None:
    shim, started = await harness.run("sleep", "1000")
    agent = agent_pid(harness.exec_root)
    (nursery,) = _nurseries(agent)
    await end_process(nursery, signal.SIGKILL)
    other, _ = await harness.run("sh", "-c", "exit 5")
    event = await anext(other.events)
    assert isinstance(event, ContainerExited)
    assert event.exit_code == 5
    assert (await shim.status()).pid == started.pid
    await until("the dead one to be collected", lambda: _nurseries(agent) and nursery not in _nurseries(agent))


async def test_shims_are_children_of_the_agent_and_the_nursery_ends_with_it(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    agent = agent_pid(harness.exec_root)
    (nursery,) = _nurseries(agent)
    shim_pid = (await shim.status()).shim_pid
    assert str(shim_pid) in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    await end_process(agent, signal.SIGKILL)
    await until("the nursery to end", lambda: kernel.state(nursery) in ("Z", "X", ""))
    assert (await shim.status()).running


async def test_agent_killed_is_replaced_and_its_shims_are_found(harness: Harness) -> None:
    shim, started = await harness.run("sh", "-c", "sleep 1000; exit 9")
    ended, _ = await harness.run("sh", "-c", "exit 4")
    assert isinstance(await anext(ended.events), ContainerExited)
    dying, _ = await harness.run("sleep", "1000")
    pid = agent_pid(harness.exec_root)
    dying_pid = (await dying.status()).shim_pid
    await end_process(pid, signal.SIGKILL)
    await end_process(dying_pid, signal.SIGKILL)
    assert (await shim.status()).running

    async def found() -> bool:
        return set(await harness.agent.shim_ids()) == {shim.container_id, ended.container_id}

    await until("a new agent to find the shims", found)
    assert agent_pid(harness.exec_root) != pid
    assert dying.container_id in await harness.agent.dead_shims()
    again = await Shim.connect(harness.exec_root, ended.container_id)
    status = await again.status()
    assert status.exit is not None
    assert status.exit.exit_code == 4
    await again.shutdown()

    async def forgotten() -> bool:
        return ended.container_id not in await harness.agent.shim_ids()

    await until("the agent to notice the end of a shim that is not its child", forgotten)
    assert ended.container_id not in await harness.agent.dead_shims()
    assert (await shim.status()).pid == started.pid
    await harness.run("sleep", "1000")


async def test_a_paused_container_is_known_as_such_and_can_be_removed_by_force(harness: Harness) -> None:
    shim, started = await harness.run("sleep", "1000")
    await shim.pause()
    assert (await shim.status()).paused
    again = await Shim.connect(harness.exec_root, shim.container_id)
    assert (await again.status()).paused
    await again.resume()
    assert not (await shim.status()).paused
    await again.pause()
    await again.shutdown(force=True)
    assert not Path(f"/proc/{started.pid}/stat").exists()
    assert not shim.folder.exists()
