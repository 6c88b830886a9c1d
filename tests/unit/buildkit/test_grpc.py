"""Calls over a connection, in both roles: answers, errors, deadlines, flow, and peers that misbehave."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from moorage_guest.buildkit import grpc, http2
from moorage_guest.buildkit.errors import Code, GrpcError, PeerGone
from moorage_guest.buildkit.grpc import Call, Channel
from moorage_guest.buildkit.session_messages import BytesMessage, HealthCheckRequest, HealthCheckResponse
from moorage_guest.errors import NotFound

LONG = 60.0

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Services:
    """What the tests call."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.sent = 0

    async def echo(self, request: BytesMessage, call: Call) -> BytesMessage:
        return BytesMessage(request.data + call.metadata.get("more", "").encode())

    async def fail(self, request: BytesMessage, call: Call) -> BytesMessage:
        raise NotFound("nö: 100% missing\n ")

    async def detailed(self, request: BytesMessage, call: Call) -> BytesMessage:
        raise GrpcError(Code.ABORTED, "broken", [grpc.detail("Source", {"line": 3})])

    async def wait(self, request: BytesMessage, call: Call) -> BytesMessage:
        self.begun.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return BytesMessage()

    async def flood(self, request: BytesMessage, call: Call) -> AsyncGenerator[BytesMessage, None]:
        call.begin({"now": "1"})
        for _ in range(int(request.data)):
            yield BytesMessage(bytes(100_000))
            self.sent += 1

    def methods(self) -> dict[str, grpc.Method]:
        found = {
            f"/t/{each.__name__}": grpc.unary(BytesMessage, each)
            for each in (self.echo, self.fail, self.detailed, self.wait)
        }
        return {**found, "/t/flood": grpc.streaming(BytesMessage, self.flood)}


