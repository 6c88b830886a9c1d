"""./check counts what pytest reports, runs failed tests once more, and fails for skipped ones."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / ".ci" / "check.py"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that works in a folder of its own."""
    spec = importlib.util.spec_from_file_location("moorage_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "moorage_check", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOP", tmp_path)
    monkeypatch.setattr(module, "REPORTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    return module


def run(check: ModuleType, source: str) -> tuple[list[str], list[str], str]:
    Path("test_it.py").write_text(source)
    outcome = check.run_tests(check.tests("part", ["test_it.py"], 2), dict(os.environ))
    return outcome.faults, outcome.notes, outcome.summary


FAILS_ONCE = """
import pathlib

def test_good(): pass

class TestGroup:
    def test_once(self):
        mark = pathlib.Path("mark")
        if not mark.exists():
            mark.touch()
            raise AssertionError
"""


def test_a_test_that_passes_by_itself_is_noted_and_does_not_fail(check: ModuleType) -> None:
    faults, notes, summary = run(check, FAILS_ONCE)
    assert faults == []
    assert notes == ["failed, then passed when run again by itself: test_it.py::TestGroup::test_once"]
    assert summary == "1 passed, 1 failed, 0 skipped"


def test_a_test_that_fails_twice_is_a_fault(check: ModuleType) -> None:
    faults, notes, _ = run(check, "def test_bad(): assert False\n")
    assert len(faults) == 1 and faults[0].startswith("failed twice: test_it.py::test_bad")
    assert notes == []


def test_skipped_test_is_a_fault_with_its_reason(check: ModuleType) -> None:
    faults, _, _ = run(check, "import pytest\ndef test_lazy(): pytest.skip('no moon')\n")
    assert len(faults) == 1 and "test_lazy" in faults[0] and "no moon" in faults[0]


def test_file_that_cannot_be_imported_is_a_fault(check: ModuleType) -> None:
    faults, _, _ = run(check, "import nothing_of_this_name\n")
    assert faults


def test_part_that_takes_too_long_is_stopped(check: ModuleType) -> None:
    part = check.Part("slow", [sys.executable, "-c", "import signal; signal.pause()"], 0.02)
    outcome = check.run_command(part, dict(os.environ))
    assert len(outcome.faults) == 1 and "was stopped" in outcome.faults[0]


def test_unknown_part_is_refused_with_the_known_ones(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.choose(["unti"]) is None
    assert "unit" in capsys.readouterr().out
    assert all(not part.vm for part in check.choose(["fast"]))
