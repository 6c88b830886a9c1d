"""Starts netd, which answers containers' DNS questions and holds published ports while no daemon runs."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

from moorage_guest.agent.forking import fork_helper
from moorage_guest.shim import kernel, wire
from moorage_guest.shim.loop import Loop

#: Seconds until a new netd has to listen.
_DEADLINE = 30.0


class Netd:
    """One netd per exec root. It is nobody's business here what it does."""

    def __init__(self, loop: Loop, exec_root: Path, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._path = exec_root / "net" / "netd.sock"
        self._errors = exec_root / "net" / "netd.log"
        self._log = log
        self._pid = 0

    def ensure(self, done: Callable[[Path | None, str], None]) -> None:
        """Call `done(path, "")` once a netd listens, forking one if needed; `done(None, why)` when it does not come up."""
        if self._listens():
            done(self._path, "")
            return
        # One that we know but that does not listen may have died without our having heard of it.
        earlier = self._pid
        if not earlier:
            self._fork()
        self._wait(_DEADLINE, earlier, done)

    def _fork(self) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._pid = fork_helper(lambda _: _run(self._path), self._errors)
        self._loop.on_child(self._pid, self._ended)

    def _wait(self, left: float, earlier: int, done: Callable[[Path | None, str], None]) -> None:
        """Wait until one listens; once ``earlier`` is known to have ended (0: it is) there is a new one to wait for."""
        if self._listens():
            done(self._path, "")
        elif not self._pid and earlier:
            self._fork()
            self._wait(left, 0, done)
        elif not self._pid:
            done(None, f"netd ended at once; see {self._errors}")
        elif left <= 0:
            done(None, f"netd does not listen at {self._path}; see {self._errors}")
        else:
            self._loop.later(0.01, lambda: self._wait(left - 0.01, earlier, done))

    def _listens(self) -> bool:
        try:
            wire.connect(self._path).close()
        except OSError:
            return False
        return True

    def _ended(self, code: int) -> None:
        self._pid = 0
        self._log(f"netd ended with status {code}")


def _run(path: Path) -> None:
    os.setsid()
    kernel.set_name("moorage-netd")
    main: Callable[[str], int] = importlib.import_module("moorage_guest.net.netd.main").main
    raise SystemExit(main(str(path)))
