"""Lasting streams inside the agent: what was written survives the agent's own death without repetition."""

import os
import socket
from collections.abc import Iterator

import pytest
from moorage_guest.agent.streams import Streams
from moorage_guest.shim.connection import Connection, Request
from moorage_guest.shim.loop import Loop
from moorage_guest.shim.wire import Message


class Daemon:
    """The daemon's end: hands streams to an agent and remembers what it was told."""

    def __init__(self, loop: Loop) -> None:
        self.told: list[dict[str, object]] = []
        self.streams = Streams(loop, self.told.append)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs
        self._connection = Connection(loop, ours, lambda *_: None, lambda _: None)

    def open(self, client: socket.socket, progress: int, resume: dict[str, object]) -> None:
        fds = [os.dup(client.fileno()), os.dup(progress)]
        body = {"id": 1, "method": "stream_open", "params": {"key": 7, "resume": resume}}
        self.streams.open(Request(self._connection, Message(body, b"", fds)))

    def send(self, number: int, data: bytes, resume: dict[str, object]) -> None:
        body = {"method": "stream_data", "key": 7, "number": number, "resume": resume}
        assert self.streams.message(self._connection, Message(body, data, []))

    def end(self) -> None:
        assert self.streams.message(self._connection, Message({"method": "stream_close", "key": 7}, b"", []))

    def close(self) -> None:
        self._connection.close()
        self._theirs.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(pytest.fail)
    yield loop
    loop.close()


def test_an_agent_that_takes_over_goes_on_in_the_middle_of_a_piece(loop: Loop) -> None:
    client, served = socket.socketpair()
    progress = os.memfd_create("progress")
    os.ftruncate(progress, 16)
    first = Daemon(loop)
    first.open(served, progress, {"n": 0})
    piece = os.urandom(60000)
    pieces = [piece[:30000] + bytes([number]) * 30000 for number in range(1, 20)]
    for number, data in enumerate(pieces, 1):
        first.send(number, data, {"n": number})
    written = [int(str(event["number"])) for event in first.told]
    assert written
    assert len(written) < len(pieces)
    assert first.streams.keys == [7]

    second = Daemon(loop)
    second.open(served, progress, {"n": 0})
    for number, data in enumerate(pieces, 1):
        second.send(number, data, {"n": number})
    second.end()
    served.close()
    received = bytearray()
    client.settimeout(0)
    while second.streams.keys:
        try:
            received += client.recv(1 << 20)
        except BlockingIOError:
            loop.step(1)
    client.settimeout(30)
    while chunk := client.recv(1 << 20):
        received += chunk
    assert bytes(received) == b"".join(pieces)
    assert second.told[-1] == {"event": "stream_gone", "key": 7}
    for daemon in (first, second):
        daemon.close()
    client.close()
    os.close(progress)


def test_a_client_that_leaves_is_reported(loop: Loop) -> None:
    client, served = socket.socketpair()
    progress = os.memfd_create("progress")
    os.ftruncate(progress, 16)
    daemon = Daemon(loop)
    daemon.open(served, progress, {})
    served.close()
    client.close()
    while daemon.streams.keys:
        loop.step(1)
    assert daemon.told == [{"event": "stream_gone", "key": 7}]
    daemon.close()
    os.close(progress)
