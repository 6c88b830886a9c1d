"""The agent has a netd whenever one is asked for, also when the last one has just died."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_guest.agent.netd import Netd
from moorage_guest.shim import wire
from moorage_guest.shim.loop import Loop

pytestmark = pytest.mark.root


@pytest.fixture
def loop() -> Iterator[Loop]:
    errors: list[str] = []
    loop = Loop(errors.append)
    yield loop
    loop.close()
    assert errors == []


def _ensure(loop: Loop, netd: Netd) -> Path:
    answers: list[tuple[Path | None, str]] = []
    netd.ensure(lambda path, why: answers.append((path, why)))
    while not answers:
        loop.step(60)
    path, why = answers[0]
    assert path is not None, why
    wire.connect(path).close()
    return path


def test_netd_that_died_unheard_of_is_followed_by_another(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    said: list[str] = []
    netd = Netd(loop, tmp_path, said.append)
    pids = []
    try:
        for _ in range(5):
            _ensure(loop, netd)
            pids.append(netd._pid)
            os.kill(netd._pid, signal.SIGKILL)
            os.waitid(os.P_PID, netd._pid, os.WEXITED | os.WNOWAIT)  # dead, and the agent has not heard of it
        assert len(set(pids)) == 5
        _ensure(loop, netd)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(netd._pid, signal.SIGKILL)
        while netd._pid:
            loop.step(60)
