"""A client that builds, as the engine sees it: it holds a session open and answers what the engine asks on it.

Written against the wire alone; what it answers is a test's to say, misbehaviour too.
"""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.buildkit.http2 import Connection, Headers, Stream
from moorage_guest.buildkit.protobuf import Message
from moorage_guest.buildkit.session import Sessions
from moorage_guest.buildkit.session_messages import Packet, Stat

#: What stands behind every frame of gRPC that is not compressed.
_PLAIN = b"\0"


class End(Exception):
    """Ends a call with a status other than success."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Answer:
    """One call of the engine's."""

    stream: Stream
    metadata: Headers
    _buffer: bytes = b""
    _begun: bool = False

    def all(self, name: str) -> list[str]:
        """Return every value of one name in the metadata."""
        return [value.decode() for key, value in self.metadata if key.decode() == name]

    async def receive(self, kind: type[Message]) -> Message | None:
        """Return the next message, None at the end."""
        while len(self._buffer) < 5 or len(self._buffer) < 5 + int.from_bytes(self._buffer[1:5], "big"):
            data = await self.stream.read()
            if not data:
                assert not self._buffer
                return None
            self._buffer += data
        size = int.from_bytes(self._buffer[1:5], "big")
        message = kind.decode(self._buffer[5 : 5 + size])
        self._buffer = self._buffer[5 + size :]
        return message

    async def packet(self) -> Packet | None:
        """Return the next packet of a transfer of files."""
        found = await self.receive(Packet)
        assert found is None or isinstance(found, Packet)
        return found

    async def send(self, *messages: Message) -> None:
        """Send messages."""
        self.begin()
        for message in messages:
            data = message.encode()
            await self.stream.send(_PLAIN + len(data).to_bytes(4, "big") + data)

    def begin(self) -> None:
        """Send the headers of the answer, once."""
        if not self._begun:
            self._begun = True
            self.stream.send_headers([(b":status", b"200"), (b"content-type", b"application/grpc")])

    def end(self, code: int = 0, text: str = "") -> None:
        """End the call."""
        self.begin()
        self.stream.send_headers([(b"grpc-status", str(code).encode()), (b"grpc-message", text.encode())], end=True)


Handler = Callable[[Answer], Awaitable[None]]


@dataclass
class BuildClient:
    """Answers calls by path; others are unknown. ``calls`` are the paths that were asked for."""

    handlers: Mapping[str, Handler] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    connection: Connection | None = None

    async def serve(self, end: socket.socket) -> None:
        """Serve until the engine closes the connection."""
        async with asyncio.TaskGroup() as group:

            def answer(stream: Stream) -> None:
                task = group.create_task(self._answer(stream))
                stream.on_gone = functools.partial(_cancel, task)

            self.connection = await Connection.open(end, client=False, on_stream=answer)
            await self.connection.closed.wait()

    async def _answer(self, stream: Stream) -> None:
        path = dict(stream.headers)[b":path"].decode()
        self.calls.append(path)
        answer = Answer(stream, stream.headers)
        handler = self.handlers.get(path)
        with contextlib.suppress(Exception):  # the engine may give up, which is the test's to see
            if handler is None:
                answer.end(12, f"unknown method {path}")
                return
            try:
                await handler(answer)
            except End as end:
                answer.end(end.code, str(end))
            else:
                answer.end()


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


@contextlib.asynccontextmanager
async def session(
    client: BuildClient, tmp: Path, session_id: str = "here", *, sessions: Sessions | None = None, shared_key: str = ""
) -> AsyncIterator[Sessions]:
    """Hold a session with a client open within the block."""
    sessions = sessions or Sessions(tmp)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    async with asyncio.TaskGroup() as group:
        group.create_task(client.serve(theirs))
        serving = group.create_task(
            sessions.serve(
                ours, b"", session_id=session_id, name="test", shared_key=shared_key, methods=client.handlers
            )
        )
        try:
            yield sessions
        finally:
            serving.cancel()


def files(*found: Stat, contents: Mapping[str, bytes], piece: int = 32 << 10) -> Handler:
    """Return what answers a question for files as a good client does."""

    async def handler(answer: Answer) -> None:
        await answer.send(*(Packet(0, each) for each in found), Packet(0))
        while (packet := await answer.packet()) is not None:
            if packet.type == 3:
                await answer.send(Packet(3))
                return
            assert packet.type == 1, packet
            data = contents[found[packet.id].path]
            pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
            await answer.send(*(Packet(2, None, packet.id, each) for each in pieces), Packet(2, None, packet.id))

    return handler
