"""Whatever stands in a daemon.json: it is read as JSON says, or refused at a place, and never ends in a traceback."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moorage_contract.daemon_config import SECTIONS, SETTINGS, FaultKind, check, read, set_key

SLOW = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
documents = st.dictionaries(texts, values, max_size=5)
likely = st.sampled_from(
    [
        "10.0.0.1/24",
        "fd00::1/64",
        "nofile",
        "http://[::1",
        "tcp://:99999",
        "unix:",
        "1.1.1.1",
        "64M",
        "=",
        "a=b",
        "a=b=c",
        "..",
        "-1",
        "json-file",
    ]
)


@SLOW
@given(documents, st.sampled_from([None, 1, 2, "\t"]), st.booleans())
def test_json_is_read_as_python_reads_it(document: dict[str, Any], indent: int | str | None, ascii: bool) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii)
    found = read(text)
    assert found.root == json.loads(text)
    for member in found.top_members():
        assert json.loads(text[member.key_start : member.key_end]) == member.key
        assert json.loads(text[member.value_start : member.value_end]) == member.value
        line, column = found.place(member.key_start)
        assert text.split("\n")[line - 1][column - 1] == '"'


@SLOW
@given(documents, st.data())
def test_damaged_json_is_refused_at_a_place_inside_of_the_text(document: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(document, indent=2)
    start = data.draw(st.integers(0, len(text)))
    damaged = (
        text[:start]
        + data.draw(st.text('{}[]",:\\x\n\t 0-.e#/*', max_size=3))
        + text[start + data.draw(st.integers(0, 3)) :]
    )
    syntax = [fault for fault in check(damaged) if fault.kind is FaultKind.SYNTAX]
    try:
        sound = isinstance(json.loads(damaged), dict) or False
    except ValueError:
        sound = not damaged.strip()
    assert bool(syntax) is not sound
    for fault in syntax:
        assert 1 <= fault.line <= damaged.count("\n") + 1 and fault.column >= 1


@SLOW
@given(
    st.dictionaries(
        st.sampled_from([*SETTINGS, *SECTIONS]),
        values | likely | st.lists(likely, max_size=3) | st.dictionaries(likely, likely | values, max_size=2),
        max_size=4,
    )
)
def test_any_value_of_a_known_key_is_taken_or_refused_with_a_sentence(document: dict[str, Any]) -> None:
    for fault in check(json.dumps(document, indent=1)):
        assert fault.message and fault.line >= 1


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([*SETTINGS]), values | likely | st.lists(likely | scalars, max_size=3))
def test_any_value_of_a_flag_is_taken_or_refused_with_a_sentence(key: str, value: Any) -> None:
    for fault in check("", flags={key: value}):
        assert fault.message and (fault.line, fault.column) == (0, 0)


@SLOW
@given(documents, st.sampled_from(["debug", "x-mine", "labels"]), values, st.sampled_from([None, 2, 4, "\t"]))
def test_set_key_changes_that_key_alone(
    document: dict[str, Any], key: str, value: Any, indent: int | str | None
) -> None:
    changed = json.loads(set_key(json.dumps(document, indent=indent), key, value))
    expected = (
        document | {key: value} if value is not None else {name: item for name, item in document.items() if name != key}
    )
    assert changed == json.loads(json.dumps(expected))
    assert [name for name in changed if name != key] == [name for name in document if name != key]
