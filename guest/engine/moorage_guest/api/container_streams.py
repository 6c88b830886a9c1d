"""Routes of containers that stream: attach, logs, stats, wait. Where a supervisor is, they outlive this daemon.

An answer that outlives the daemon is described by a resume record; `resume` goes on from one.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from moorage_guest import web
from moorage_guest.api.lasting import begin_lasting
from moorage_guest.api.server import (
    ApiRequest,
    GivenAway,
    Route,
    borrow,
    hijack,
    json_response,
    part,
    query_bool,
    stream_response,
    upgrade_head,
)
from moorage_guest.api.times import parse_time_ns
from moorage_guest.engine import attach, logview, stats
from moorage_guest.engine.attach import AttachRequest, Handover
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.record import Container
from moorage_guest.engine.shims import ClientGone, LastingStream, ShimError
from moorage_guest.engine.waits import Outcome
from moorage_guest.errors import EngineError, InvalidParameter, Unavailable
from moorage_guest.logs.reader import LogQuery, Position, frame

log = logging.getLogger(__name__)

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"

#: Bytes in one datagram to the agent at most, chunk framing included.
_PIECE = 48 * 1024

T = TypeVar("T")


def routes(engine: Containers) -> list[Route]:
    """Return the routes of this area."""
    streams = Streams(engine)
    return [
        Route("POST", "/containers/{id}/attach", streams.attach),
        Route("GET", "/containers/{id}/attach/ws", streams.attach_websocket),
        Route("GET", "/containers/{id}/logs", streams.logs),
        Route("GET", "/containers/{id}/stats", streams.stats),
        Route("POST", "/containers/{id}/wait", streams.wait),
    ]


class _Sink:
    """Where a stream's bytes go: the client itself, or the agent that writes them to it."""

    def __init__(self, response: web.StreamResponse | None, lasting: LastingStream | None, chunked: bool) -> None:
        self._response = response
        self._lasting = lasting
        self._chunked = chunked

    async def send(self, data: bytes, resume: dict[str, Any]) -> None:
        """Send, and note how to go on afterwards. Raises ClientGone."""
        if self._lasting is None:
            assert self._response is not None
            try:
                if data:
                    await self._response.write(data)
            except ConnectionError:
                raise ClientGone("the client has closed its connection") from None
            return
        if not data:
            await self._lasting.send(b"", resume)
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            last = start + _PIECE >= len(data)
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece
            # Within a larger whole the place to go on from is where it began, and how much of it has been sent.
            sent = {"skip": int(resume.get("begun", 0)) + start + len(piece), "position": resume.get("before")}
            await self._lasting.send(framed, resume if last else {**resume, **sent})

    async def end(self, resume: dict[str, Any]) -> None:
        """Complete the answer."""
        if self._lasting is None:
            assert self._response is not None
            with contextlib.suppress(ConnectionError):
                await self._response.write_eof()
            return
        if self._chunked:
            await self._lasting.send(b"0\r\n\r\n", resume)
        await self._lasting.close()


