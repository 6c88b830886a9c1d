"""docs/live-restore.md names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "live-restore.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


def test_every_row_names_a_test() -> None:
    tables = [
        line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| sentence", "| pr"))
    ]
    assert len(tables) > 30
    assert [line for line in tables if "::test_" not in line] == []


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_named_tests_exist(file: str) -> None:
    places = [ROOT / "tests" / folder / file for folder in ("", "integration", "unit")]
    path = next(place for place in places if place.is_file())
    tree = ast.parse(path.read_text())
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for each, name in NAMED if each == file} <= there
