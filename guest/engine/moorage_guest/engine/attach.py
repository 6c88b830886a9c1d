"""Clients attached to a container's streams. The shim serves them; here they are brought to it."""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from socket import socket

from moorage_guest.engine import starting
from moorage_guest.engine.containers import Containers, Running
from moorage_guest.engine.names import not_found
from moorage_guest.engine.record import Container
from moorage_guest.engine.shims import ShimError, ShimGone
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict, InvalidParameter
from moorage_guest.logs.pump import UnknownContainer

log = logging.getLogger(__name__)

#: Control-p control-q.
DEFAULT_DETACH_KEYS = b"\x10\x11"


def parse_detach_keys(text: str) -> bytes:
    """Return the bytes of ``ctrl-p,ctrl-q`` and the like; "" is the default. Raises InvalidParameter."""
    if not text:
        return DEFAULT_DETACH_KEYS
    keys = bytearray()
    for key in text.split(","):
        if len(key) == 1 and key.isascii():
            keys += key.encode()
        elif match := re.fullmatch(r"ctrl-([a-z@\[\\\]^_])", key):
            keys.append(ord(match[1].upper()) - 64)
        else:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided")
    return bytes(keys)


@dataclass(frozen=True)
class AttachRequest:
    """Which streams a client wants and how."""

    stdin: bool
    stdout: bool
    stderr: bool
    multiplexed: bool
    detach_keys: bytes


@dataclass(frozen=True)
class Handover:
    """How a client's connection passes from HTTP to the shim.

    The shim writes ``head``, so that no client is told that it is attached before it is; until ``leave`` (idempotent) is
    called the connection is held for the next daemon, which does the request again.
    """

    head: bytes
    leave: Callable[[], None]


def check_attachable(container: Container) -> None:
    """Raise Conflict when nobody can be attached in the container's state."""
    if container.status == Status.PAUSED:
        raise Conflict(f"container {container.id} is paused, unpause the container before attach.")
    if container.status == Status.RESTARTING:
        raise Conflict(f"container {container.id} is restarting, wait until the container is running.")
    if container.removing or container.status in (Status.REMOVING, Status.DEAD):
        raise Conflict(f"container {container.id} is marked for removal and cannot be attached to")


async def reserve(engine: Containers, container: Container) -> Running:
    """Return the shim that will serve a client, forked now for a container that is yet to start."""
    check_attachable(container)
    if not container.status.alive:
        async with container.lock:
            check_attachable(container)  # it may have been removed before its turn came
            if engine.get(container.id) is None:
                raise not_found(container.id)
            if not container.status.alive:
                return await starting.prepared_shim(engine, container)
    running = engine.running.get(container.id)
    if running is None:
        raise Conflict(f"container {container.id} is not running")
    return running


async def attach(
    engine: Containers,
    container: Container,
    running: Running,
    client: socket,
    prefix: bytes,
    request: AttachRequest,
    handover: Handover | None = None,
) -> None:
    """Give a client to the shim; it misses nothing that is written from now on. Closes the socket."""
    running.attaching += 1
    try:
        with contextlib.closing(client):
            hold = running.output is not None
            if handover is not None and not hold:  # it is served at once
                handover.leave()
            try:
                given = await running.shim.attach(
                    client, prefix=prefix, stdin=request.stdin and container.config.open_stdin, stdout=request.stdout,
                    stderr=request.stderr, multiplexed=request.multiplexed,
                    detach_keys=request.detach_keys if container.config.tty else b"",  # in a file they are bytes like others
                    hold=hold, head=b"" if handover is None else handover.head,
                )  # fmt: skip
            except ShimError:
                if handover is not None and hold:  # the container has ended meanwhile: it sees the end and no error
                    await _greet(client, handover)
                raise
            running.attached = True
            offsets = await _offsets(running) if given.held is not None else {}
            if handover is not None and given.greets:
                handover.leave()
            elif handover is not None:
                await _greet(client, handover)
            if given.held is not None:
                await running.shim.attach_from(given.held, offsets)
    finally:
        running.attaching -= 1


async def _greet(client: socket, handover: Handover) -> None:
    """Answer in place of a shim that does not."""
    handover.leave()
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(client, handover.head)


async def _offsets(running: Running) -> Mapping[int, int]:
    """Feed, if that was not done, and return where the output of a client begins that is held by now."""
    try:
        if running.output is not None:
            return await running.output.offsets()
    except UnknownContainer:
        log.debug("the container ended while a client was attached")
    return {}


async def count_changed(running: Running, count: int) -> None:
    """Feed output while there are clients, and only then."""
    if running.output is None:
        return
    if count:
        await running.output.attached(count)
        return
    try:
        # The event may be older than a client that has come since.
        status = await running.shim.status()
    except ShimGone:
        return
    if status.attached == 0 and running.attaching == 0 and running.output is not None:
        await running.output.attached(0)


async def settle(running: Running) -> None:
    """After the output was opened, which feeds to be safe: stop that when nobody is attached."""
    if running.output is not None and not running.attached and running.attaching == 0:
        await running.output.attached(0)