class Streams:
    """Handlers, and the same answers taken up again by `resume` after this daemon has taken over from another."""

    def __init__(self, engine: Containers) -> None:
        self._engine = engine

    async def _serve(
        self,
        request: ApiRequest,
        resume: dict[str, Any],
        produce: Callable[[_Sink, dict[str, Any]], Awaitable[None]],
        content_type: str = "application/json",
    ) -> web.StreamResponse:
        """Answer what a producer gives, outliving the daemon if there is a supervisor."""
        resume = {**resume, "chunked": not request.version_http10}
        lasting = await begin_lasting(request, self._engine.agent, resume, content_type)
        if lasting is not None:
            with contextlib.suppress(ClientGone):
                sink = _Sink(None, lasting, bool(resume["chunked"]))
                await _while_open(lasting.closed.wait(), produce(sink, resume))
            part(request)
            return GivenAway()
        response = await stream_response(request, content_type)
        with contextlib.suppress(ClientGone):
            await _while_open(_connection_lost(request), produce(_Sink(response, None, False), resume))
        return response

    async def resume(self, record: dict[str, Any], lasting: LastingStream) -> None:
        """Go on with an answer that an earlier daemon began. Returns when it is complete or its client gone."""
        producers = {"wait": self._wait, "logs": self._logs, "stats": self._stats}
        produce = producers.get(record["op"])
        if produce is None:  # of a later engine, which has been put back
            log.warning("nobody knows how to go on with %s for a client", record["op"])
            await lasting.close()
            return
        with contextlib.suppress(ClientGone):
            await _while_open(lasting.closed.wait(), produce(_Sink(None, lasting, bool(record["chunked"])), record))
        await lasting.close()

    # -- wait ---------------------------------------------------------------------------------------------------------

    async def wait(self, request: ApiRequest) -> web.StreamResponse:
        container = self._engine.find(request.match_info["id"])
        condition = request.query.get("condition", "") if request.api_version >= (1, 30) else ""
        condition = condition or "not-running"
        resume = {"op": "wait", "id": container.id, "condition": condition}
        with self._engine.waits.register(container, condition) as outcome:
            with self._engine.waits.register(container, "next-exit") as ended:

                async def produce(sink: _Sink, record: dict[str, Any]) -> None:
                    await self._answer_wait(sink, record, outcome, ended)

                return await self._serve(request, resume, produce)

    async def _wait(self, sink: _Sink, record: dict[str, Any]) -> None:
        container = self._engine.get(record["id"])
        if container is None:
            await self._tell_outcome(sink, record, Outcome(int(record.get("exit_code", 0))))
            return
        condition = record["condition"]
        with self._engine.waits.register(container, condition) as outcome:
            with self._engine.waits.register(container, "next-exit") as ended:
                await self._answer_wait(sink, record, outcome, ended)

    async def _answer_wait(
        self,
        sink: _Sink,
        record: dict[str, Any],
        outcome: "asyncio.Future[Outcome]",
        ended: "asyncio.Future[Outcome]",
    ) -> None:
        await asyncio.wait({outcome, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not outcome.done():
            # The removal may come and go with a daemon: keep what it would answer.
            record = {**record, "exit_code": ended.result().exit_code}
            await sink.send(b"", record)
        await self._tell_outcome(sink, record, await outcome)

    async def _tell_outcome(self, sink: _Sink, record: dict[str, Any], outcome: Outcome) -> None:
        answer: dict[str, Any] = {"StatusCode": outcome.exit_code}
        if outcome.error:
            answer["Error"] = {"Message": outcome.error}
        await sink.send(json.dumps(answer, separators=(",", ":")).encode() + b"\n", record)
        await sink.end(record)

    # -- logs ---------------------------------------------------------------------------------------------------------

    async def logs(self, request: ApiRequest) -> web.StreamResponse:
        container = self._engine.find(request.match_info["id"])
        query = log_query(request, container)
        source = logview.source(self._engine, container)
        resume = {"op": "logs", "id": container.id, "query": vars(query), "position": None}

        async def produce(sink: _Sink, record: dict[str, Any]) -> None:
            await self._send_logs(sink, record, container, source)

        return await self._serve(request, resume, produce, RAW if container.config.tty else MULTIPLEXED)

    async def _logs(self, sink: _Sink, record: dict[str, Any]) -> None:
        await self._engine.restored.wait()
        container = self._engine.get(record["id"])
        if container is None:
            await sink.end(record)
            return
        await self._send_logs(sink, record, container, logview.source(self._engine, container))

    async def _send_logs(
        self, sink: _Sink, record: dict[str, Any], container: Container, source: logview.LogSource
    ) -> None:
        position = Position.from_json(record["position"]) if record.get("position") else None
        skip = int(record.get("skip", 0))
        query = LogQuery(**record["query"])
        record = {name: value for name, value in record.items() if name not in ("skip", "before", "begun")}
        try:
            async with contextlib.aclosing(logview.read(self._engine, container, source, query, position)) as chunks:
                async for chunk in chunks:
                    if not chunk.data:  # where a tail begins
                        record = {**record, "position": chunk.position.to_json()}
                        await sink.send(b"", record)
                        continue
                    if skip >= len(chunk.data):
                        skip -= len(chunk.data)
                        continue
                    place = {"before": record["position"], "begun": skip, "position": chunk.position.to_json()}
                    await sink.send(chunk.data[skip:], {**record, **place})
                    record, skip = {**record, "position": place["position"]}, 0
        except (OSError, EngineError) as error:
            log.warning("logs of container %s end early: %s", container.id, error)
            text = f"Error grabbing logs: {error}\n".encode()
            await sink.send(frame(2, text) if query.multiplexed else text, record)
        await sink.end(record)

    # -- stats --------------------------------------------------------------------------------------------------------

    async def stats(self, request: ApiRequest) -> web.StreamResponse:
        container = self._engine.find(request.match_info["id"])
        stream = query_bool(request, "stream", True)
        one_shot = query_bool(request, "one-shot")
        if stream and one_shot:
            raise InvalidParameter("cannot have stream=true and one-shot=true")
        if not stream:
            # The answer begins when it is known: until then another daemon can give it.
            return json_response(await stats.once(self._engine, container, one_shot=one_shot))
        return await self._serve(request, {"op": "stats", "id": container.id}, self._stats)

    async def _stats(self, sink: _Sink, record: dict[str, Any]) -> None:
        container = self._engine.get(record["id"])
        if container is not None:
            async with contextlib.aclosing(stats.stream(self._engine, container)) as samples:
                async for sample in samples:
                    await sink.send(_line(sample), record)
        await sink.end(record)

    # -- attach -------------------------------------------------------------------------------------------------------

    async def attach(self, request: ApiRequest) -> web.StreamResponse:
        try:
            container, wanted = self._attach_request(request)
            stream, logs = query_bool(request, "stream"), query_bool(request, "logs")
            running = await attach.reserve(self._engine, container) if stream else None
        except EngineError as error:  # dockerd writes a line of text here, into the stream that would have been
            return web.Response(status=error.status, body=f"{error}\r\n".encode(), headers={"Content-Type": RAW})
        kind = MULTIPLEXED if wanted.multiplexed and request.api_version >= (1, 42) else RAW
        try:
            if logs or running is None:
                connection = await hijack(request, kind)
            else:
                connection = borrow(request)
        except ConnectionError as error:
            raise Unavailable("the client has closed its connection") from error
        client = connection.socket
        try:
            handover = None if logs else Handover(upgrade_head(request, kind), lambda: part(request))
            if logs:
                await self._send_history(client, container, wanted)
            if running is None:
                client.close()
                return connection.response
            self._engine.publish(container, "attach")
            await attach.attach(self._engine, container, running, client, connection.prefix, wanted, handover)
        except (EngineError, ConnectionError) as error:
            log.info("a client could not be attached to container %s: %s", container.id, error)
            part(request)
            client.close()
        return connection.response

    def _attach_request(self, request: ApiRequest) -> tuple[Container, AttachRequest]:
        container = self._engine.find(request.match_info["id"])
        attach.check_attachable(container)
        wanted = AttachRequest(
            stdin=query_bool(request, "stdin"),
            stdout=query_bool(request, "stdout"),
            stderr=query_bool(request, "stderr"),
            multiplexed=not container.config.tty,
            detach_keys=attach.parse_detach_keys(request.query.get("detachKeys", "")),
        )
        return container, wanted

    async def _send_history(self, client: socket.socket, container: Container, wanted: AttachRequest) -> None:
        """Write what the log holds, as `attach?logs=1` asks for."""
        query = LogQuery(stdout=wanted.stdout, stderr=wanted.stderr, multiplexed=wanted.multiplexed)
        source = logview.source(self._engine, container)
        async with contextlib.aclosing(logview.read(self._engine, container, source, query, None)) as chunks:
            async for chunk in chunks:
                await asyncio.get_running_loop().sock_sendall(client, chunk.data)

    async def attach_websocket(self, request: ApiRequest) -> web.StreamResponse:
        container, wanted = self._attach_request(request)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise InvalidParameter("not a websocket request: an Upgrade header is needed")
        running = await attach.reserve(self._engine, container)
        wanted = AttachRequest(wanted.stdin, wanted.stdout, wanted.stderr, False, wanted.detach_keys)
        websocket = web.WebSocketResponse(protocols=())
        await websocket.prepare(request)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            if query_bool(request, "logs"):
                async for data in self._history(container, wanted):
                    await websocket.send_bytes(data)
            self._engine.publish(container, "attach")
            await attach.attach(self._engine, container, running, theirs, b"", wanted)
            await _bridge(websocket, ours)
        except ShimError as error:
            log.info("a websocket could not be attached to container %s: %s", container.id, error)
        finally:
            ours.close()
            await websocket.close()
        return websocket

    async def _history(self, container: Container, wanted: AttachRequest) -> AsyncIterator[bytes]:
        query = LogQuery(stdout=wanted.stdout, stderr=wanted.stderr)
        source = logview.source(self._engine, container)
        async with contextlib.aclosing(logview.read(self._engine, container, source, query, None)) as chunks:
            async for chunk in chunks:
                yield chunk.data


async def _bridge(websocket: web.WebSocketResponse, inner: socket.socket) -> None:
    """Copy between a websocket and a stream until the stream ends or the client leaves."""
    loop = asyncio.get_running_loop()

    async def outward() -> None:
        while data := await loop.sock_recv(inner, 32768):
            await websocket.send_bytes(data)

    async def inward() -> None:
        async for message in websocket:
            if message.type == web.WSMsgType.BINARY:
                await loop.sock_sendall(inner, message.data)
            elif message.type == web.WSMsgType.TEXT:
                await loop.sock_sendall(inner, message.data.encode())
        raise ClientGone("the client has closed its websocket")

    with contextlib.suppress(ClientGone, ConnectionError):
        await _while_open(inward(), outward())


def log_query(request: ApiRequest, container: Container) -> LogQuery:
    """Read the parameters of GET logs. Raises InvalidParameter."""
    stdout, stderr = query_bool(request, "stdout"), query_bool(request, "stderr")
    if not stdout and not stderr:
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    tail = request.query.get("tail", "")
    since, until = request.query.get("since", ""), request.query.get("until", "")
    return LogQuery(
        stdout=stdout,
        stderr=stderr,
        since_ns=_log_time("since", since),
        until_ns=_log_time("until", until),
        tail=int(tail) if tail.isascii() and tail.isdigit() else None,
        follow=query_bool(request, "follow"),
        timestamps=query_bool(request, "timestamps"),
        details=query_bool(request, "details"),
        multiplexed=not container.config.tty,
        # The CLI only joins frames again, with a write for each; docker-py and others give out each as a line.
        long_frames=request.headers.get("User-Agent", "").startswith("Docker-Client/"),
    )


def _log_time(name: str, text: str) -> int:
    if not text or text == "0":
        return 0
    try:
        return max(parse_time_ns(text), 0)
    except InvalidParameter as error:
        raise InvalidParameter(f'invalid value for "{name}": {error}') from None


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def _connection_lost(request: ApiRequest) -> None:
    """Return some time after the client has closed its connection. HTTP does not tell a handler, so it is looked at."""
    while (transport := request.transport) is not None and not transport.is_closing():  # noqa: ASYNC110 - see above
        await asyncio.sleep(1)


async def _while_open(gone: Awaitable[Any], work: Awaitable[T]) -> T | None:
    """Do work until it is done or ``gone`` returns; then it is cancelled and None returned."""
    watching, working = asyncio.ensure_future(gone), asyncio.ensure_future(work)
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        for task in (watching, working):
            task.cancel()
        await asyncio.gather(watching, working, return_exceptions=True)
