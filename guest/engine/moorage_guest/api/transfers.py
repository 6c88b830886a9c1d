"""Pulls and pushes, which the next daemon goes on with: both can be done again, and what has been carried stays carried.

Under a supervisor the agent writes their progress; the record that it keeps, in memory alone, says what was asked for.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from moorage_contract.postponed import postponed

from moorage_guest import web
from moorage_guest.api.lasting import begin_lasting
from moorage_guest.api.server import ApiRequest, GivenAway, json_response, part, while_connected
from moorage_guest.engine.shims import Agent, ClientGone, LastingStream
from moorage_guest.errors import EngineError
from moorage_guest.images import names, platforms, remote
from moorage_guest.images.registry import Credentials
from moorage_guest.images.store import Images
from moorage_guest.images.streams import ProgressQueue, failure

with postponed("moorage_guest.images.pulling", "moorage_guest.images.pushing"):
    from moorage_guest.images import pulling, pushing

log = logging.getLogger(__name__)

#: What a record says of them in "op".
OPERATIONS = ("pull", "push")

#: Bytes in one datagram to the agent at most, before it is framed.
_PIECE = 48 * 1024


def record_of(request: ApiRequest, operation: str, reference: str) -> dict[str, Any]:
    """Return what a pull or push needs to be done, now or by the next daemon."""
    return {
        "op": operation, "reference": reference, "chunked": True, "platform": request.query.get("platform", ""),
        "auth": request.headers.get("X-Registry-Auth", ""), "client": request.headers.get("User-Agent", ""),
    }  # fmt: skip


async def work(images: Images, record: dict[str, Any], progress: ProgressQueue) -> None:
    """Do it. Raises EngineError and OSError; what is wrong with the record itself first."""
    remote.UPSTREAM.set(str(record["client"]))
    wanted = names.parse(str(record["reference"]))
    everything = not wanted.tag and not wanted.digest
    own = Credentials.of_header(str(record["auth"]))
    if record["op"] == "push":
        await pushing.push(images, wanted, progress.send, credentials=own, everything=everything)
        return
    platform = platforms.of_query(str(record["platform"]))
    await pulling.pull(images, wanted, progress.send, credentials=own, platform=platform, everything=everything)


async def answered(images: Images, agent: Agent, request: ApiRequest, record: dict[str, Any]) -> web.StreamResponse:
    """Answer through the agent, under which this daemon runs. An error before the first message has its status."""
    async with _begun(images, record) as (progress, task):
        lines = progress.lines()
        first = b""

        async def begin() -> None:
            nonlocal first
            first = await anext(lines, b"")
            if not first:
                await task  # raises what went wrong

        try:
            await while_connected(request, begin())
        except OSError as error:
            raise EngineError(str(error)) from None
        lasting = await begin_lasting(request, agent, record)
        if lasting is not None:  # else the client has left
            await _send(lasting, record, first, lines, task)
    part(request)
    return GivenAway()


async def resume(images: Images, record: dict[str, Any], lasting: LastingStream) -> None:
    """Go on with what an earlier daemon began. Returns when it is done or its client gone."""
    async with _begun(images, record) as (progress, task):
        await _send(lasting, record, b"", progress.lines(), task)


@contextlib.asynccontextmanager
async def _begun(images: Images, record: dict[str, Any]) -> AsyncIterator[tuple[ProgressQueue, "asyncio.Task[None]"]]:
    progress = ProgressQueue()

    async def run() -> None:
        try:
            await work(images, record, progress)
        finally:
            progress.end()

    task = asyncio.get_running_loop().create_task(run(), name=f"{record['op']} {record['reference']}")
    try:
        yield progress, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _send(
    lasting: LastingStream,
    record: dict[str, Any],
    first: bytes,
    lines: AsyncIterator[bytes],
    task: "asyncio.Task[None]",
) -> None:
    """Send progress and the end, until the client leaves."""

    async def send() -> None:
        await _write(lasting, record, first)
        async for each in lines:
            await _write(lasting, record, each)
        try:
            await task
        except (EngineError, OSError) as error:
            log.info("%s of %s: %s", record["op"], record["reference"], error)
            await _write(lasting, record, json_response(failure(error)).body)
        except Exception as error:
            log.exception("%s of %s failed", record["op"], record["reference"])
            await _write(lasting, record, json_response(failure(error)).body)
        await lasting.send(b"0\r\n\r\n", record)

    sending = asyncio.ensure_future(send())
    gone = asyncio.ensure_future(lasting.closed.wait())
    try:
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            with contextlib.suppress(ClientGone):
                sending.result()
    finally:
        for each in (sending, gone):
            each.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
    await lasting.close()


async def _write(lasting: LastingStream, record: dict[str, Any], data: Any) -> None:
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        await lasting.send(b"%x\r\n%b\r\n" % (len(piece), piece), record)
