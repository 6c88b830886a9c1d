"""The SSH link and the forwarder against a real SSH server and real sockets."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from moorage_host.errors import HostError
from moorage_host.link import agent
from moorage_host.link.forwarder import Forwarder, tcp_listener, unix_listener
from moorage_host.link.keys import ensure
from moorage_host.link.ssh import Link

from tests.support.host import fake_guest

pytestmark = pytest.mark.timeout(120)


def echo(channel: paramiko.Channel) -> None:
    """Say everything back once the other side has finished, then finish too."""
    received = b""
    with contextlib.suppress(OSError):
        while data := channel.recv(65536):
            received += data
        channel.sendall(received)
    channel.close()


def read_all(stream: socket.socket) -> bytes:
    received = b""
    while data := stream.recv(65536):
        received += data
    return received


@pytest.fixture
def echoing(tmp_path: Path) -> Iterator[Link]:
    with fake_guest(tmp_path, echo) as (address, keys):
        link = Link.connect(address, keys, timeout=60)
        yield link
        link.close()


def test_keys_are_private_and_made_once(tmp_path: Path) -> None:
    first = ensure(tmp_path / "id", tmp_path / "host")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "id", tmp_path / "host")] == [0o600, 0o600]
    assert ensure(tmp_path / "id", tmp_path / "host") == first


def test_another_host_key_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with fake_guest(tmp_path, echo) as (address, _keys):
        stranger = ensure(tmp_path / "other" / "id", tmp_path / "other" / "host")
        with pytest.raises(HostError, match="another host key"):
            Link.connect(address, stranger, timeout=60)


def test_silent_port_is_a_sentence_in_time(tmp_path: Path) -> None:
    keys = ensure(tmp_path / "id", tmp_path / "host")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(HostError, match="does not answer over SSH"):
            Link.connect(silent.getsockname()[:2], keys, timeout=1)


def test_half_close_reaches_the_guest_and_the_answer_comes_back(echoing: Link, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    forwarder = Forwarder(unix_listener(path), lambda: echoing.unix_socket("/run/x"), name="test")
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        payload = bytes(range(256)) * 8192
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(path))
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == payload
    finally:
        forwarder.close()


def test_guest_that_hangs_up_ends_the_client(tmp_path: Path) -> None:
    with fake_guest(tmp_path, lambda channel: channel.close()) as (address, keys):
        link = Link.connect(address, keys, timeout=60)
        forwarder = Forwarder(tcp_listener("127.0.0.1", 0), lambda: link.unix_socket("/run/x"), name="test")
        try:
            with socket.create_connection(forwarder.address, timeout=60) as client:
                assert client.recv(1) == b""
        finally:
            forwarder.close()
            link.close()


def test_client_is_hung_up_when_there_is_no_way_into_the_guest(tmp_path: Path) -> None:
    def opener() -> paramiko.Channel:
        raise HostError("no way")

    path = tmp_path / "docker.sock"
    forwarder = Forwarder(unix_listener(path), opener, name="test")
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(path))
            assert client.recv(1) == b""
    finally:
        forwarder.close()


def test_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(HostError, match=r"port \d+ on 127.0.0.1 cannot be had") as caught:
            tcp_listener(*taken.getsockname()[:2])
    assert "another program" in caught.value.hint


def test_file_in_the_way_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    path.write_text("mine")
    with pytest.raises(HostError, match="in the way"):
        unix_listener(path)
    assert path.read_text() == "mine"


def answering(*answers: object) -> object:
    def serve(channel: paramiko.Channel) -> None:
        line = b""
        with contextlib.suppress(OSError, EOFError):  # the client may be gone by now
            while not line.endswith(b"\n") and (data := channel.recv(4096)):
                line += data
            for answer in answers:
                channel.sendall(json.dumps(answer).encode() + b"\n")
            channel.close()

    return serve


def test_agent_answers_errors_and_silence_are_told_apart(tmp_path: Path) -> None:
    cases = {
        "result": ({"id": 1, "result": {"bytes": 7}},),
        "error": ({"id": 1, "error": {"code": "invalid", "message": "no such key"}},),
        "silence": (),
    }
    for name, answers in cases.items():
        with fake_guest(tmp_path, answering(*answers)) as (address, keys):  # type: ignore[arg-type]
            link = Link.connect(address, keys, timeout=60)
            try:
                if name == "result":
                    assert agent.call(link, "trim") == {"bytes": 7}
                else:
                    with pytest.raises(HostError, match="no such key" if name == "error" else "ended the connection"):
                        agent.call(link, "trim")
            finally:
                link.close()


def test_watching_yields_events_alone(tmp_path: Path) -> None:
    answers = (
        {"id": 1, "result": {}},
        {"event": "status", "result": {"n": 1}},
        {"event": "status", "result": {"n": 2}},
    )
    with fake_guest(tmp_path, answering(*answers)) as (address, keys):  # type: ignore[arg-type]
        link = Link.connect(address, keys, timeout=60)
        try:
            assert list(agent.watch(link)) == [{"n": 1}, {"n": 2}]
        finally:
            link.close()
