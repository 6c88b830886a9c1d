"""An answer that outlives the daemon goes through the agent from its first byte, the head included."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from moorage_guest.api.kept import Kept
from moorage_guest.api.lasting import begin_lasting, taken_up
from moorage_guest.api.server import ApiRequest, ApiServer, GivenAway, Route, part
from moorage_guest.engine.shims import Agent, LastingStream


class _Stream:
    """Stands for a lasting stream: notes what is sent, and writes it to the client as the agent would."""

    def __init__(self, done: list[Any], client: socket.socket) -> None:
        self._done = done
        self._client = client

    async def send(self, data: bytes, resume: dict[str, Any]) -> None:
        self._done.append(("sent", sorted(resume)))
        self._client.sendall(data)


@dataclass
class _Agent:
    """Stands for the agent, who holds connections and takes answers over. `reached` is what the client has got by then."""

    supervised: bool = True
    done: list[Any] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    clients: list[socket.socket] = field(default_factory=list)

    def hold(self, _client: socket.socket) -> Kept:
        return Kept.fresh(7)

    def release(self, kept: Kept) -> None:
        self.done.append(("released", kept.key))

    def forget(self, kept: Kept) -> None:
        self.done.append(("forgotten", kept.key))

    def held(self) -> list[tuple[socket.socket, Kept]]:
        return []

    async def open_lasting(self, client: Any, resume: dict[str, Any], *, held: int | None) -> Any:
        self.done.append(("taken", held))
        self.record = json.loads(json.dumps(resume))
        self.clients.append(socket.socket(fileno=socket.dup(client.fileno())))
        return _Stream(self.done, self.clients[-1])


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Path, _Agent]]:
    path = tmp_path / "api.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    agent = _Agent()

    async def handler(request: ApiRequest) -> web.StreamResponse:
        lasting = await begin_lasting(request, cast(Agent, agent), {"chunked": True}, "text/plain")
        assert lasting is not None
        await lasting.send(b"2\r\nhi\r\n0\r\n\r\n", {"chunked": True})
        part(request)
        return GivenAway()

    api = ApiServer([Route("GET", "/lasts", handler)], holder=agent)
    await api.serve(listener)
    yield path, agent
    await api.close()
    for each in (listener, *agent.clients):
        each.close()


async def test_not_a_byte_is_written_before_the_agent_has_the_answer(server: tuple[Path, _Agent]) -> None:
    path, agent = server
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /lasts HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 30)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
    assert b"Transfer-Encoding: chunked" in head and b"Server: Moorage/" in head
    assert body == b"2\r\nhi\r\n0\r\n\r\n"
    assert agent.done == [("taken", 7), ("released", 7), ("sent", ["chunked"]), ("sent", ["chunked"])]
    writer.close()


async def test_head_that_a_killed_daemon_did_not_send_is_sent_by_the_next(server: tuple[Path, _Agent]) -> None:
    path, agent = server
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /lasts HTTP/1.1\r\nHost: x\r\n\r\n")
    before = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = cast(LastingStream, _Stream([], theirs))
        record = await taken_up(agent.record, stream)
        assert record == {"chunked": True}
        assert await taken_up(record, stream) == record
        assert ours.recv(4096) == before
    writer.close()
