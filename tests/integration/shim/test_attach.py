"""Attached clients of a real container: output by feed, input, terminals, detach keys."""

import asyncio
import contextlib
import fcntl
import functools
import os
import socket
import sys
import termios
from collections.abc import AsyncIterator

import pytest
from moorage_guest.engine.shims import AttachedChanged, ContainerExited, Detached, Shim
from moorage_guest.shim import kernel

from tests.support.shims import Harness, close_pipes, frames, private_agent, read_pipe, read_socket, read_some, until

pytestmark = pytest.mark.root


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with private_agent() as harness:
        yield harness


async def attach(shim: Shim, **options: object) -> socket.socket:
    """Attach one end of a socket pair and return the other."""
    ours, theirs = socket.socketpair()
    with theirs:
        await shim.attach(theirs, **options)  # type: ignore[arg-type]
    return ours


async def pump(shim: Shim) -> None:
    """Feed everything the container writes, as the daemon does, and say when it is complete."""
    pipes = await shim.pipes()
    feed = await shim.feed()
    lengths = {}
    for stream in pipes.streams:
        data = await read_pipe(stream.a_read)
        for start in range(0, len(data), feed.MAX_BYTES):
            piece = data[start : start + feed.MAX_BYTES]
            await until("room in the feed", functools.partial(feed.send, stream.stream, start, piece))
        lengths[stream.stream] = len(data)
    await shim.finish_output(lengths)
    feed.close()
    close_pipes(pipes)


def full(fd: int) -> bool:
    """Whether a pipe holds exactly what fits."""
    return kernel.bytes_waiting(fd) == 65536


async def test_attached_client_gets_framed_output_and_an_end(harness: Harness) -> None:
    shim = await harness.shim()
    with contextlib.closing(await attach(shim)) as client:
        await shim.run(harness.bundle(shim.container_id, "sh", "-c", "echo out; echo err >&2"))
        await pump(shim)
        assert frames(await read_socket(client)) == {1: b"out\n", 2: b"err\n"}


async def test_feed_repeated_by_a_second_daemon_reaches_the_client_once(harness: Harness) -> None:
    shim = await harness.shim()
    with contextlib.closing(await attach(shim, multiplexed=False, stderr=False)) as client:
        first = await shim.feed()
        assert first.send(1, 0, b"0123456789")
        assert first.send(2, 0, b"not wanted")
        second = await shim.feed()
        assert second.send(1, 5, b"56789abcde")
        first.close()
        assert second.send(1, 15, b"fghij")
        assert second.send(1, 0, b"0123")
        await shim.finish_output({1: 20})
        assert await read_socket(client) == b"0123456789abcdefghij"
        second.close()


async def test_output_below_the_start_offset_is_not_shown(harness: Harness) -> None:
    shim = await harness.shim()
    with contextlib.closing(await attach(shim, multiplexed=False, start_offsets={1: 4})) as client:
        feed = await shim.feed()
        assert feed.send(1, 0, b"old new")
        await shim.finish_output({1: 7})
        assert await read_socket(client) == b"new"
        feed.close()


async def test_input_half_closed_by_the_client_ends_the_containers_stdin(harness: Harness) -> None:
    shim = await harness.shim(open_stdin=True, stdin_once=True)
    with contextlib.closing(await attach(shim, prefix=b"first ", multiplexed=False)) as client:
        client.sendall(b"second ")
        await shim.run(harness.bundle(shim.container_id, "sh", "-c", "cat; echo done"))
        client.sendall(b"third ")
        client.shutdown(socket.SHUT_WR)
        await pump(shim)
        assert await read_socket(client) == b"first second third done\n"
    assert not (await shim.status()).stdin_open


async def test_stdin_stays_open_for_the_next_client_unless_asked_to_close_once(harness: Harness) -> None:
    shim, _ = await harness.run("cat", open_stdin=True)
    for text in (b"one ", b"two "):
        with contextlib.closing(await attach(shim, stdout=False, stderr=False)) as client:
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            assert await read_socket(client) == b""
    assert (await shim.status()).stdin_open
    await shim.close_stdin()
    pipes = await shim.pipes()
    assert await read_pipe(pipes.streams[0].a_read) == b"one two "
    close_pipes(pipes)


