"""In which order a client learns that it is attached, and is."""

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
from moorage_guest.engine import attach
from moorage_guest.engine.attach import AttachRequest, Handover
from moorage_guest.engine.containers import Containers, Running
from moorage_guest.engine.record import Container
from moorage_guest.engine.shim_types import Attached

WANTED = AttachRequest(stdin=False, stdout=True, stderr=True, multiplexed=False, detach_keys=b"")
CONTAINER = cast(Container, SimpleNamespace(config=SimpleNamespace(open_stdin=False, tty=False)))
ENGINE = cast(Containers, SimpleNamespace())


class _Shim:
    """Notes what it is asked; `greets` says whether it is one that writes the head."""

    def __init__(self, done: list[str], greets: bool) -> None:
        self._done = done
        self._greets = greets

    async def attach(self, _client: socket.socket, *, hold: bool, **_more: Any) -> Attached:
        self._done.append("given")
        return Attached(1 if hold else None, self._greets)

    async def attach_from(self, held: int, offsets: dict[int, int]) -> None:
        self._done.append(f"{held} begins at {offsets}")


class _Output:
    def __init__(self, done: list[str]) -> None:
        self._done = done

    async def offsets(self) -> dict[int, int]:
        self._done.append("fed")
        return {1: 7}


@pytest.mark.parametrize("greets", [True, False], ids=["this engine's shim", "a shim of before"])
async def test_client_is_told_last_and_by_whom_serves_it_or_by_us_where_an_earlier_shim_does_not(greets: bool) -> None:
    done: list[str] = []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        ours.setblocking(False)
        running = cast(
            Running, SimpleNamespace(shim=_Shim(done, greets), output=_Output(done), attaching=0, attached=False)
        )
        handover = Handover(b"HEAD", lambda: done.append("left"))
        await attach.attach(ENGINE, CONTAINER, running, theirs, b"", WANTED, handover)
        assert done == ["given", "fed", "left", "1 begins at {1: 7}"]
        assert ours.recv(100) == (b"" if greets else b"HEAD")


@pytest.mark.parametrize("greets", [True, False], ids=["this engine's shim", "a shim of before"])
async def test_client_of_a_container_that_is_yet_to_start_is_left_before_it_is_served(greets: bool) -> None:
    done: list[str] = []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        ours.setblocking(False)
        running = cast(Running, SimpleNamespace(shim=_Shim(done, greets), output=None, attaching=0, attached=False))
        handover = Handover(b"HEAD", lambda: None if "left" in done else done.append("left"))
        await attach.attach(ENGINE, CONTAINER, running, theirs, b"", WANTED, handover)
        assert done == ["left", "given"]
        assert ours.recv(100) == (b"" if greets else b"HEAD")
