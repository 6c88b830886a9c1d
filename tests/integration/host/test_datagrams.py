"""UDP ports carried by the relay as the guest runs it: a Python of its own that is given the relay's text."""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from moorage_host.errors import HostError
from moorage_host.link import datagrams
from moorage_host.link.datagram_relay import Frames, frame
from moorage_host.link.datagrams import Datagrams

pytestmark = pytest.mark.timeout(120)


class Started:
    """A relay that runs, as the stream that SSH would give."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["sh", "-c", datagrams.command()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def sendall(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def recv(self, size: int) -> bytes:
        assert self.process.stdout is not None
        return os.read(self.process.stdout.fileno(), size)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def relays() -> Iterator[list[Started]]:
    """Those that were started, the newest last; each must have ended by itself."""
    started: list[Started] = []
    yield started
    for relay in started:
        relay.process.wait(60)
        assert relay.process.stdout is not None
        relay.process.stdout.close()


@pytest.fixture
def carried(relays: list[Started]) -> Iterator[Datagrams]:
    def connect() -> Started:
        relays.append(Started())
        return relays[-1]

    made = Datagrams(connect)
    yield made
    made.close()


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that says each datagram back behind `>`, in the place of a container."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, client = server.recvfrom(65535)
                if data == b"end":
                    return
                server.sendto(b">" + data, client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", server.getsockname())
        thread.join(30)


@pytest.fixture
def client() -> Iterator[Callable[[int], socket.socket]]:
    with contextlib.ExitStack() as stack:

        def connected(port: int) -> socket.socket:
            made = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.settimeout(30)
            made.connect(("127.0.0.1", port))
            return made

        yield connected


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Connect = Callable[[int], socket.socket]


def test_every_client_gets_its_own_answers(carried: Datagrams, echo: tuple[str, int], client: Connect) -> None:
    port = free_port()
    carried.bind("127.0.0.1", port, echo)
    clients = [client(port) for _ in range(3)]
    for number, one in enumerate(clients):
        one.send(b"%d" % number)
    assert [one.recv(100) for one in clients] == [b">0", b">1", b">2"]
    for payload in (b"", b"x" * 60_000, b"again"):
        clients[1].send(payload)
        assert clients[1].recv(65535) == b">" + payload


def test_one_relay_serves_every_port_and_ends_with_the_last(
    carried: Datagrams, relays: list[Started], echo: tuple[str, int], client: Connect
) -> None:
    first, second = free_port(), free_port()
    ends = [carried.bind("127.0.0.1", first, echo), carried.bind("127.0.0.1", second, echo)]
    for port in (first, second):
        one = client(port)
        one.send(b"x")
        assert one.recv(10) == b">x"
    (relay,) = relays
    ends[0]()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", first))
    assert relay.process.poll() is None
    ends[1]()
    assert relay.process.wait(60) == 0


def test_relay_that_dies_is_replaced_by_the_next_datagram(
    carried: Datagrams, relays: list[Started], echo: tuple[str, int], client: Connect
) -> None:
    port = free_port()
    carried.bind("127.0.0.1", port, echo)
    one = client(port)
    one.send(b"first")
    assert one.recv(10) == b">first"
    relays[0].process.kill()
    relays[0].process.wait(60)
    one.settimeout(0.5)
    for _attempt in range(60):  # one that meets the dying relay is lost, as UDP allows
        one.send(b"second")
        with contextlib.suppress(TimeoutError):
            assert one.recv(10) == b">second"
            break
    else:
        raise AssertionError("no answer came any more")
    assert len(relays) == 2


def test_port_that_nobody_serves_takes_nothing_from_the_others(
    carried: Datagrams, echo: tuple[str, int], client: Connect
) -> None:
    silent, served = free_port(), free_port()
    carried.bind("127.0.0.1", silent, ("127.0.0.1", free_port()))
    carried.bind("127.0.0.1", served, echo)
    for _ in range(20):
        client(silent).send(b"anybody?")
    one = client(served)
    one.send(b"x")
    assert one.recv(10) == b">x"


def test_no_way_into_the_guest_loses_the_datagram_and_nothing_else(client: Connect, echo: tuple[str, int]) -> None:
    asked = threading.Event()

    def connect() -> Started:
        asked.set()
        raise HostError("no connection")

    carried = Datagrams(connect)
    try:
        port = free_port()
        carried.bind("127.0.0.1", port, echo)
        client(port).send(b"x")
        assert asked.wait(30)
        asked.clear()
        client(port).send(b"x")
        assert asked.wait(30)
    finally:
        carried.close()


def test_clients_that_are_silent_for_long_are_forgotten(
    carried: Datagrams, relays: list[Started], echo: tuple[str, int], client: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "TICK", 0.05)
    port = free_port()
    carried.bind("127.0.0.1", port, echo)
    one = client(port)
    one.send(b"x")
    assert one.recv(10) == b">x"
    monkeypatch.setattr(datagrams, "IDLE", 0.0)
    moment = threading.Event()
    for _attempt in range(600):
        if not carried._flows:
            break
        moment.wait(0.05)
    assert not carried._flows and not carried._known
    monkeypatch.setattr(datagrams, "IDLE", 90.0)
    one.send(b"y")
    assert one.recv(10) == b">y"
    assert len(relays) == 1


def test_taken_port_is_a_sentence(carried: Datagrams, echo: tuple[str, int]) -> None:
    with pytest.raises(HostError, match=f"port {echo[1]}/udp on 127.0.0.1 cannot be had") as caught:
        carried.bind("127.0.0.1", echo[1], echo)
    assert "another program" in caught.value.hint


def test_frames_come_out_whole_however_they_come_in() -> None:
    sent = frame(1, 0, b"abc") + frame(2, 1) + frame(3, 0, bytes(65535))
    for size in (1, 5, 7, 70_000):
        frames = Frames()
        found = [one for at in range(0, len(sent), size) for one in frames.take(sent[at : at + size])]
        assert found == [(1, 0, b"abc"), (2, 1, b""), (3, 0, bytes(65535))]
