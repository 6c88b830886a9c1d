"""What a build tells of itself: to any number of clients, whole, and not more than anybody wants to read."""

import asyncio

from moorage_guest.buildkit.messages import StatusResponse
from moorage_guest.buildkit.status import MAX_LOG_SPEED, BuildStatus
from moorage_guest.images.build.seams import Notice, Source, Vertex

STEP = "sha256:" + "1" * 64


async def gather(status: BuildStatus) -> list[StatusResponse]:
    return [message async for message in status.follow()]


def output(messages: list[StatusResponse]) -> bytes:
    return b"".join(log.msg for message in messages for log in message.logs)


async def test_who_follows_early_and_who_follows_late_see_the_same() -> None:
    status = BuildStatus()
    early = asyncio.create_task(gather(status))
    await asyncio.sleep(0)
    status.vertex(Vertex(STEP, "[1/1] RUN date", started_ns=1))
    await asyncio.sleep(0)
    status.log(STEP, 1, b"today\n")
    status.vertex(Vertex(STEP, "[1/1] RUN date", started_ns=1, completed_ns=2_000_000_001, cached=True))
    status.close()
    late = await gather(status)
    assert output(await early) == output(late) == b"today\n"
    states = [vertex for message in late for vertex in message.vertexes]
    assert [state.completed is not None for state in states] == [False, True]
    assert states[-1].completed is not None
    assert (states[-1].completed.seconds, states[-1].completed.nanos) == (2, 1)
    assert status.steps == (1, 1, 1)


async def test_output_beyond_all_measure_is_left_out_with_a_word() -> None:
    status = BuildStatus()
    for _ in range(8):
        status.log(STEP, 2, b"x" * (MAX_LOG_SPEED // 4))
    status.close()
    text = output(await gather(status))
    assert text.count(b"x") == MAX_LOG_SPEED, "what fits into the first second"
    assert text.endswith(b"\n[output clipped, log limit 200KiB/s reached]\n")
    assert text.count(b"clipped") == 1


async def test_progress_is_told_at_a_pace_but_its_end_always() -> None:
    status = BuildStatus()
    for size in range(1000):
        status.status(STEP, "transferring context:", size, 0, 1, None)
    status.status(STEP, "transferring context:", 1000, 0, 1, 2)
    status.close()
    notes = [note for message in await gather(status) for note in message.statuses]
    assert len(notes) < 10
    assert notes[-1].current == 1000
    assert notes[-1].completed is not None
    assert (notes[-1].id, notes[-1].name) == ("transferring context:", "transferring context")


async def test_a_warning_says_where_it_comes_from() -> None:
    status = BuildStatus()
    source = Source("Dockerfile", b"FROM scratch AS X\n", ((1, 1),))
    status.warning(Notice(STEP, "StageNameCasing", ("Stage names should be lowercase",), "https://example.com", source))
    status.close()
    (message,) = await gather(status)
    (warning,) = message.warnings
    assert warning.short == b"StageNameCasing"
    assert warning.info is not None
    assert warning.info.data == b"FROM scratch AS X\n"
    assert warning.ranges[0].start is not None
    assert warning.ranges[0].start.line == 1
    assert status.warnings == 1
