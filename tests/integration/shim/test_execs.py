"""Exec sessions in a real container, served by its shim."""

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from moorage_guest.engine.shims import Detached, ExecExited, ExecRequest, OciError, Shim, ShimError, Started

from tests.support.shims import Harness, frames, oci_process, private_agent, read_socket, until

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


def runtimes_of(shim_pid: int) -> list[int]:
    """Return the runtimes that a shim has started and that have not ended."""
    found = []
    for pid in map(int, Path(f"/proc/{shim_pid}/task/{shim_pid}/children").read_text().split()):
        with contextlib.suppress(OSError):
            if b"exec\0--detach" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.parametrize("tty", [False, True])
async def test_runtime_that_was_loaded_before_the_start_executes_what_it_is_told_then(
    harness: Harness, tty: bool
) -> None:
    shim, _ = await harness.run("sleep", "1000")
    shim_pid = (await shim.status()).shim_pid
    assert await shim.ready_exec("e1", tty=tty, open_stdin=True)
    (runtime,) = await until("the runtime to be loaded", lambda: runtimes_of(shim_pid))
    command = "read x; echo got $x; [ -e /proc/self/fd/3 ] && echo leaked; exit 5"
    client, started = await start(
        shim, "e1", "sh", "-c", command, tty=tty, open_stdin=True, multiplexed=False, ready=True
    )
    assert started.pid != runtime
    with contextlib.closing(client):
        client.sendall(b"it\n")
        assert (await read_socket(client)).replace(b"\r", b"").endswith(b"got it\n")
    event = await anext(shim.events)
    assert isinstance(event, ExecExited) and event.code == 5
    assert not runtimes_of(shim_pid)


async def test_command_that_is_missing_is_told_of_by_a_runtime_that_was_loaded_before(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    assert await shim.ready_exec("e1", tty=False, open_stdin=False)
    with pytest.raises(OciError) as caught:
        await shim.exec(ExecRequest("e1", oci_process("/missing"), ready=True))
    assert caught.value.kind == "not_found"
    assert not (await shim.status()).execs


async def test_runtime_that_was_loaded_in_vain_ends_and_does_nothing(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    shim_pid = (await shim.status()).shim_pid
    loaded = [await shim.ready_exec(f"e{number}", tty=False, open_stdin=True) for number in range(6)]
    assert loaded == [True] * 4 + [False] * 2  # more are started as if nothing had been asked
    await until("the runtimes to be loaded", lambda: runtimes_of(shim_pid))
    await until("the runtimes to end", lambda: not runtimes_of(shim_pid))

    def left() -> list[str]:
        return [path.name for path in shim.folder.iterdir() if path.name.startswith(("exec-", "runtime-"))]

    await until("their files to go", lambda: not left())
    assert not (await shim.status()).execs
    client, _ = await start(shim, "e0", "echo", "late", multiplexed=False, ready=True)
    with contextlib.closing(client):
        assert await read_socket(client) == b"late\n"


async def test_runtime_that_was_loaded_ends_with_its_shim(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    shim_pid = (await shim.status()).shim_pid
    assert await shim.ready_exec("e1", tty=False, open_stdin=False)
    (runtime,) = await until("the runtime to be loaded", lambda: runtimes_of(shim_pid))
    os.kill(shim_pid, signal.SIGKILL)
    await until("the runtime to end", lambda: not Path(f"/proc/{runtime}").exists())


async def test_runtime_that_found_the_container_running_is_not_used_once_it_was_paused(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    shim_pid = (await shim.status()).shim_pid
    assert await shim.ready_exec("e1", tty=False, open_stdin=False)
    (runtime,) = await until("the runtime to be loaded", lambda: runtimes_of(shim_pid))
    await shim.pause()
    await until("the runtime to end", lambda: runtime not in runtimes_of(shim_pid))
    with pytest.raises(OciError):
        await shim.exec(ExecRequest("e1", oci_process("true"), ready=True))
    await shim.resume()
    client, _ = await start(shim, "e2", "echo", "on", multiplexed=False, ready=True)
    with contextlib.closing(client):
        assert await read_socket(client) == b"on\n"


async def test_long_environment_reaches_an_exec_whose_runtime_was_loaded_before(harness: Harness) -> None:
    shim, _ = await harness.run("sleep", "1000")
    assert await shim.ready_exec("e1", tty=False, open_stdin=False)
    process = oci_process("sh", "-c", "echo ${#LONG}")
    process["env"].append("LONG=" + "x" * 100_000)
    ours, theirs = socket.socketpair()
    with contextlib.closing(ours):
        with theirs:
            await shim.exec(ExecRequest("e1", process, client=theirs.fileno(), multiplexed=False, ready=True))
        assert await read_socket(ours) == b"100000\n"
