"""Answers go out in one piece where they can, and are noted as begun when they do."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from moorage_guest.api.kept import Kept
from moorage_guest.api.server import ApiRequest, ApiServer, Route, empty_response, json_response, stream_response


class _Holder:
    """Stands for the agent: holds one connection's memory."""

    supervised = True

    def __init__(self) -> None:
        self.kept: Kept | None = None

    def hold(self, _client: socket.socket) -> Kept:
        self.kept = Kept.fresh(1)
        return self.kept

    def release(self, kept: Kept) -> None:
        pass

    def forget(self, kept: Kept) -> None:
        pass

    def held(self) -> list[tuple[socket.socket, Kept]]:
        return []


async def short(_request: ApiRequest) -> web.StreamResponse:
    return json_response({"short": True})


async def empty(_request: ApiRequest) -> web.StreamResponse:
    return empty_response()


async def streamed(request: ApiRequest) -> web.StreamResponse:
    response = await stream_response(request)
    await response.write(b"{}\n")
    return response


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Path, _Holder]]:
    path = tmp_path / "api.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    holder = _Holder()
    routes = [Route("GET", "/short", short), Route("GET", "/empty", empty), Route("GET", "/streamed", streamed)]
    api = ApiServer(routes, holder=holder)
    await api.serve(listener)
    yield path, holder
    await api.close()
    listener.close()


@pytest.mark.parametrize(
    ("request_line", "pieces", "end"),
    [
        ("GET /short", 1, b'{"short":true}\n'),
        ("HEAD /short", 1, b"\r\n\r\n"),
        ("GET /empty", 1, b"\r\n\r\n"),
        ("GET /nowhere", 1, b'{"message":"page not found"}\n'),
        ("GET /streamed", 3, b"0\r\n\r\n"),
    ],
)
async def test_answer_is_begun_when_its_first_piece_goes_out_and_no_sooner(
    server: tuple[Path, _Holder], monkeypatch: pytest.MonkeyPatch, request_line: str, pieces: int, end: bytes
) -> None:
    path, holder = server
    reader, writer = await asyncio.open_unix_connection(str(path))
    ours = writer.transport
    noted: list[tuple[bool, bool]] = []
    begin_answer = Kept.begin_answer
    kind: Any = type(ours)
    write = kind.write
    begun: list[int] = []

    def begin(kept: Kept) -> None:
        if not kept.answering:
            begun.append(len(noted))
        begin_answer(kept)

    def watched(transport: asyncio.Transport, data: bytes) -> None:
        if transport is not ours:
            assert holder.kept is not None
            noted.append((holder.kept.answering, bool(data)))
        write(transport, data)

    monkeypatch.setattr(Kept, "begin_answer", begin)
    monkeypatch.setattr(kind, "write", watched)
    writer.write(f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(end):
        piece = await asyncio.wait_for(reader.read(65536), 30)
        assert piece
        answer += piece
    assert noted == [(True, True)] * pieces
    assert begun == [0]
    writer.close()
