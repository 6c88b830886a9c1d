"""Filters of the build cache, as BuildKit's clients write them."""

from typing import Any

import pytest
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.cacheuse import expression


def entry(**fields: Any) -> dict[str, Any]:
    return {
        "ID": "abc", "Parents": ["p1"], "Type": "regular", "Description": "[1/2] RUN make", "InUse": False, "Shared": False,
        **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "passes"),
    [
        (["id==abc"], True), (["id==abd"], False), (["id!=abd"], True), (["parent==p1"], True), (["parents==p2"], False),
        (["type==regular,private"], True), (["type==regular,shared"], False), (["inuse"], False), (["private"], True),
        (["description~=RUN m.ke"], True), (["description~=^RUN"], False), (["id==x", "immutable"], True), (["mutable"], False),
        (["inuse==true"], False), (["private==true"], True), (['id=="abc"'], True),
    ],
)  # fmt: skip
def test_an_entry_passes_when_all_parts_of_one_filter_hold(texts: list[str], passes: bool) -> None:
    chosen = expression(texts)
    assert chosen is not None
    assert chosen(entry()) is passes


def test_no_filter_chooses_nothing_out() -> None:
    assert expression([]) is None
    assert expression([""]) is None, "which buildx sends when it has none"


@pytest.mark.parametrize("text", ["size==3", "id=x", "==", "description~=["])
def test_what_is_no_filter_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidParameter, match="filter"):
        expression([text])
