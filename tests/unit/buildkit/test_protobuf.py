"""Messages as bytes: what others write is read, and what is no message is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_guest.buildkit import gateway_messages, messages, session_messages
from moorage_guest.buildkit.messages import Definition, SolveRequest, Timestamp, Vertex
from moorage_guest.buildkit.protobuf import Message, WireError, embedded_list, integer, integers, string
from moorage_guest.buildkit.session_messages import Packet, Stat

KINDS = [
    kind
    for module in (messages, session_messages, gateway_messages)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
]


class Sample(Message):
    number: int = integer(1)
    text: str = string(2)
    many: list[int] = integers(4)


def test_bytes_of_the_specification_are_read_and_written() -> None:
    assert Sample.decode(bytes.fromhex("089601")).number == 150
    assert Sample(text="testing").encode() == bytes.fromhex("120774657374696e67")
    assert Sample.decode(bytes.fromhex("2206038e029ea705")).many == [3, 270, 86942]
    assert Sample(number=-2).encode() == bytes.fromhex("08feffffffffffffffff01")
    assert Sample.decode(Sample(number=-2).encode()).number == -2


def test_a_whole_request_comes_back_as_it_was() -> None:
    request = SolveRequest(
        ref="r", frontend_attrs={"target": "", "ä": "ö"}, definition=Definition([b"", b"x"]), entitlements=["", "b"]
    )
    assert SolveRequest.decode(request.encode()) == request
    assert Vertex.decode(Vertex("d", started=Timestamp.of(1_000_000_007)).encode()).started == Timestamp(1, 7)


def test_an_empty_message_inside_is_told_from_none() -> None:
    assert Packet.decode(Packet(0, Stat()).encode()).stat == Stat()
    assert Packet.decode(Packet(0).encode()).stat is None


def test_paths_that_are_no_utf8_survive() -> None:
    wire = b"\x0a\x02a\xff"
    assert Stat.decode(wire).path == "a\udcff" and Stat.decode(wire).encode() == wire


def test_unknown_fields_are_skipped() -> None:
    assert Sample.decode(bytes.fromhex("58016201ff69010203040506070875010203040805")).number == 5


@pytest.mark.parametrize(
    "wire", ["08", "0880", "12ff", "1205ab", "0b", "00", "08ffffffffffffffffffff01", "0a00", "1001", "69010203"]
)
def test_what_is_no_message_is_refused(wire: str) -> None:
    with pytest.raises(WireError):
        Sample.decode(bytes.fromhex(wire))


def test_messages_nested_too_deeply_are_refused() -> None:
    kinds: list[type[Message]] = [Sample]
    wire = Sample(1).encode()
    for level in range(40):
        kinds.append(type(f"Level{level}", (Message,), {"inner": embedded_list(1, kinds[-1])}))
        wire = bytes([0x0A, len(wire)]) + wire
        if level == 20:
            assert kinds[-1].decode(wire).encode() == wire
    with pytest.raises(WireError, match="deeper"):
        kinds[-1].decode(wire)


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_any_bytes_are_a_message_or_refused(data: bytes, kind: type[Message]) -> None:
    try:
        message = kind.decode(data)
    except WireError:
        return
    assert kind.decode(message.encode()) == message
