"""A shim with a real container: starting, ending, pipes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from moorage_guest.engine.shims import ContainerExited, OciError

from tests.support.shims import Harness, close_pipes, private_agent, read_pipe

pytestmark = pytest.mark.root


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with private_agent() as harness:
        yield harness


async def test_exit_code_and_output_of_a_container_are_kept_for_whoever_asks(harness: Harness) -> None:
    shim, started = await harness.run("sh", "-c", "echo out; echo err >&2; exit 7")
    event = await anext(shim.events)
    assert isinstance(event, ContainerExited)
    assert event.exit_code == 7
    status = await shim.status()
    assert status.exit is not None
    assert (status.exit.exit_code, status.pid, status.exit.oom) == (7, started.pid, False)
    pipes = await shim.pipes()
    assert [await read_pipe(stream.a_read) for stream in pipes.streams] == [b"out\n", b"err\n"]
    close_pipes(pipes)
    await shim.shutdown()
    assert not shim.folder.exists()


@pytest.mark.parametrize(
    ("command", "kind", "code"), [("nosuchprogram", "not_found", 127), ("/etc/passwd", "not_executable", 126)]
)
async def test_a_program_that_cannot_be_started_is_told_apart(
    harness: Harness, command: str, kind: str, code: int
) -> None:
    shim = await harness.shim()
    with pytest.raises(OciError) as caught:
        await shim.run(harness.bundle(shim.container_id, command))
    assert (caught.value.kind, caught.value.exit_code) == (kind, code)
    assert command.rpartition("/")[2] in str(caught.value) or "ermission denied" in str(caught.value)
    pipes = await shim.pipes()
    assert [await read_pipe(stream.a_read) for stream in pipes.streams] == [b"", b""]
    close_pipes(pipes)
    await shim.shutdown()


async def test_a_pid_that_the_container_has_is_the_one_reported(harness: Harness) -> None:
    shim, started = await harness.run("sleep", "1000")
    assert Path(f"/proc/{started.pid}/cmdline").read_bytes() == b"sleep\x001000\0"
    await shim.signal(None, 9)
    event = await anext(shim.events)
    assert isinstance(event, ContainerExited)
    assert event.exit_code == 137