@contextlib.asynccontextmanager
async def served(services: Services) -> AsyncIterator[socket.socket]:
    """Serve within the block; yield the client's end of the connection."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    serving = asyncio.ensure_future(grpc.serve(ours, b"", services.methods()))
    async with asyncio.timeout(LONG):
        try:
            yield theirs
        finally:
            theirs.close()
            await serving


@contextlib.asynccontextmanager
async def channel(services: Services) -> AsyncIterator[Channel]:
    async with served(services) as end:
        connection = await http2.Connection.open(end, client=True)
        try:
            yield Channel(connection)
        finally:
            connection.close()


async def test_a_call_is_answered_and_sees_its_metadata() -> None:
    async with channel(Services()) as peer:
        answer = await peer.unary("/t/echo", BytesMessage(b"a"), BytesMessage, metadata=[("more", "b")])
        assert answer.data == b"ab"
        health = await peer.unary("/grpc.health.v1.Health/Check", HealthCheckRequest(), HealthCheckResponse)
        assert health.status == 1


async def test_headers_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with channel(Services()) as peer:
        await peer.unary("/t/echo", BytesMessage(), BytesMessage, metadata=[("more", "of it")])
    assert [record.name for record in caplog.records if record.name.startswith(("h2", "hpack"))] == []


async def test_errors_arrive_with_code_text_and_details() -> None:
    async with channel(Services()) as peer:
        with pytest.raises(GrpcError, match=r"^nö: 100% missing\n $") as found:
            await peer.unary("/t/fail", BytesMessage(), BytesMessage)
        assert found.value.code == Code.NOT_FOUND
        with pytest.raises(GrpcError, match="broken") as found:
            await peer.unary("/t/detailed", BytesMessage(), BytesMessage)
        assert [each.value for each in found.value.details] == [b'{"line": 3}']
        with pytest.raises(GrpcError, match="unknown method nothing for service t") as found:
            await peer.unary("/t/nothing", BytesMessage(), BytesMessage)
        assert found.value.code == Code.UNIMPLEMENTED


async def test_more_than_any_window_flows_both_ways() -> None:
    async with channel(Services()) as peer:
        large = bytes(range(256)) * 40_000  # 10 MB
        assert (await peer.unary("/t/echo", BytesMessage(large), BytesMessage)).data == large
        async with peer.stream("/t/flood") as stream:
            await stream.send(BytesMessage(b"100"))
            await stream.finish()
            count = 0
            while await stream.receive(BytesMessage) is not None:
                count += 1
        assert count == 100


async def test_a_stream_that_nobody_reads_holds_up_itself_alone() -> None:
    services = Services()
    async with channel(services) as peer, peer.stream("/t/flood") as stalled:
        await stalled.send(BytesMessage(b"1000"))
        assert await stalled.receive(BytesMessage) is not None
        for number in range(50):
            data = bytes([number]) * 200_000
            assert (await peer.unary("/t/echo", BytesMessage(data), BytesMessage)).data == data
        assert services.sent < 80, "what is not read was sent all the same"


async def test_a_message_larger_than_the_limit_is_refused() -> None:
    async with channel(Services()) as peer:
        with pytest.raises(GrpcError, match="larger than") as found:
            await peer.unary("/t/echo", BytesMessage(bytes(grpc.MAX_MESSAGE + 1)), BytesMessage)
        assert found.value.code == Code.RESOURCE_EXHAUSTED


async def test_a_deadline_ends_the_call_on_both_sides() -> None:
    services = Services()
    async with channel(services) as peer:
        with pytest.raises(GrpcError, match="context deadline exceeded") as found:
            await peer.unary("/t/wait", BytesMessage(), BytesMessage, metadata=[("grpc-timeout", "50m")])
        assert found.value.code == Code.DEADLINE_EXCEEDED
        await services.cancelled.wait()
        services.cancelled.clear()
        with pytest.raises(GrpcError, match="did not answer"):
            await peer.unary("/t/wait", BytesMessage(), BytesMessage, timeout=0.05)
        await services.cancelled.wait()


async def test_a_client_that_gives_up_or_dies_cancels_its_call() -> None:
    for abrupt in (False, True):
        services = Services()
        async with channel(services) as peer, peer.stream("/t/wait") as stream:
            await stream.send(BytesMessage())
            await services.begun.wait()
            if abrupt:
                assert peer.connection._transport is not None
                peer.connection._transport.abort()
            else:
                stream.cancel()
            await services.cancelled.wait()


async def test_a_server_that_dies_fails_what_waits_for_it() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = await http2.Connection.open(ours, client=True)
    asking = asyncio.ensure_future(Channel(connection).unary("/t/x", BytesMessage(), BytesMessage))
    await asyncio.to_thread(theirs.recv, 10)
    theirs.close()
    with pytest.raises(PeerGone, match=r"closed its connection|broke"):
        async with asyncio.timeout(LONG):
            await asking
    with pytest.raises(PeerGone):
        await connection.request([(b":method", b"POST")])


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body


#: What no client may send, after a good beginning; each breaks the connection.
HOSTILE = {
    "no preface": b"GET / HTTP/1.1\r\n\r\n",
    "data on a stream that is not open": PREFACE + frame(4, 0, 0) + frame(0, 1, 1, b"x"),
    "an even stream": PREFACE + frame(4, 0, 0) + frame(1, 5, 2, b"\x83\x86\x84"),
    "a frame that is too long": PREFACE + frame(4, 0, 0) + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(1 << 24),
    "settings of a broken length": PREFACE + frame(4, 0, 0, b"12345"),
    "a window that overflows": PREFACE + frame(4, 0, 0) + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "headers that are no HPACK": PREFACE + frame(4, 0, 0) + frame(1, 5, 1, b"\xff" * 40),
    "continuations without end": PREFACE + frame(4, 0, 0) + frame(1, 0, 1, b"\x83") + frame(9, 0, 1, b"\0" * 100) * 100,
    "a push": PREFACE + frame(4, 0, 0) + frame(5, 4, 1, b"\0\0\0\2\x83"),
    "a header that grows": PREFACE
    + frame(4, 0, 0)
    + frame(1, 4, 1, b"\x83\x86\x84" + b"\x40\x01a\x7f\x81\x1f" + bytes(4000))
    + frame(1, 5, 3, b"\xbe" * 60),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_peer_that_breaks_the_protocol_is_let_go(name: str) -> None:
    async with served(Services()) as end:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(end, HOSTILE[name])
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(end, 65536):
                pass


async def test_a_peer_that_only_asks_and_never_listens_is_let_go() -> None:
    async with served(Services()) as end:
        loop = asyncio.get_running_loop()
        pings = frame(6, 0, 0, bytes(8)) * 4096
        await loop.sock_sendall(end, PREFACE + frame(4, 0, 0))
        with pytest.raises(ConnectionError):
            while True:
                await loop.sock_sendall(end, pings)


async def test_a_call_beyond_what_the_peer_takes_waits_for_another_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "MAX_STREAMS", 8)
    async with channel(Services()) as peer, contextlib.AsyncExitStack() as stack:
        await peer.unary("/t/echo", BytesMessage(), BytesMessage)
        streams = [await stack.enter_async_context(peer.stream("/t/wait")) for _ in range(8)]
        later = [
            asyncio.ensure_future(peer.unary("/t/echo", BytesMessage(bytes([each])), BytesMessage)) for each in range(4)
        ]
        await asyncio.sleep(0)
        assert not any(each.done() for each in later)
        streams[0].cancel()
        assert [(await each).data for each in later] == [bytes([each]) for each in range(4)]
        last = [asyncio.ensure_future(peer.unary("/t/echo", BytesMessage(), BytesMessage)) for _ in range(3)]
        await asyncio.gather(*last[:1])
        peer.connection.close()
        for each in last[1:]:
            with contextlib.suppress(PeerGone):  # it may have been faster
                await each


@pytest.mark.parametrize(
    "body", [b"\0\0\0\0\x05ab", b"\0\0\0", b"\1\0\0\0\0", b"\0\0\0\0\2\x0a\x05", b"", b"\0\xff\xff\xff\xff"]
)
async def test_malformed_messages_fail_their_call_alone(body: bytes) -> None:
    async with channel(Services()) as peer:
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t/echo"), (b":authority", b"x")]
        stream = await peer.connection.request(head)
        await stream.send(body, end=True)
        answer = dict(await stream.answered())
        assert answer[b"grpc-status"] in (b"13", b"12", b"8"), answer
        assert (await peer.unary("/t/echo", BytesMessage(b"x"), BytesMessage)).data == b"x"
