"""Datagrams between moored, agent and shims."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_guest.shim import wire

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(body=st.dictionaries(st.text(max_size=10), _JSON, max_size=5), blob=st.binary(max_size=300))
def test_any_message_comes_back_as_it_was(body: dict[str, object], blob: bytes) -> None:
    assert wire.unpack(wire.pack(body, blob)) == wire.Message(body, blob, [])


@given(data=st.binary(max_size=100))
def test_garbage_is_a_value_error_and_nothing_else(data: bytes) -> None:
    try:
        wire.unpack(data)
    except ValueError:
        pass


def test_descriptors_arrive_and_are_closed_on_exec() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with ours, theirs:
        wire.send(ours, wire.pack({"a": 1}, b"blob"), [write])
        message = wire.receive(theirs)
    assert message is not None
    assert (message.body, message.blob) == ({"a": 1}, b"blob")
    (received,) = message.fds
    assert not os.get_inheritable(received)
    os.write(received, b"x")
    assert os.read(read, 1) == b"x"
    wire.close_all([read, write, received])


def test_descriptors_of_an_unreadable_message_do_not_leak() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with ours, theirs:
        wire.send(ours, b"not json", [write])
        os.close(write)
        with pytest.raises(ValueError, match="Expecting value"):
            wire.receive(theirs)
    assert os.read(read, 1) == b""
    os.close(read)


def test_message_that_would_not_fit_is_refused_by_the_sender() -> None:
    with pytest.raises(ValueError, match="at most"):
        wire.pack({"text": "x" * wire.MAX_DATAGRAM})


def test_paths_longer_than_the_kernels_limit_can_be_listened_on(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    listener = wire.listen(folder / "a.sock")
    assert (folder / "a.sock").stat().st_mode & 0o777 == 0o600
    with listener, wire.connect(folder / "a.sock") as sock:
        accepted, _ = listener.accept()
        with accepted:
            wire.send(sock, wire.pack({}))
            assert wire.receive(accepted) == wire.Message({}, b"", [])
