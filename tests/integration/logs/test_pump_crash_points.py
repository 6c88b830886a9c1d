"""The daemon ends at every single instant of a step, one after the other, and nothing is lost or doubled."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.logs import pipes
from moorage_guest.logs.files import LogFile, Rotation
from moorage_guest.logs.journal import Journal

from tests.support.logs import daemon, forked, json_records, reap, shim_pipes, write_all

#: More than one record each, one of them long, the last one unfinished; for two steps.
CHUNKS = (b"first\nsecond \x00\xff\n" + b"a" * 20_000, b" end of the long line\nthird\n" + b"open")


def _dies(function: Callable[..., Any], *, at_call: int, after: bool) -> Callable[..., Any]:
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if calls == at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def _half_append(file: LogFile, data: bytes) -> None:
    LogFile_append(file, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def _half_store(journal: Journal, step: Any) -> None:
    start = journal._slot(step.generation)
    before = journal._map[start : start + 4096]
    Journal_write(journal, step)
    # What a store that was cut short in the middle leaves: a new beginning and an old end.
    journal._map[start + 48 : start + 4096] = before[48:]
    os.kill(os.getpid(), signal.SIGKILL)


LogFile_append = LogFile.append
Journal_write = Journal.write

POINTS: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    f"{name} {'after' if after else 'before'}": (
        lambda patch, call, owner=owner, attribute=attribute, after=after: patch.setattr(  # type: ignore[misc]
            owner, attribute, _dies(getattr(owner, attribute), at_call=call, after=after)
        )
    )
    for name, owner, attribute in (
        ("splice", pipes, "move"),
        ("peek", pipes, "peek"),
        ("journal", Journal, "write"),
        ("append", LogFile, "append"),
        ("empty", pipes, "empty"),
        ("rotate", LogFile, "rotate_for"),
        ("forget", Journal, "forget"),
    )
    for after in (False, True)
}
POINTS["half an append"] = lambda patch, call: patch.setattr(LogFile, "append", _half_append)
POINTS["half a journal store"] = lambda patch, call: patch.setattr(Journal, "write", _half_store)
POINTS["nowhere"] = lambda patch, call: None


@pytest.mark.parametrize("then", ["nowhere", "half an append", "empty before", "forget before", "forget after"])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("first", sorted(POINTS))
def test_a_daemon_that_ends_here_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, call: int, then: str
) -> None:
    rotation = Rotation(max_size=15_000, max_files=50)

    def dying(point: str, at: int) -> None:
        with monkeypatch.context() as patch:
            POINTS[point](patch, at)
            daemon(shim, rotation, until_empty=True)

    with shim_pipes(tmp_path) as shim:
        for chunk in CHUNKS:
            write_all(shim.streams[1]["a_write"], chunk)
            reap(forked(lambda: dying(first, call)))
        write_all(shim.streams[2]["a_write"], b"other\n")
        reap(forked(lambda: dying(then, 1)))
        assert reap(forked(lambda: daemon(shim, rotation, until_empty=True))) == 0
    records = json_records(tmp_path / "log.json")
    assert b"".join(text for stream, text, _ in records if stream == "stdout") == b"".join(CHUNKS)
    assert b"".join(text for stream, text, _ in records if stream == "stderr") == b"other\n"
