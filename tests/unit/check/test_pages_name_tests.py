"""Pages that say of each promise which test shows it name tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
#: Each page with the number of rows that its tables have at least.
PAGES = {"live-restore.md": 30, "image-store.md": 35}
_HEADS = ("| sentence", "| promise", "| phrase")


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def named(page: str) -> list[tuple[str, str]]:
    return sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", text_of(page))))


@pytest.mark.parametrize("page", PAGES)
def test_every_row_names_a_test(page: str) -> None:
    rows = [line for line in text_of(page).splitlines() if line.startswith("| ") and not line.startswith(_HEADS)]
    assert len(rows) > PAGES[page]
    assert [line for line in rows if "::test_" not in line] == []


@pytest.mark.parametrize(
    ("page", "file"), [(page, file) for page in PAGES for file in sorted({file for file, _ in named(page)})]
)
def test_named_tests_exist(page: str, file: str) -> None:
    places = [ROOT / "tests" / folder / file for folder in ("", "integration", "unit")]
    path = next(place for place in places if place.is_file())
    tree = ast.parse(path.read_text())
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for each, name in named(page) if each == file} <= there
