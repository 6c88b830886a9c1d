"""Changing the engine while containers run: check, switch, probe, and go back by itself when the new one does not answer."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from moorage_guest.agent.daemon import Daemon
from moorage_guest.agent.engines import BUILT_IN, Engines, refusal
from moorage_guest.agent.forking import in_child, spawn_program
from moorage_guest.agent.probe import Probe
from moorage_guest.shim.connection import Refused
from moorage_guest.shim.loop import Loop

#: Seconds that a new daemon has to answer in.
PROBE_DEADLINE = 90.0

_IMPORT_TEST = (
    "import moorage_guest.daemon, moorage_guest.agent.supervisor, moorage_guest.agent.zygote, sys; "
    "from moorage_contract.version import ENGINE_VERSION as v; sys.exit(0 if v == sys.argv[1] else 'version is ' + v)"
)

Done = Callable[[str], None]


class Upgrade:
    """One change at a time. `done("")` is called after success, `done(why)` after failure; `on_switched` when another engine
    than this agent's is in force then."""

    def __init__(
        self, loop: Loop, exec_root: Path, engines: Engines, daemon: Daemon, running: Callable[[], list[str]],
        log: Callable[[str], None], inside: str,
    ) -> None:  # fmt: skip
        """`inside` is the engine that this agent is of."""
        self._loop = loop
        self._exec_root = exec_root
        self._engines = engines
        self._daemon = daemon
        self._running = running
        self._log = log
        self._inside = inside
        self._busy = False
        self.on_switched: Callable[[], None] = lambda: None

    def upgrade(self, file: Path, sha256: str, done: Done) -> None:
        """Put a built engine in force."""
        finish = self._begin(done)

        def staged(version: object, error: str) -> None:
            if error:
                finish(error)
            else:
                self._test(str(version), finish)

        in_child(self._loop, lambda: self._engines.stage(file, sha256), self._exec_root / "engine.log", staged)

    def rollback(self, done: Done) -> None:
        """Put the engine before in force again."""
        previous = self._engines.previous
        if previous is None or previous == self._engines.current:
            raise Refused("no_previous", "there is no engine to go back to: none has been replaced")
        finish = self._begin(done)
        why = self._refusal(previous)
        if why:
            finish(why)
        else:
            self._switch(previous, finish)

    def resume(self) -> None:
        """Go on with a change under which an agent was killed: its daemon and zygote may be of either engine. Quiet if none was."""
        unproven = self._engines.unproven
        if unproven is None or unproven[0] != self._engines.current:
            self._engines.proven()
            return
        name, before = unproven
        self._log(f"an agent ended while it changed to engine {self._engines.version_of(name)}: going on with that")
        self._prove(name, before, self._begin(lambda _why: None))

    def _begin(self, done: Done) -> Done:
        if self._busy:
            raise Refused("busy", "another change of the engine is under way: wait for it")
        self._busy = True

        def finish(why: str) -> None:
            self._busy = False
            self._engines.proven()
            self._log(f"change of the engine: {why or 'done, in force is ' + self._engines.current}")
            done(why)
            if self._engines.current != self._inside:
                self.on_switched()

        return finish

    def _refusal(self, name: str) -> str:
        before = self._engines.version_of(self._engines.current)
        return refusal(before, self._engines.version_of(name), self._running())

    def _test(self, version: str, finish: Done) -> None:
        """Import it in a process of its own before anything depends on it."""
        why = self._refusal(version)
        if why:
            self._engines.discard(version)
            finish(why)
            return
        report = self._exec_root / "import-test.log"
        output = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            pid = spawn_program(
                [sys.executable, "-c", _IMPORT_TEST, version], self._engines.environment(version), output
            )
        finally:
            os.close(output)

        def ended(code: int) -> None:
            if code == 0:
                self._switch(version, finish)
                return
            last = report.read_text(errors="replace").strip().splitlines()[-1:]
            self._engines.discard(version)
            finish(f"engine {version} cannot be imported: {last[0] if last else f'status {code}'}")

        self._loop.on_child(pid, ended)

    def _switch(self, name: str, finish: Done) -> None:
        before = self._engines.current
        try:
            self._engines.switch(name, previous=before, back=before)
        except OSError as error:
            finish(f"engine {self._engines.version_of(name)} cannot be put in force: {error.strerror}")
            return
        self._prove(name, before, finish)

    def _prove(self, name: str, before: str | None, finish: Done) -> None:
        """Start zygote and daemon of the engine in force and see whether they work; if not, go back."""
        label = f"engine {self._engines.version_of(name)}"

        def back(why: str) -> None:
            if before is None:
                finish(f"{label} is not ready: {why}")
                return
            self._log(f"{label} failed ({why}): going back")
            try:
                self._engines.switch(before, previous=name if before != BUILT_IN else None)
            except OSError as error:
                finish(f"{label} failed: {why}; the engine before cannot be put in force: {error.strerror}")
                return

            def restarted(up: bool) -> None:
                state = "is in force again" if up else "was put back but is not ready yet; see the daemon's log"
                finish(f"{label} failed: {why}; the engine before {state}")

            self._daemon.replace_zygote(lambda _: self._daemon.restart(restarted))

        def ready(up: bool) -> None:
            if up:
                Probe(
                    self._loop, self._exec_root / "docker.sock", PROBE_DEADLINE,
                    lambda answered: finish("") if answered else back("it does not answer /_ping"),
                )  # fmt: skip
            else:
                back(self._daemon.last_error or "it ended at once")

        def zygote(up: bool) -> None:
            if up:
                self._daemon.restart(ready)
            else:
                back(self._daemon.last_error or "it cannot be imported")

        self._daemon.replace_zygote(zygote)
