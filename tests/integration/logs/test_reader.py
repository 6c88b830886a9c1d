"""Logs are read back as they were written: whole, from the end, by time, following, over rotation and packing."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from moorage_guest.logs.files import LogFile, Rotation, history
from moorage_guest.logs.formats import Format
from moorage_guest.logs.journal import StreamState
from moorage_guest.logs.jsonfile import JsonFile
from moorage_guest.logs.local import Local
from moorage_guest.logs.notify import Notifier
from moorage_guest.logs.pump import Pump
from moorage_guest.logs.reader import LogQuery, Position, read_logs
from moorage_guest.logs.records import cut
from moorage_guest.logs.times import fixed_text

from tests.support.logs import ShimPipes, pieces, shim_pipes, write_all

FORMATS: dict[str, Callable[[], Format]] = {"json-file": JsonFile, "local": Local}
ROTATION = Rotation(max_size=25_000, max_files=1000)


@pytest.fixture(params=sorted(FORMATS))
def log_format(request: pytest.FixtureRequest) -> Format:
    return FORMATS[str(request.param)]()


class Writer:
    """Appends records to a log as the pump does, with times of its own choosing."""

    def __init__(self, folder: Path, log_format: Format, rotation: Rotation = ROTATION) -> None:
        self.path = folder / "log"
        self.format = log_format
        self.file = LogFile(self.path, rotation)
        self.time = 1_000_000_000_000_000_000
        self.states = {1: StreamState(), 2: StreamState()}
        self.lines: list[tuple[int, int, bytes]] = []

    def write(self, stream: int, data: bytes) -> None:
        self.time += 1_000_000
        piece = cut(self.states[stream], data)
        self.states[stream] = piece.state
        encoded = self.format.encode(stream, piece, self.time)
        if encoded:
            self.file.rotate_for(self.file.identity()[2])
            self.file.append(encoded)
        self.lines += [(stream, self.time, line) for line in data.splitlines(keepends=True)]

    async def read(self, query: LogQuery, position: Position | None = None) -> bytes:
        return b"".join([chunk.data async for chunk in read_logs(self.path, self.format, query, position=position)])


def filled(folder: Path, log_format: Format, lines: int = 3000, rotation: Rotation = ROTATION) -> Writer:
    writer = Writer(folder, log_format, rotation)
    chance = random.Random(5)
    number = 0
    while number < lines:
        count = chance.randrange(1, 40)
        stream = chance.choice((1, 1, 2))
        text = "".join(f'line {number + each} "é\\{chance.random()}\t"\n' for each in range(count))
        writer.write(stream, text.encode())
        number += count
    return writer


async def test_everything_comes_back_in_order(tmp_path: Path, log_format: Format) -> None:
    writer = filled(tmp_path, log_format)
    assert len(history(writer.path)) > 3
    assert await writer.read(LogQuery()) == b"".join(line for _, _, line in writer.lines)
    assert await writer.read(LogQuery(stdout=False)) == b"".join(
        line for stream, _, line in writer.lines if stream == 2
    )
    writer.file.close()


async def test_frames_are_one_line_each(tmp_path: Path, log_format: Format) -> None:
    writer = filled(tmp_path, log_format, 200)
    data = await writer.read(LogQuery(multiplexed=True))
    found = []
    while data:
        length = int.from_bytes(data[4:8], "big")
        found.append((data[0], data[8 : 8 + length]))
        data = data[8 + length :]
    assert found == [(stream, line) for stream, _, line in writer.lines]
    writer.file.close()


async def test_long_frames_hold_many_lines_of_one_stream(tmp_path: Path, log_format: Format) -> None:
    writer = Writer(tmp_path, log_format)
    writer.write(1, b"".join(b"line %d\n" % number for number in range(10_000)))
    writer.write(2, b"error\n")
    data = await writer.read(LogQuery(multiplexed=True, long_frames=True))
    found = []
    while data:
        length = int.from_bytes(data[4:8], "big")
        assert 0 < length <= 32 * 1024
        found.append((data[0], data[8 : 8 + length]))
        data = data[8 + length :]
    assert b"".join(text for stream, text in found if stream == 1) == b"".join(
        line for stream, _, line in writer.lines if stream == 1
    )
    assert found[-1] == (2, b"error\n")
    assert len(found) < 20
    writer.file.close()


@pytest.mark.parametrize("count", [0, 1, 7, 900, 2999, 10_000])
async def test_tail_gives_the_last_lines(tmp_path: Path, log_format: Format, count: int) -> None:
    writer = filled(tmp_path, log_format)
    wanted = [line for _, _, line in writer.lines][-count:] if count else []
    assert (await writer.read(LogQuery(tail=count))).splitlines(keepends=True) == wanted
    writer.file.close()


async def test_since_and_until_bound_the_records(tmp_path: Path, log_format: Format) -> None:
    writer = filled(tmp_path, log_format)
    since, until = writer.lines[1000][1], writer.lines[2000][1]
    wanted = b"".join(line for _, time, line in writer.lines if since <= time <= until)
    assert await writer.read(LogQuery(since_ns=since, until_ns=until)) == wanted
    writer.file.close()


async def test_timestamps_and_details_stand_before_each_line(tmp_path: Path) -> None:
    writer = Writer(tmp_path, JsonFile({"b": "x y", "a": "1"}))
    writer.write(1, b"one\ntwo\n" + b"z" * 20_000 + b"\n")
    time = fixed_text(writer.time).encode()
    assert len(time) == 30
    said = await writer.read(LogQuery(timestamps=True, details=True))
    prefix = time + b" a=1,b=x+y "
    assert said == prefix + b"one\n" + prefix + b"two\n" + prefix + b"z" * 20_000 + b"\n"
    writer.file.close()


async def test_any_bytes_come_back(tmp_path: Path, log_format: Format) -> None:
    writer = Writer(tmp_path, log_format, Rotation())
    chance = random.Random(9)
    data = b"".join(chance.randbytes(chance.randrange(200)) + b"\n" for _ in range(300))
    data += bytes(range(256)) * 3 + b"\\n\\\n\\\\n\n" + "\ud83d\ude00 \u2028".encode("utf-8", "surrogatepass") + b"\n"
    data += b"\\n" * 9000 + b"\n" + b"\\" * 16384 + b"n\n" + b"\xed\xa0\x80\n\xf0\x9f\n"
    for start in range(0, len(data), 5000):
        writer.write(1, data[start : start + 5000])
    assert await writer.read(LogQuery()) == data
    writer.file.close()


async def test_packed_files_are_read_as_the_others(tmp_path: Path, log_format: Format) -> None:
    writer = filled(tmp_path, log_format, rotation=replace(ROTATION, compress=True))
    writer.file.close()
    assert [path for path in history(writer.path) if path.suffix == ".gz"] == history(writer.path)[:-1]
    assert await writer.read(LogQuery()) == b"".join(line for _, _, line in writer.lines)
    assert (await writer.read(LogQuery(tail=2000))).count(b"\n") == 2000


async def test_old_files_beyond_max_file_go(tmp_path: Path, log_format: Format) -> None:
    writer = filled(tmp_path, log_format, rotation=Rotation(max_size=20_000, max_files=3))
    assert [path.name for path in history(writer.path)] == ["log.2", "log.1", "log"]
    logged = await writer.read(LogQuery())
    assert b"".join(line for _, _, line in writer.lines).endswith(logged)
    writer.file.close()


async def test_a_reader_goes_on_from_any_position(tmp_path: Path, log_format: Format) -> None:
    writer = filled(tmp_path, log_format)
    everything = await writer.read(LogQuery())
    seen = b""
    async with contextlib.aclosing(read_logs(writer.path, writer.format, LogQuery())) as chunks:
        async for chunk in chunks:
            seen += chunk.data
            position = Position.from_json(chunk.position.to_json())
            assert seen + await writer.read(LogQuery(), position) == everything
    writer.file.close()


async def test_a_position_inside_a_run_goes_on_there(tmp_path: Path, log_format: Format) -> None:
    writer = Writer(tmp_path, log_format, Rotation())
    writer.write(1, b"a\nb\nc\n")
    writer.write(2, b"d\n")
    first = writer.time - 1_000_000
    assert await writer.read(LogQuery(), Position(first, 2)) == b"b\nc\nd\n"
    writer.file.close()


@pytest.mark.parametrize("count", [0, 1, 5, 700, 10_000])
async def test_a_tail_can_be_gone_on_with_before_its_first_byte_and_whatever_is_written_meanwhile(
    tmp_path: Path, log_format: Format, count: int
) -> None:
    writer = filled(tmp_path, log_format)
    async with contextlib.aclosing(read_logs(writer.path, writer.format, LogQuery(tail=count))) as chunks:
        places = [(chunk.data, Position.from_json(chunk.position.to_json())) async for chunk in chunks]
    assert places[0][0] == b""
    already = len(writer.lines)
    for number in range(300):
        writer.write(1 + number % 2, f"later {number}\nand more\n".encode())
    lines = [line for _, _, line in writer.lines]
    wanted = b"".join(lines[max(0, already - count) :])
    seen = b""
    for data, position in places:
        seen += data
        assert seen + await writer.read(LogQuery(tail=count), position) == wanted
    writer.file.close()


async def test_a_tail_of_an_empty_log_begins_with_the_first_record(tmp_path: Path, log_format: Format) -> None:
    writer = Writer(tmp_path, log_format, Rotation())
    (place,) = [chunk.position async for chunk in read_logs(writer.path, writer.format, LogQuery(tail=0))]
    writer.write(1, b"first\n")
    assert await writer.read(LogQuery(tail=0), place) == b"first\n"
    writer.file.close()


async def test_a_reader_that_goes_on_inside_a_line_does_not_repeat_its_timestamp(
    tmp_path: Path, log_format: Format
) -> None:
    writer = Writer(tmp_path, log_format, Rotation())
    writer.write(2, b"before\n")
    query = LogQuery(timestamps=True)
    for part in (b"x" * 20_000, b"y" * 20_000, b"z\nnext\n"):
        seen = [chunk async for chunk in read_logs(writer.path, writer.format, query)]
        writer.write(1, part)
        whole = await writer.read(query)
        for number, chunk in enumerate(seen, 1):
            so_far = b"".join(each.data for each in seen[:number])
            position = Position.from_json(chunk.position.to_json())
            assert so_far + await writer.read(query, position) == whole
    assert whole.count(b"Z ") == 3
    writer.file.close()


async def test_half_a_record_at_the_end_is_cut_off_when_the_log_is_opened(tmp_path: Path, log_format: Format) -> None:
    writer = filled(tmp_path, log_format, 100, Rotation())
    whole = writer.file.identity()[2]
    encoded = log_format.encode(1, cut(StreamState(), b"half\n" * 10), writer.time + 1)
    for junk in (encoded[: len(encoded) // 2 - 3], b"\0" * 5000, encoded[:30] + b"\0" * 400, b"\xff{"):
        writer.file.append(junk)
        writer.file.repair(log_format)
        whole += log_format.whole(junk) if isinstance(log_format, JsonFile) else 0
        assert writer.file.identity()[2] == whole
    writer.file.append(encoded)
    assert writer.file.repair(log_format) == 0
    writer.file.close()


@pytest.mark.parametrize("query", [LogQuery(), LogQuery(tail=3), LogQuery(follow=True)])
async def test_half_a_record_that_nobody_has_repaired_yet_is_not_served(
    tmp_path: Path, log_format: Format, query: LogQuery
) -> None:
    writer = filled(tmp_path, log_format, 100, Rotation())
    encoded = log_format.encode(1, cut(StreamState(), b"half " * 10 + b"\n"), writer.time + 1)
    for junk in (encoded[:-20], b"\0" * 300):
        writer.file.append(junk)
        wanted = [line for _, _, line in writer.lines][-(query.tail or 0) :]
        assert (await writer.read(query)).splitlines(keepends=True) == wanted
    writer.file.close()


@contextlib.asynccontextmanager
async def pumping(shim: ShimPipes, log_format: Format, rotation: Rotation) -> AsyncIterator[tuple[Pump, Notifier]]:
    pump = Pump()
    pump.start()
    try:
        await pump.add(shim.target(asyncio.get_running_loop(), rotation, log_format))
        notifier = pump.notifier("c")
        assert notifier is not None
        yield pump, notifier
    finally:
        await pump.stop()


@pytest.mark.parametrize("compress", [False, True])
async def test_a_follower_sees_everything_over_rotations_and_ends_with_the_log(
    tmp_path: Path, log_format: Format, compress: bool
) -> None:
    rotation = Rotation(max_size=50_000, max_files=1000, compress=compress)
    with shim_pipes(tmp_path) as shim:
        written = []

        def write() -> None:
            source = pieces(3, 1)
            for _ in range(3000):
                written.append(next(source))
                write_all(shim.streams[1]["a_write"], written[-1])

        async with pumping(shim, log_format, rotation) as (pump, notifier):

            async def follow() -> bytes:
                query = LogQuery(follow=True)
                return b"".join([each.data async for each in read_logs(shim.log, log_format, query, notifier=notifier)])

            async with asyncio.timeout(60):
                reader = asyncio.create_task(follow())
                await asyncio.to_thread(write)
                await pump.drained("c", grace=0)
                await pump.remove("c")
                assert await reader == b"".join(written)
    assert len(history(tmp_path / "log.json")) > 3


async def test_a_follower_goes_on_when_somebody_cuts_the_log_short(tmp_path: Path, log_format: Format) -> None:
    with shim_pipes(tmp_path) as shim:
        async with pumping(shim, log_format, Rotation()) as (pump, notifier):
            os.write(shim.streams[1]["a_write"], b"old " * 100 + b"\n")
            async with asyncio.timeout(60):
                await notifier.wait(0)
                chunks = read_logs(shim.log, log_format, LogQuery(follow=True), notifier=notifier)
                async with contextlib.aclosing(chunks):
                    assert (await anext(chunks)).data == b"old " * 100 + b"\n"
                    os.truncate(shim.log, 0)
                    os.write(shim.streams[1]["a_write"], b"new\n")
                    assert (await anext(chunks)).data == b"new\n"
                    assert (await pump.offsets("c"))[1] == 405


async def test_a_follower_with_tail_0_sees_new_lines_alone(tmp_path: Path, log_format: Format) -> None:
    with shim_pipes(tmp_path) as shim:
        async with pumping(shim, log_format, Rotation()) as (_, notifier):
            os.write(shim.streams[1]["a_write"], b"old\n")
            async with asyncio.timeout(60):
                await notifier.wait(0)
                query = LogQuery(follow=True, tail=0)
                chunks = read_logs(shim.log, log_format, query, notifier=notifier)
                async with contextlib.aclosing(chunks):
                    assert (await anext(chunks)).data == b""  # says where it begins
                    os.write(shim.streams[1]["a_write"], b"new\n")
                    assert (await anext(chunks)).data == b"new\n"