async def test_much_input_is_neither_lost_nor_kept_in_memory(harness: Harness) -> None:
    shim, _ = await harness.run("sh", "-c", "sleep 0.3; cat", open_stdin=True, stdin_once=True)
    data = os.urandom(3_000_000)
    pipes = await shim.pipes()
    with contextlib.closing(await attach(shim, stdout=False, stderr=False)) as client:
        client.setblocking(False)
        sender = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, data))
        reader = asyncio.create_task(read_pipe(pipes.streams[0].a_read))
        await sender
        client.shutdown(socket.SHUT_WR)
        assert await reader == data
    close_pipes(pipes)


async def test_terminal_has_the_size_that_was_set_before_and_after_the_start(harness: Harness) -> None:
    shim = await harness.shim(tty=True, open_stdin=True)
    await shim.resize(None, 11, 22)
    with contextlib.closing(await attach(shim, multiplexed=False)) as client:
        script = "read x; stty size; read x; stty size; echo got $x"
        await shim.run(harness.bundle(shim.container_id, "sh", "-c", script, tty=True))
        pipes = await shim.pipes()
        client.sendall(b"a\r")
        output = b""
        while not output.endswith(b"11 22\r\n"):
            output += await until("output", lambda: read_some(pipes.streams[0].a_read))
        await shim.resize(None, 33, 44)
        client.sendall(b"word\r")
        assert await read_pipe(pipes.streams[0].a_read) == b"word\r\n33 44\r\ngot word\r\n"
        close_pipes(pipes)
    assert (await shim.status()).size == (33, 44)


async def test_detach_keys_end_the_connection_and_not_the_container(harness: Harness) -> None:
    shim, _ = await harness.run("cat", tty=True, open_stdin=True)
    with contextlib.closing(await attach(shim, multiplexed=False, detach_keys=b"\x10\x11")) as client:
        client.sendall(b"a\x10b\r\x10")
        client.sendall(b"\x11ignored")
        assert await read_socket(client) == b""
    events = shim.events
    assert [await anext(events) for _ in range(3)] == [AttachedChanged(1), Detached(None), AttachedChanged(0)]
    assert (await shim.status()).running


