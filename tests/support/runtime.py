"""A runtime in front of crun that a test can hold back, or have killed, in the middle of its work."""

from pathlib import Path

from tests.support.moored import Moored, wait_for

_SCRIPT = """#!/bin/sh
if mv {root}/die {root}/die.$$ 2> /dev/null; then
    read -r delay < {root}/die.$$
    rm {root}/die.$$
    exec timeout --foreground -s KILL $delay {crun} "$@"
fi
if read -r verb 2> /dev/null < {root}/hold; then
    for word; do
        if [ "$word" = "$verb" ]; then
            echo $$ > {root}/held
            while [ -e {root}/hold ]; do sleep 0.02; done
            break
        fi
    done
fi
exec {crun} "$@"
"""


class Runtime:
    """Make it before the daemon's start: it goes into the daemon's PATH."""

    def __init__(self, moored: Moored, crun: str = "/usr/bin/crun") -> None:
        self._root = moored.sandbox.root / "runtime"
        self._root.mkdir()
        program = self._root / "crun"
        program.write_text(_SCRIPT.format(root=self._root, crun=crun))
        program.chmod(0o755)
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        moored.environment["PATH"] = f"{self._root}:{system}"

    def hold(self, verb: str) -> None:
        """Let the next call with ``verb`` (run, exec, delete…) wait for `release`."""
        self._file("held").unlink(missing_ok=True)
        self._file("hold").write_text(f"{verb}\n")

    def wait_held(self) -> int:
        """Wait until a call is held; returns its pid inside the sandbox."""
        wait_for("the runtime to be called", lambda: self._file("held").exists() and self._file("held").read_text())
        return int(self._file("held").read_text())

    def release(self) -> None:
        """Let what is held go on, and hold nothing more."""
        self._file("hold").unlink(missing_ok=True)

    def die(self, after: float) -> None:
        """Let the next call be killed after some seconds."""
        staged = self._file("die.new")
        staged.write_text(f"{after:.4f}\n")
        staged.rename(self._file("die"))

    def live(self) -> None:
        """Take `die` back, if nothing was called since."""
        self._file("die").unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._root / name
