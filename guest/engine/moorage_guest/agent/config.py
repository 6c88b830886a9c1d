"""daemon.json: check, put in force, and put the last good one back when the daemon does not take the new one.

What its keys mean is the daemon's business; here it is a text that the daemon accepts or not.
"""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from moorage_guest.agent.daemon import Daemon
from moorage_guest.agent.probe import Probe
from moorage_guest.settingsfile import MAX_BYTES, read_text
from moorage_guest.shim.connection import Refused
from moorage_guest.shim.loop import Loop

#: Seconds that the daemon has to answer in after a change.
PROBE_DEADLINE = 90.0

#: Failed starts after which a file that differs from the last good one is held responsible.
_SUSPECT_AFTER = 2


class Applied(NamedTuple):
    """Result of `apply`."""

    ok: bool
    message: str = ""
    rolled_back: bool = False


class Config:
    """The file of one daemon. daemon.json.good beside it is the last one with which the daemon became ready."""

    def __init__(self, loop: Loop, file: Path, exec_root: Path, daemon: Daemon, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._file = file
        self._good = file.with_name(file.name + ".good")
        self._candidate = exec_root / "daemon.json.candidate"
        self._report = exec_root / "validate.log"
        self._exec_root = exec_root
        self._daemon = daemon
        self._log = log
        self._busy = False
        self.rolled_back: dict[str, object] | None = None

    def content(self) -> str:
        """Return the file's text; {} when there is none. Raises OSError when something else is in its place."""
        try:
            return read_text(self._file)
        except FileNotFoundError:
            return "{}\n"
        except UnicodeDecodeError as error:
            raise OSError(errno.EILSEQ, f"it is no text: {error}", str(self._file)) from None

    def sha256(self) -> str:
        """Return the digest of the file as it is, "" when it cannot be read."""
        try:
            return hashlib.sha256(self.content().encode()).hexdigest()
        except OSError:
            return ""

    def validate(self, content: str, done: Callable[[bool, str], None]) -> None:
        """Ask the daemon's own code whether it would take this text."""
        if len(content.encode()) > MAX_BYTES:
            done(False, f"daemon.json is larger than {MAX_BYTES} bytes")
            return
        _write(self._candidate, content)
        output = os.open(self._report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)

        def ended(code: int) -> None:
            text = self._report.read_text(errors="replace").strip()
            # The user knows the file by its real name.
            text = text.replace(str(self._candidate), str(self._file))
            done(code == 0, text if code != 0 else "")

        try:
            self._daemon.run_once([*self._arguments(), "--validate"], output, ended)
        finally:
            os.close(output)

    def apply(self, content: str, restart: bool, done: Callable[[Applied], None]) -> None:
        """Validate, put in force by SIGHUP or restart, probe; the file before is put back when any of that fails."""
        if self._busy:
            raise Refused("busy", "another change of daemon.json is under way: wait for it")
        self._busy = True

        def finish(result: Applied) -> None:
            self._busy = False
            done(result)

        def validated(ok: bool, message: str) -> None:
            if not ok:
                finish(Applied(False, message))
                return
            try:
                self._put_in_force(content, restart, finish)
            except OSError as error:
                finish(Applied(False, f"cannot write {self._file}: {error.strerror}; free some space"))

        try:
            self.validate(content, validated)
        except OSError as error:
            finish(Applied(False, f"cannot check the file: {error.strerror}; free some space"))

    def daemon_ready(self) -> None:
        """The daemon serves with the file as it is: remember it as good."""
        if not self._busy:
            self._remember()

    def daemon_failed(self) -> None:
        """The daemon does not start: when the file was changed since it last did, put the good one back."""
        if self._busy or self._daemon.failures < _SUSPECT_AFTER:
            return
        try:
            good = read_text(self._good)
        except (OSError, ValueError):
            return
        with contextlib.suppress(OSError):
            if good == self.content():
                return
        self._log("the daemon does not start with daemon.json as it is: the last good one is put back")
        self._note(self._daemon.last_error)
        try:
            self._reject()
            _write(self._file, good)
        except OSError as error:
            self._log(f"cannot put the good daemon.json back: {error.strerror}")
        else:
            self._daemon.forgive()

    def _reject(self) -> None:
        """Put what is in the file's place aside, whatever it is."""
        aside = self._file.with_name(self._file.name + ".rejected")
        if aside.is_dir() and not aside.is_symlink():
            aside.rename(aside.with_name(f"{aside.name}-{time.time_ns()}"))
        elif self._file.is_dir():
            aside.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._file.rename(aside)

    def _arguments(self) -> list[str]:
        arguments = list(self._daemon.argv)
        arguments[arguments.index("--config-file") + 1] = str(self._candidate)
        return arguments

    def _put_in_force(self, content: str, restart: bool, finish: Callable[[Applied], None]) -> None:
        try:
            before = self.content() if self._file.exists() else None
        except OSError:
            self._reject()
            before = None
        _write(self._file, content)

        def probed(answered: bool) -> None:
            if answered:
                self.rolled_back = None
                self._remember()
                finish(Applied(True))
            else:
                back("the daemon does not answer /_ping with it")

        def probe() -> None:
            Probe(self._loop, self._exec_root / "docker.sock", PROBE_DEADLINE, probed)

        def ready(up: bool) -> None:
            if up:
                probe()
            else:
                back(self._daemon.last_error or "the daemon ended at once with it")

        def back(message: str) -> None:
            self._note(message)
            if before is None:
                self._file.unlink(missing_ok=True)
            else:
                _write(self._file, before)
            self._daemon.restart(lambda _up: finish(Applied(False, message, rolled_back=True)))

        if restart or not self._daemon.pid:
            self._daemon.restart(ready)
        else:
            offset = self._daemon.log_size()
            self._daemon.reload()

            def reloaded(answered: bool) -> None:
                complaint = self._daemon.complaint_since(offset)
                if complaint:
                    back(complaint)
                else:
                    probed(answered)

            Probe(self._loop, self._exec_root / "docker.sock", PROBE_DEADLINE, reloaded)

    def _note(self, message: str) -> None:
        self.rolled_back = {"message": message, "at": time.time()}

    def _remember(self) -> None:
        try:
            content = self.content()
            if self._good.exists() and self._good.read_text() == content:
                return
            _write(self._good, content)
        except OSError as error:
            self._log(f"cannot write {self._good}: {error.strerror}")


def _write(path: Path, content: str) -> None:
    """Replace a file as if power failed in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
