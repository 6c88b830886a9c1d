"""Exec sessions in a real container, served by its shim."""

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from moorage_guest.engine.shims import Detached, ExecExited, ExecRequest, OciError, Shim, ShimError, Started

from tests.support.shims import Harness, frames, oci_process, private_agent, read_socket

pytestmark = pytest.mark.root


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with private_agent() as harness:
        yield harness


async def start(shim: Shim, name: str, *args: str, **options: object) -> tuple[socket.socket, Started]:
    """Start a process with one end of a socket pair as its client and return the other."""
    ours, theirs = socket.socketpair()
    process = oci_process(*args, tty=bool(options.get("tty")))
    with theirs:
        started = await shim.exec(ExecRequest(name, process, client=theirs.fileno(), **options))  # type: ignore[arg-type]
    return ours, started


async def test_exec_has_its_streams_its_input_and_its_exit_code(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    client, started = await start(
        shim, "e1", "sh", "-c", "cat; echo err >&2; exit 5", open_stdin=True, prefix=b"early "
    )
    with contextlib.closing(client):
        client.sendall(b"late\n")
        client.shutdown(socket.SHUT_WR)
        assert frames(await read_socket(client)) == {1: b"early late\n", 2: b"err\n"}
    event = await anext(shim.events)
    assert isinstance(event, ExecExited)
    assert (event.exec_id, event.code) == ("e1", 5)
    status = (await shim.status()).execs["e1"]
    assert (status.pid, status.exit_code, status.running, status.attached) == (started.pid, 5, False, False)
    await shim.forget_exec("e1")
    assert not (await shim.status()).execs


async def test_exec_output_of_megabytes_arrives_whole_at_a_slow_client(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    client, _ = await start(shim, "big", "sh", "-c", "yes 0123456 | head -c 3000000", multiplexed=False)
    with contextlib.closing(client):
        assert await read_socket(client) == (b"0123456\n" * 375000)[:3000000]


async def test_exec_with_a_terminal_takes_sizes_and_detach_keys(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    client, _ = await start(
        shim, "t", "sh", "-c", "read x; stty size; sleep 1000", tty=True, open_stdin=True, multiplexed=False,
        detach_keys=b"\x10\x11",
    )  # fmt: skip
    with contextlib.closing(client):
        await shim.resize("t", 12, 34)
        client.sendall(b"x\r")
        assert (await read_socket(client, b"34\r\n")).endswith(b"12 34\r\n")
        client.sendall(b"\x10\x11")
        assert await read_socket(client) == b""
    assert await anext(shim.events) == Detached("t")
    assert (await shim.status()).execs["t"].running
    await shim.signal("t", 9)
    event = await anext(shim.events)
    assert isinstance(event, ExecExited)
    assert event.code == 137


async def test_exec_of_a_missing_program_leaves_the_connection_to_the_caller(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(OciError) as caught:
            await shim.exec(ExecRequest("x", oci_process("nosuchprogram"), client=theirs.fileno()))
        assert caught.value.kind == "not_found"
        theirs.sendall(b"still there")
        theirs.shutdown(socket.SHUT_WR)
        assert await read_socket(ours) == b"still there"
    with pytest.raises(ShimError):
        await shim.signal("x", 9)


async def test_captured_output_of_an_exec_without_client_can_be_asked_for(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    await shim.exec(ExecRequest("probe", oci_process("sh", "-c", "echo 0123456789; exit 1"), capture=6))
    event = await anext(shim.events)
    assert isinstance(event, ExecExited)
    assert await shim.exec_output("probe") == b"012345"


async def test_exec_ends_with_the_container_and_is_reported_before_it(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    client, _ = await start(shim, "e", "sleep", "1000")
    with contextlib.closing(client):
        await shim.signal(None, 9)
        events = shim.events
        assert isinstance(await anext(events), ExecExited)
        assert await read_socket(client) == b""


async def test_output_kept_open_by_a_child_ends_soon_after_the_process(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    client, _ = await start(shim, "e", "sh", "-c", "sleep 1000 & echo started", multiplexed=False)
    with contextlib.closing(client):
        assert await read_socket(client) == b"started\n"
