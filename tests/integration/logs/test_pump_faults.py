"""A full disk and slow clients: nobody else waits, and what may be lost is only what was said to be."""

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from moorage_guest.logs import pump as pump_module
from moorage_guest.logs.feed import Feed
from moorage_guest.logs.files import LogFile, Rotation
from moorage_guest.logs.jsonfile import JsonFile
from moorage_guest.logs.pump import Pump, UnknownContainer
from moorage_guest.logs.targets import LogTarget, Sink
from moorage_guest.shim.attachments import FEED

from tests.support.logs import ShimPipes, json_records, shim_pipes, write_all

DEADLINE = 60.0


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[ShimPipes]:
    with shim_pipes(tmp_path) as found:
        yield found


@pytest.fixture(autouse=True)
def short_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "RETRY", 0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.asynccontextmanager
async def pumping(target: LogTarget) -> AsyncIterator[Pump]:
    pump = Pump()
    pump.start()
    try:
        async with asyncio.timeout(DEADLINE):
            await pump.add(target)
            yield pump
    finally:
        await pump.stop()


def _stalled(pump: Pump) -> bool:
    return pump._containers["c"].stalled


async def _until_stalled(pump: Pump) -> None:
    while not _stalled(pump):  # noqa: ASYNC110 - there is nothing to wait on from outside
        await asyncio.sleep(0.01)


@pytest.mark.root
async def test_a_full_disk_blocks_the_container_and_loses_nothing(shim: ShimPipes, small_disk: Path) -> None:
    sink = Sink(LogFile(small_disk / "log.json", Rotation()), JsonFile())
    target = replace(shim.target(asyncio.get_running_loop()), sink=sink)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 100_000)
    data = b"".join(b"line %d\n" % number for number in range(2500))
    async with pumping(target) as pump:
        writing = asyncio.create_task(asyncio.to_thread(write_all, shim.streams[1]["a_write"], data))
        await _until_stalled(pump)
        write_all(shim.streams[2]["a_write"], b"waits as well\n")
        ballast.unlink()
        await writing
        await pump.drained("c", grace=0)
        assert not _stalled(pump)
    records = json_records(small_disk / "log.json")
    assert b"".join(text for stream, text, _ in records if stream == "stdout") == data
    assert b"".join(text for stream, text, _ in records if stream == "stderr") == b"waits as well\n"