async def test_a_slow_client_holds_up_the_feed_and_loses_nothing(harness: Harness) -> None:
    shim = await harness.shim()
    with contextlib.closing(await attach(shim, multiplexed=False)) as client:
        feed = await shim.feed()
        block = bytes(range(256)) * 128
        sent = 0
        quiet = 0
        while quiet < 50:
            if feed.send(1, sent, block):
                sent += len(block)
                quiet = 0
            else:
                quiet += 1
                await asyncio.sleep(0.01)
        assert sent < 4_000_000
        feed.close()
        await shim.finish_output({1: sent})
        assert await read_socket(client) == block * (sent // len(block))


async def test_exactly_64_kib_fit_into_a_pipe_and_then_the_container_waits(harness: Harness) -> None:
    shim, started = await harness.run("sh", "-c", "yes 0123456 >&2 & yes 0123456")
    pipes = await shim.pipes()
    for stream in pipes.streams:
        await until("the pipe to be full", functools.partial(full, stream.a_read))
    taken = os.read(pipes.streams[0].a_read, 8192)
    assert taken == b"0123456\n" * 1024
    await until("the pipe to fill up again", functools.partial(full, pipes.streams[0].a_read))
    await shim.signal(None, 9)
    rest = await read_pipe(pipes.streams[0].a_read)
    assert rest == (b"0123456\n" * (len(rest) // 8 + 1))[: len(rest)]
    assert started.pid
    close_pipes(pipes)
    assert isinstance(await anext(shim.events), ContainerExited)


async def test_client_that_is_held_misses_nothing_that_is_fed_before_its_beginning_is_known(harness: Harness) -> None:
    shim = await harness.shim()
    feed = await shim.feed()
    ours, theirs = socket.socketpair()
    with theirs:
        held = (await shim.attach(theirs, multiplexed=False, hold=True)).held
    assert held is not None
    with contextlib.closing(ours) as client, contextlib.closing(await attach(shim, multiplexed=False)) as other:
        assert feed.send(1, 0, b"earlier ")
        assert feed.send(1, 8, b"from here on")
        await shim.status()  # the shim has had every chance to read the feed
        await shim.attach_from(held, {1: 8, 2: 0})
        assert feed.send(1, 20, b", all of it")
        await shim.finish_output({1: 31, 2: 0})
        assert await read_socket(client) == b"from here on, all of it"
        assert await read_socket(other) == b"earlier from here on, all of it"
    feed.close()


async def test_client_that_is_held_gets_output_when_its_daemon_dies(harness: Harness) -> None:
    shim = await harness.shim()
    feed = await shim.feed()
    dying = await Shim.connect(harness.exec_root, shim.container_id)
    ours, theirs = socket.socketpair()
    with theirs:
        assert (await dying.attach(theirs, multiplexed=False, hold=True)).held is not None
    with contextlib.closing(ours) as client:
        assert feed.send(1, 0, b"goes on")
        dying.close()
        await shim.finish_output({1: 7})
        assert await read_socket(client) == b"goes on"
    feed.close()


async def test_a_held_client_is_answered_before_its_output_and_when_its_beginning_is_known(harness: Harness) -> None:
    shim = await harness.shim()
    feed = await shim.feed()
    ours, theirs = socket.socketpair()
    with theirs:
        given = await shim.attach(theirs, multiplexed=False, hold=True, head=b"HEAD\r\n\r\n")
    assert given.held is not None
    assert given.greets
    with contextlib.closing(ours) as client:
        assert feed.send(1, 0, b"output")
        await shim.status()
        assert fcntl.ioctl(client, termios.FIONREAD, bytes(4)) == bytes(4)
        await shim.attach_from(given.held, {1: 0, 2: 0})
        await shim.finish_output({1: 6, 2: 0})
        assert await read_socket(client) == b"HEAD\r\n\r\noutput"
    feed.close()


async def test_a_held_client_without_an_answer_is_left_as_it_is_when_its_daemon_dies(harness: Harness) -> None:
    shim = await harness.shim()
    dying = await Shim.connect(harness.exec_root, shim.container_id)
    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(ours) as client:
        assert (await dying.attach(theirs, multiplexed=False, hold=True, head=b"HEAD\r\n\r\n")).held is not None
        assert (await shim.status()).attached == 1
        dying.close()
        await until("it to be left", lambda: _nobody_attached(shim))
        client.sendall(b"more")
        theirs.setblocking(False)
        assert theirs.recv(100) == b"more"
        assert (await shim.attach(theirs, multiplexed=False, head=b"HEAD\r\n\r\n")).greets
        client.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(client, 100) == b"HEAD\r\n\r\n"


async def _nobody_attached(shim: Shim) -> bool:
    return (await shim.status()).attached == 0


async def test_input_of_a_held_client_is_read_once_its_beginning_is_known(harness: Harness) -> None:
    shim, _ = await harness.run("cat", open_stdin=True)
    pipes = await shim.pipes()
    ours, theirs = socket.socketpair()
    with theirs:
        held = (await shim.attach(theirs, stdin=True, multiplexed=False, hold=True, prefix=b"early ")).held
    assert held is not None
    with contextlib.closing(ours) as client:
        client.sendall(b"and later\n")
        for _ in range(20):  # the shim has had every chance to read it
            await shim.status()
        unread = fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4))
        assert int.from_bytes(unread, sys.byteorder) > 0
        await shim.attach_from(held, {1: 0, 2: 0})
        await until("the input", lambda: kernel.bytes_waiting(pipes.streams[0].a_read) == 16)
    close_pipes(pipes)
