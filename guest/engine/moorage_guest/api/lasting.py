"""Answers that outlive the daemon: the agent writes them, and keeps the record from which the next daemon goes on.

The head goes the same way as all that follows. So a request is held for the next daemon up to the very moment in which the
agent has the answer, and there is none in which a kill would leave a client between the two.
"""

import contextlib
from email.utils import formatdate
from typing import Any

from moorage_guest.api.server import ApiRequest
from moorage_guest.engine.shims import Agent, ClientGone, LastingStream

#: In a record: the head of an answer that has yet to be written.
_HEAD = "head"


async def begin_lasting(
    request: ApiRequest, agent: Agent | None, resume: dict[str, Any], content_type: str = "application/json"
) -> LastingStream | None:
    """Give the answer of a request to the agent; None when there is no supervisor: then answer on the request.

    The connection is no longer this daemon's then: the handler has to return `GivenAway`. ``resume`` needs "chunked".
    """
    transport = request.transport
    if agent is None or not agent.supervised or transport is None:
        return None
    head = _head(request, content_type, chunked=bool(resume["chunked"]))
    kept = request.connection.kept
    stream = await agent.open_lasting(
        transport.get_extra_info("socket"),
        {**resume, _HEAD: head.decode("latin-1")},
        held=None if kept is None else kept.key,
    )
    if stream is not None:
        request.give_away()
        with contextlib.suppress(ClientGone):  # the next piece will say it again
            await stream.send(head, resume)
    return stream


async def taken_up(record: dict[str, Any], stream: LastingStream) -> dict[str, Any]:
    """Return the record from which to go on with an answer of the daemon before, after writing its head if that did not."""
    head = record.get(_HEAD)
    if head is None:
        return record
    record = {name: value for name, value in record.items() if name != _HEAD}
    with contextlib.suppress(ClientGone):
        await stream.send(str(head).encode("latin-1"), record)
    return record


def _head(request: ApiRequest, content_type: str, *, chunked: bool) -> bytes:
    lines = [
        f"HTTP/1.{1 if chunked else 0} 200 OK",
        f"Content-Type: {content_type}",
        f"Date: {formatdate(usegmt=True)}",
    ]
    lines += [f"{name}: {value}" for name, value in request.server_headers.items()]
    lines.append("Transfer-Encoding: chunked" if chunked else "Connection: close")
    return "\r\n".join((*lines, "", "")).encode("latin-1")
