import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moorage_guest.net.netd import wire
from moorage_guest.net.netd.names import Names, Place


def query(name: str, kind: int = wire.A, flags: int = 0x0100) -> bytes:
    body = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    return struct.pack(">HHHHHH", 77, flags, 1, 0, 0, 0) + body + struct.pack(">HH", kind, 1)


def test_question_is_read_in_lower_case() -> None:
    question = wire.parse(query("Web.NET", wire.AAAA))
    assert (question.id, question.name, question.kind) == (77, "web.net", wire.AAAA)


@pytest.mark.parametrize(
    "message",
    [b"", b"\0" * 11, query("a", flags=0x8000), query("a", flags=0x1000), query("a")[:-1], query("a" * 63)[:40]],
)
def test_what_is_no_question_is_refused(message: bytes) -> None:
    with pytest.raises(wire.BadMessage):
        wire.parse(message)


@settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=600))
def test_no_message_breaks_the_parser(message: bytes) -> None:
    try:
        question = wire.parse(message)
    except wire.BadMessage:
        answer = wire.failure(message, wire.FORMERR)
        assert answer is None or len(answer) == 12
    else:
        names = Names()
        names.put("n", "e", ["web"], ["10.0.0.1"])
        names.answer([Place("n", "net")], question, 512)
        assert wire.answer(question, [])[:2] == message[:2]


def test_answer_that_is_too_long_is_cut_and_says_so() -> None:
    question = wire.parse(query("pool"))
    records = [(wire.A, bytes([10, 0, 0, n])) for n in range(100)]
    answer = wire.answer(question, records, limit=512)
    flags, count = struct.unpack_from(">HxxH", answer, 2)
    assert len(answer) <= 512 and flags & 0x0200 and 0 < count < 100
    assert not struct.unpack_from(">H", wire.answer(question, records), 2)[0] & 0x0200


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("4.3.2.1.in-addr.arpa", "1.2.3.4"),
        ("2." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa", "2001:db8::2"),
        ("x.in-addr.arpa", None),
        ("1.ip6.arpa", None),
        ("web", None),
    ],
)
def test_reverse_names(name: str, address: str | None) -> None:
    assert wire.address_of_reverse(name) == address


def test_names_are_seen_from_their_networks_alone() -> None:
    names = Names()
    names.put("n1", "e1", ["web", "www"], ["10.0.0.2", "2001:db8::2"])
    names.put("n2", "e2", ["web"], ["10.1.0.2"])
    one, two = Place("n1", "one"), Place("n2", "two", {"db": "web"})
    assert sorted(names.addresses([one], "web") or []) == ["10.0.0.2", "2001:db8::2"]
    assert names.addresses([two], "web") == ["10.1.0.2"]
    assert names.addresses([two], "www") is None
    assert names.addresses([one], "www.one") is not None
    assert names.addresses([one, two], "web.two") == ["10.1.0.2"]
    assert names.addresses([two], "db") == ["10.1.0.2"]
    assert names.addresses([one], "db") is None
    assert names.reverse([one], "2001:db8::2") == "web.one"
    assert names.reverse([two], "10.0.0.2") is None


def test_names_go_with_their_endpoint_and_others_stay() -> None:
    names = Names()
    names.put("n", "e1", ["app", "pool"], ["10.0.0.2"])
    names.put("n", "e2", ["pool", "pool"], ["10.0.0.3"])
    names.put("n", "e1", ["renamed", "pool"], ["10.0.0.2"])
    place = [Place("n", "net")]
    assert names.addresses(place, "app") is None
    assert sorted(names.addresses(place, "pool") or []) == ["10.0.0.2", "10.0.0.3"]
    names.drop("n", "e1")
    names.drop("n", "e1")
    assert names.addresses(place, "pool") == ["10.0.0.3"]
    names.drop("n", "e2")
    assert names.networks == {} and names.addresses(place, "pool") is None
