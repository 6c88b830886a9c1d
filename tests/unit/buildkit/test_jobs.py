"""Builds under way: found by the client's id, held until they are over, and ended when their client gives up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from moorage_guest.buildkit.errors import GrpcError
from moorage_guest.buildkit.history import COMPLETE, DELETED, STARTED, History
from moorage_guest.buildkit.jobs import Job, Jobs
from moorage_guest.buildkit.messages import BuildHistoryRequest, SolveRequest, UpdateBuildHistoryRequest
from moorage_guest.errors import Conflict, InvalidParameter, NotFound
from moorage_guest.images.build.seams import Built
from moorage_guest.images.platforms import Platform

BUILT = Built({}, (), (), Platform("linux", "amd64"), "build:1")


@contextlib.asynccontextmanager
async def building(events: list[str], release: asyncio.Event | None = None) -> AsyncIterator[Built]:
    """Stands for a build: waits for ``release`` if there is one."""
    events.append("begun")
    try:
        if release is not None:
            await release.wait()
        yield BUILT
        events.append("given up")
    except asyncio.CancelledError:
        events.append("cancelled")
        raise


async def turns() -> None:
    """Let all who can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_build_is_found_also_by_who_asks_before_it_begins() -> None:
    jobs = Jobs()
    asked = asyncio.create_task(jobs.status("ref"))
    await asyncio.sleep(0)
    async with jobs.opened(SolveRequest(ref="ref")) as job:
        assert await asked is job.status
        with pytest.raises(Conflict):
            async with jobs.opened(SolveRequest(ref="ref")):
                pass
    assert await jobs.status("ref") is job.status, "what it told can be read when it is over"


async def test_a_result_is_held_until_the_build_is_over_and_found_by_other_builds() -> None:
    jobs = Jobs()
    events: list[str] = []
    async with jobs.opened(SolveRequest(ref="one")) as one, jobs.opened(SolveRequest(ref="two")):
        outcome = await one.hold(building(events))
        assert jobs.outcome(outcome.id).built is BUILT
        assert events == ["begun"]
    assert events == ["begun", "given up"]
    with pytest.raises(NotFound):
        jobs.outcome(outcome.id)


async def test_who_gives_up_waiting_ends_the_build() -> None:
    jobs = Jobs()
    events: list[str] = []
    async with jobs.opened(SolveRequest(ref="ref")) as job:
        waiting = asyncio.create_task(job.hold(building(events, asyncio.Event())))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert events == ["begun", "cancelled"]


async def test_the_end_of_a_job_ends_what_it_still_builds() -> None:
    jobs = Jobs()
    events: list[str] = []
    async with jobs.opened(SolveRequest(ref="ref")) as job:
        waiting = asyncio.create_task(job.hold(building(events, asyncio.Event())))
        await turns()
    assert events == ["begun", "cancelled"]
    with pytest.raises(GrpcError, match="context canceled"):
        await waiting


async def test_what_fails_is_raised_to_who_waits() -> None:
    @contextlib.asynccontextmanager
    async def failing() -> AsyncIterator[Built]:
        raise InvalidParameter("no such stage")
        yield BUILT

    jobs = Jobs()
    async with jobs.opened(SolveRequest(ref="ref")) as job:
        with pytest.raises(InvalidParameter, match="no such stage"):
            await job.hold(failing())


async def test_history_lists_what_was_and_tells_what_comes() -> None:
    history = History()
    jobs = Jobs()
    seen: list[tuple[int, str]] = []

    async def listen() -> None:
        async for event in history.listen(BuildHistoryRequest()):
            assert event.record is not None
            seen.append((event.type, event.record.ref))

    async with asyncio.TaskGroup() as group:
        listener = group.create_task(listen())
        await asyncio.sleep(0)
        for ref in ("one", "two"):
            async with jobs.opened(SolveRequest(ref=ref)) as job:
                history.begun(job)
                history.over(job, {"image.name": ref}, None)
        history.update(UpdateBuildHistoryRequest(ref="one", delete=True))
        await turns()
        listener.cancel()
    assert seen == [(STARTED, "one"), (COMPLETE, "one"), (STARTED, "two"), (COMPLETE, "two"), (DELETED, "one")]
    left = [event async for event in history.listen(BuildHistoryRequest(early_exit=True))]
    assert [event.record.exporter_response for event in left if event.record] == [{"image.name": "two"}]


async def test_the_oldest_builds_are_forgotten_unless_they_are_pinned() -> None:
    history = History()

    def add(number: int) -> None:
        job = Job(SolveRequest(ref=str(number)))
        history.begun(job)
        history.over(job, {}, None)
        job.returned.cancel()

    add(0)
    history.update(UpdateBuildHistoryRequest(ref="0", pinned=True))
    for number in range(1, 70):
        add(number)
    left = [event.record.ref async for event in history.listen(BuildHistoryRequest(early_exit=True)) if event.record]
    assert left == ["0", *(str(number) for number in range(20, 70))]
