"""A short soak, always the same: `python -m tests.soak` is the long one (docs/faults.md)."""

import sys
from pathlib import Path

import pytest

from tests.soak.run import Plan, soak

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def test_fifteen_random_faults_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    assert soak(Plan(seed=2611, faults=15, containers=10, record=tmp_path / "soak.jsonl", say=say)) == []