class _TurnsReadOnly(LogFile):
    """A file on a disk that the kernel makes read-only: a write may still fill the block it has begun, and no cut is possible."""

    read_only = False

    def append(self, data: bytes) -> None:
        if self.read_only:
            super().append(data[: len(data) // 2])
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        super().append(data)

    def truncate(self, size: int) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        super().truncate(size)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_disk_that_turns_read_only_doubles_nothing(shim: ShimPipes, tmp_path: Path, killed: bool) -> None:
    file = _TurnsReadOnly(tmp_path / "log.json", Rotation())
    target = replace(shim.target(asyncio.get_running_loop()), sink=Sink(file, JsonFile()))
    data = [b"".join(b"line %d\n" % number for number in range(begin, begin + 500)) for begin in (0, 500, 1000)]
    async with pumping(target) as pump:
        write_all(shim.streams[1]["a_write"], data[0])
        await pump.drained("c", grace=0)
        file.read_only = True
        write_all(shim.streams[1]["a_write"], data[1])
        await _until_stalled(pump)
        await asyncio.sleep(4 * pump_module.RETRY)  # it tries again and again
        if not killed:
            file.read_only = False
            write_all(shim.streams[1]["a_write"], data[2])
            await pump.drained("c", grace=0)
    if killed:
        again = Sink(LogFile(tmp_path / "log.json", Rotation()), JsonFile())
        async with pumping(replace(shim.target(asyncio.get_running_loop()), sink=again)) as pump:
            write_all(shim.streams[1]["a_write"], data[2])
            await pump.drained("c", grace=0)
    assert b"".join(text for _, text, _ in json_records(tmp_path / "log.json")) == b"".join(data)


@pytest.mark.root
async def test_in_non_blocking_mode_the_container_goes_on_and_the_newest_are_dropped(
    shim: ShimPipes, small_disk: Path
) -> None:
    sink = Sink(LogFile(small_disk / "log.json", Rotation()), JsonFile(), buffer=100_000)
    target = replace(shim.target(asyncio.get_running_loop()), sink=sink)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 250_000)
    data = b"".join(b"%0199d\n" % number for number in range(3000))
    async with pumping(target) as pump:
        await asyncio.to_thread(write_all, shim.streams[1]["a_write"], data)
        await _until_stalled(pump)
        sink.file.truncate(0)
        ballast.unlink()
        await pump.drained("c", grace=0)
    logged = b"".join(text for _, text, _ in json_records(small_disk / "log.json"))
    assert 60_000 < len(logged) < 180_000
    assert data.startswith(logged[:60_000])


async def test_a_slow_client_gets_everything_in_order_and_the_container_does_not_wait(shim: ShimPipes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spill = shim.folder / "spill"
    target = replace(shim.target(asyncio.get_running_loop()), feed=Feed(ours, spill, active=False))
    data = b"".join(b"line %07d\n" % number for number in range(200_000))
    with theirs:
        async with pumping(target) as pump:
            assert await pump.attach("c") == {1: 0, 2: 0}
            await asyncio.to_thread(write_all, shim.streams[1]["a_write"], data)
            await pump.drained("c", grace=0)  # although nobody has read from the feed
            assert spill.exists()
            assert await pump.offsets("c") == {1: len(data), 2: 0}
            assert await asyncio.to_thread(_receive, theirs, len(data)) == data
            while spill.exists():  # noqa: ASYNC110 - the pump says nothing when it has caught up
                await asyncio.sleep(0.01)


async def test_what_a_slow_client_lacks_survives_the_daemon(shim: ShimPipes) -> None:
    data = b"".join(b"line %07d\n" % number for number in range(100_000))
    received = b""
    for _ in range(2):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        feed = Feed(ours, shim.folder / "spill", active=True)
        with theirs:
            async with pumping(replace(shim.target(asyncio.get_running_loop()), feed=feed)) as pump:
                if not received:
                    await asyncio.to_thread(write_all, shim.streams[1]["a_write"], data)
                    await pump.drained("c", grace=0)
            # The shim, too, reads an old feed to its end before a new one and drops what it has.
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while packet := theirs.recv(65_536):
                    received = _merge(received, packet)
        assert 0 < len(received) < len(data)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        feed = Feed(ours, shim.folder / "spill", active=True)
        async with pumping(replace(shim.target(asyncio.get_running_loop()), feed=feed)):
            received = await asyncio.to_thread(_receive, theirs, len(data), received)
    assert received == data


def _merge(received: bytes, packet: bytes) -> bytes:
    stream, offset = FEED.unpack_from(packet)
    payload = packet[FEED.size :]
    assert stream == 1
    assert offset <= len(received), "the feed has a gap"
    return received + payload[len(received) - offset :]


def _receive(endpoint: socket.socket, length: int, received: bytes = b"") -> bytes:
    endpoint.settimeout(DEADLINE)
    while len(received) < length:
        received = _merge(received, endpoint.recv(65_536))
    return received


async def test_nothing_is_kept_for_clients_that_have_gone(shim: ShimPipes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    target = replace(shim.target(asyncio.get_running_loop()), feed=Feed(ours, shim.folder / "spill", active=True))
    with theirs:
        async with pumping(target) as pump:
            await asyncio.to_thread(write_all, shim.streams[1]["a_write"], b"x" * 2_000_000)
            await pump.drained("c", grace=0)
            assert (shim.folder / "spill").exists()
            await pump.detach("c")
            assert not (shim.folder / "spill").exists()


async def test_a_shim_that_died_does_not_stop_the_log(shim: ShimPipes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    target = replace(shim.target(asyncio.get_running_loop()), feed=Feed(ours, shim.folder / "spill", active=True))
    async with pumping(target) as pump:
        os.write(shim.streams[1]["a_write"], b"one\n")
        await pump.drained("c", grace=0)
    assert [text for _, text, _ in json_records(shim.log)] == [b"one\n"]


async def test_the_end_of_a_pipe_costs_no_time(shim: ShimPipes) -> None:
    async with pumping(shim.target(asyncio.get_running_loop())) as pump:
        for stream in (1, 2):
            os.close(shim.streams[stream].pop("a_write"))
        while len(pump._containers["c"].ended) < 2:  # noqa: ASYNC110 - there is nothing to wait on from outside
            await asyncio.sleep(0.01)
        assert not pump._containers["c"].watched
        await pump.drained("c", grace=0)


async def test_a_full_pipe_is_drained_whole_into_however_small_files(shim: ShimPipes) -> None:
    data = b"".join(b"line %05d\n" % number for number in range(5000))
    write_all(shim.streams[1]["a_write"], data)
    rotation = Rotation(max_size=3000, max_files=10_000)
    async with pumping(shim.target(asyncio.get_running_loop(), rotation)) as pump:
        await pump.drained("c", grace=0)
    assert b"".join(text for _, text, _ in json_records(shim.log)) == data


async def test_a_process_that_writes_for_ever_after_the_end_holds_up_nobody(shim: ShimPipes) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.write(shim.streams[1]["a_write"], b"still here\n" * 300)

    async with pumping(shim.target(asyncio.get_running_loop())) as pump:
        writing = asyncio.create_task(asyncio.to_thread(write))
        draining = asyncio.create_task(pump.drained("c", grace=DEADLINE))
        try:
            for _ in range(20):
                assert (await pump.offsets("c"))[1] >= 0
            assert not draining.done()
        finally:
            stop.set()
            await writing
            draining.cancel()


async def test_a_container_that_is_not_there_is_named(shim: ShimPipes) -> None:
    async with pumping(shim.target(asyncio.get_running_loop())) as pump:
        await pump.remove("other")
        await pump.detach("other")
        with pytest.raises(UnknownContainer, match="other"):
            await pump.drained("other")


async def test_output_that_is_still_being_passed_on_is_waited_for(shim: ShimPipes) -> None:
    async with pumping(shim.target(asyncio.get_running_loop())) as pump:
        drained = asyncio.create_task(pump.drained("c", grace=DEADLINE))
        data = b"x" * 300_000
        await asyncio.to_thread(write_all, shim.streams[1]["a_write"], data)
        assert not drained.done()
        for stream in (1, 2):
            os.close(shim.streams[stream].pop("a_write"))
        await drained
    assert b"".join(text for _, text, _ in json_records(shim.log)) == data
