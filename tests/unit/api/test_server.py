"""The API server on a real unix socket: versions, errors, parameters and the hand-over of connections."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from moorage_guest.api.server import (
    ApiRequest,
    ApiServer,
    Route,
    filters,
    hijack,
    json_object,
    json_response,
    query_bool,
    query_int,
    stream_response,
)
from moorage_guest.errors import Conflict, NotModified

from tests.support.openapi import UnixConnection

Answer = tuple[int, dict[str, str], bytes]


async def echo(request: ApiRequest) -> web.StreamResponse:
    return json_response(
        {
            "name": request.match_info["name"],
            "version": list(request.api_version),
            "flag": query_bool(request, "flag"),
            "number": query_int(request, "number", 7),
            "filters": filters(request, ["label", "status"]),
        }
    )


async def conflict(request: ApiRequest) -> web.StreamResponse:
    raise Conflict("there already is one")


async def unchanged(request: ApiRequest) -> web.StreamResponse:
    raise NotModified("")


async def broken(request: ApiRequest) -> web.StreamResponse:
    raise RuntimeError("out of cheese")


async def body(request: ApiRequest) -> web.StreamResponse:
    return json_response(await json_object(request))


async def stream(request: ApiRequest) -> web.StreamResponse:
    response = await stream_response(request)
    for number in range(3):
        await response.write(json.dumps({"number": number}).encode() + b"\n")
    return response


async def talk(request: ApiRequest) -> web.StreamResponse:
    await json_object(request, required=False)
    hijacked = await hijack(request)
    loop = asyncio.get_running_loop()
    heard = hijacked.prefix
    while data := await loop.sock_recv(hijacked.socket, 4096):
        heard += data
    await loop.sock_sendall(hijacked.socket, heard.upper())
    hijacked.socket.close()
    return hijacked.response


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "api.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    api = ApiServer(
        [
            Route("GET", "/images/{name:.+}/json", echo),
            Route("GET", "/conflict", conflict),
            Route("POST", "/unchanged", unchanged),
            Route("GET", "/broken", broken),
            Route("POST", "/body", body),
            Route("GET", "/stream", stream),
            Route("POST", "/stream", stream),
            Route("POST", "/talk", talk),
            Route("GET", "/new", stream, since=(1, 44)),
        ]
    )
    await api.serve(listener)
    yield path
    await api.close()


async def call(path: Path, method: str, target: str, data: bytes | None = None, **headers: str) -> Answer:
    def blocking() -> Answer:
        connection = UnixConnection(path, 30)
        try:
            connection.request(method, target, body=data, headers={k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.headers.items()), answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(blocking)


async def test_versions_between_oldest_and_newest_are_served(server: Path) -> None:
    for prefix, version in (("/v1.24", [1, 24]), ("/v1.51", [1, 51]), ("", [1, 51])):
        status, headers, text = await call(server, "GET", f"{prefix}/images/a/b:c/json?flag=1&number=3")
        assert status == 200
        assert headers["Api-Version"] == "1.51" and headers["Ostype"] == "linux"
        answer = json.loads(text)
        assert answer["name"] == "a/b:c" and answer["version"] == version
        assert answer["flag"] is True and answer["number"] == 3


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.99", "client version 1.99 is too new. Maximum supported API version is 1.51"),
        (
            "1.12",
            "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        ),
    ],
)
async def test_other_versions_are_refused_in_dockerd_s_words(server: Path, version: str, message: str) -> None:
    status, _, text = await call(server, "GET", f"/v{version}/images/a/json")
    assert (status, json.loads(text)) == (400, {"message": message})


async def test_unknown_paths_and_newer_operations_are_not_found(server: Path) -> None:
    for target in ("/nowhere", "/v1.43/new", "/v1.51/", "/v1.51"):
        status, _, text = await call(server, "GET", target)
        assert (status, json.loads(text)) == (404, {"message": "page not found"})
    assert (await call(server, "GET", "/v1.44/new"))[0] == 200


async def test_errors_become_statuses(server: Path) -> None:
    assert (await call(server, "GET", "/conflict"))[0] == 409
    status, _, text = await call(server, "POST", "/unchanged")
    assert (status, text) == (304, b"")
    status, _, text = await call(server, "GET", "/broken")
    assert status == 500 and b"out of cheese" in text and b"Traceback" not in text


async def test_filters_are_taken_as_lists_and_as_maps(server: Path) -> None:
    for given in ('{"label":["a=b"]}', '{"label":{"a%3Db":true,"c":false}}'):
        _, _, text = await call(server, "GET", f"/images/x/json?filters={given}".replace('"', "%22"))
        assert json.loads(text)["filters"] == {"label": ["a=b"]}
    status, _, text = await call(server, "GET", "/images/x/json?filters=%7B%22nope%22:[]%7D")
    assert (status, json.loads(text)) == (400, {"message": "invalid filter 'nope'"})


async def test_bad_bodies_are_refused(server: Path) -> None:
    for data, kind in ((b"", ""), (b"{", "application/json"), (b"[]", "application/json"), (b"{}", "text/plain")):
        status, _, text = await call(server, "POST", "/body", data, Content_Type=kind)
        assert status == 400, text
    status, _, text = await call(server, "POST", "/body", b'{"a":1}', Content_Type="application/json")
    assert (status, json.loads(text)) == (200, {"a": 1})


async def test_a_stream_is_chunked(server: Path) -> None:
    status, headers, text = await call(server, "GET", "/stream")
    assert status == 200 and headers["Transfer-Encoding"] == "chunked"
    assert [json.loads(line)["number"] for line in text.splitlines()] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b'{"Detach":false}'])
async def test_a_hijacked_connection_keeps_early_bytes_and_half_closes(server: Path, content: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(server))
    head = b"POST /v1.51/talk HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
    writer.write(head + content + b"early ")
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 UPGRADED\r\n") and b"Upgrade: tcp" in answer
    writer.write(b"and late")
    writer.write_eof()
    assert await reader.read() == b"EARLY AND LATE"
    writer.close()
    await writer.wait_closed()


async def test_without_upgrade_the_stream_follows_a_200(server: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(server))
    writer.write(b"POST /talk HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    writer.write(b"text")
    writer.write_eof()
    assert await reader.read() == b"TEXT"
    writer.close()
    await writer.wait_closed()


async def test_only_answers_that_were_streams_are_told_of_as_large(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "api.sock"))
    listener.listen()
    api = ApiServer([Route("GET", "/stream", stream), Route("POST", "/stream", stream), Route("POST", "/body", body)])
    streamed = asyncio.Event()
    api.on_streamed = streamed.set
    await api.serve(listener)
    try:
        await call(tmp_path / "api.sock", "GET", "/stream")
        await call(tmp_path / "api.sock", "POST", "/body", b"{}", Content_Type="application/json")
        assert not streamed.is_set()
        await call(tmp_path / "api.sock", "POST", "/stream")
        await asyncio.wait_for(streamed.wait(), 60)
    finally:
        await api.close()
