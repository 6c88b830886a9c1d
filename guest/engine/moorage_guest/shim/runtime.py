"""Runs the OCI runtime on behalf of a shim, and reads from its messages what went wrong."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from moorage_guest.shim import kernel
from moorage_guest.shim.loop import Loop

#: The runtime that is always there; a name in $PATH.
DEFAULT_RUNTIME = "crun"

#: Stands for a descriptor of a null device; see `Runtime.start`.
OWN_NULL = -1

#: Signals that agent and shim handle or ignore, and a program they start must not.
RESET_SIGNALS = (
    signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGXFSZ,
)  # fmt: skip


class RuntimeFailed(Exception):
    """The runtime refused. `code`: not_found, not_executable or runtime."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = classify(message)


def classify(message: str) -> str:
    """Tell a missing program from one that may not be executed, as dockerd does by exit code 127 and 126."""
    text = message.lower()
    if "executable file" in text and "not found" in text:
        return "not_found"
    if "open executable" in text or "exec container process" in text or "starting container process" in text:
        if "no such file or directory" in text:
            return "not_found"
        if "permission denied" in text or "is a directory" in text or "exec format error" in text:
            return "not_executable"
    if ("executable file" in text and "permission denied" in text) or "is not a regular file" in text:
        return "not_executable"
    return "runtime"


class Runtime:
    """One container's view of the runtime program. Calls run one process each and report its end by callback."""

    def __init__(
        self, loop: Loop, program: str, arguments: Sequence[str], root: Path | str, folder: Path | str
    ) -> None:
        self._loop = loop
        self._program = [program, *arguments]
        self._root = root
        self._folder = folder
        self._hybrid = kernel.is_hybrid_cgroup()
        self._number = 0

    def start(
        self, arguments: Sequence[str], stdio: tuple[int, int, int], done: Callable[[RuntimeFailed | None], None],
        inherited: int = -1,
    ) -> int:  # fmt: skip
        """Start `runtime ARGUMENTS` with these three descriptors and return its pid; `done` is called when it ended.

        `OWN_NULL` in place of a descriptor is a null device that only what is started now has. What a process in a container
        gets has to be that: its owner, as which the runtime itself makes the process's user, can close it to all others.
        `inherited` is one more descriptor that it has, under the same number; what it executes closes it.
        """
        self._number += 1
        log = f"{self._folder}/runtime-{self._number}.log"
        argv = [*self._program, f"--log={log}", "--log-format=json", f"--root={self._root}", *arguments]
        pid = os.fork()
        if pid == 0:
            self._child(argv, stdio, inherited, log)
        self._loop.on_child(pid, lambda code: self._ended(code, argv, log, done))
        return pid

    def _child(self, argv: list[str], stdio: tuple[int, int, int], inherited: int, log: str) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in RESET_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            kernel.set_oom_score(0)
            if self._hybrid:
                kernel.hide_unified_cgroup()
            null = kernel.open_null() if OWN_NULL in stdio else OWN_NULL
            given = [null if number == OWN_NULL else number for number in stdio]
            for target, source in enumerate([os.dup(number) if number < 3 else number for number in given]):
                os.dup2(source, target)
            if inherited >= 0:
                os.set_inheritable(inherited, True)
            _execute(argv, _environment())
        except BaseException as error:
            with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as stream:
                json.dump({"level": "error", "msg": f"cannot run {argv[0]}: {error}"}, stream)
        os._exit(127)

    def _ended(self, code: int, argv: list[str], log: str, done: Callable[[RuntimeFailed | None], None]) -> None:
        if code == 0:
            kernel.remove(log)
            done(None)
            return
        message = last_message(kernel.read_small(log).decode(errors="replace"))
        kernel.remove(log)
        done(RuntimeFailed(message or f"{argv[0]} ended with status {code} without saying why"))


def _execute(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """Become a program found on the PATH. Raises OSError.

    It is run from a read-only mount where that can be: no container can overwrite it by way of /proc/PID/exe then, which
    crun would otherwise see to by making such a mount itself and running itself again from it: half of its start.
    """
    if argv[0] != DEFAULT_RUNTIME:  # another may look for its parts beside itself
        os.execvpe(argv[0], argv, environment)
    path = next(
        (each for folder in environment["PATH"].split(":") if os.access(each := f"{folder}/{argv[0]}", os.X_OK)),
        argv[0],
    )
    try:
        program = kernel.open_read_only(path)
        os.execve(program, argv, {**environment, "_LIBCONTAINER_CLONED_BINARY": "1"})
    except OSError:  # the kernel has no such mounts, or it is a script, which is read by its name
        os.execvpe(path, argv, environment)


def last_message(text: str) -> str:
    """Return the last error among the lines of a runtime's log."""
    message = ""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("level", "error") in ("error", "fatal"):
                message = str(entry.get("msg", "")) or message
        except ValueError:
            message = line or message
    return message.strip()


def _environment() -> dict[str, str]:
    path = os.environ.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    keep = {name: value for name, value in os.environ.items() if name in ("XDG_RUNTIME_DIR", "TMPDIR")}
    return {"PATH": path, **keep}
