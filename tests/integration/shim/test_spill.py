"""Spilling to disk for containers that asked for it: in order, bounded, nothing lost."""

import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.engine.shims import ContainerExited
from moorage_guest.shim import kernel

from tests.support.shims import Harness, close_pipes, private_agent, read_pipe, until

pytestmark = pytest.mark.root


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with private_agent() as harness:
        yield harness


def waits(fd: int, size: int) -> bool:
    """Whether a pipe holds this many bytes."""
    return kernel.bytes_waiting(fd) == size


async def test_container_does_not_wait_while_nobody_reads_and_all_arrives_in_order(
    harness: Harness, tmp_path: Path
) -> None:
    script = "yes 0123456 | head -c 2000000; yes abcdefg | head -c 1000000 >&2; exit 3"
    shim, _ = await harness.run("sh", "-c", script, spill_bytes=8_000_000, spill_folder=tmp_path)
    event = await anext(shim.events)  # it ends although nothing was read
    assert isinstance(event, ContainerExited)
    assert event.exit_code == 3
    pipes = await shim.pipes()
    assert await read_pipe(pipes.streams[0].a_read) == b"0123456\n" * 250000
    assert await read_pipe(pipes.streams[1].a_read) == b"abcdefg\n" * 125000
    close_pipes(pipes)
    assert list(tmp_path.iterdir()) == []


async def test_a_container_waits_at_the_limit_and_goes_on_when_all_was_taken(harness: Harness, tmp_path: Path) -> None:
    script = "yes 0123456 | head -c 1000000"
    shim, _ = await harness.run("sh", "-c", script, spill_bytes=200_000, spill_folder=tmp_path)
    pipes = await shim.pipes()
    out = pipes.streams[0].a_read
    await until("pipe A to be full", functools.partial(waits, out, kernel.PIPE_SIZE))

    async def blocked() -> bool:
        reply: Any = await shim._ask("fill")
        return bool(reply.body["result"]["pipes"][0]["blocked"])

    await until("the container to wait", blocked)
    assert (await shim.status()).running
    assert await read_pipe(out) == b"0123456\n" * 125000
    close_pipes(pipes)


async def test_without_a_disk_to_spill_to_it_is_as_without_spilling(harness: Harness, tmp_path: Path) -> None:
    script = "yes 0123456 | head -c 1000000"
    shim, _ = await harness.run("sh", "-c", script, spill_bytes=200_000, spill_folder=tmp_path / "missing")
    pipes = await shim.pipes()
    assert await read_pipe(pipes.streams[0].a_read) == b"0123456\n" * 125000
    close_pipes(pipes)
