"""One container as its shim holds it: pipes, standard input, terminal, first process and exit record.

Knows nothing of connections; `emit` gets what happens.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from moorage_guest.shim import kernel
from moorage_guest.shim.attachments import Attachment, Attachments
from moorage_guest.shim.backlog import Backlog
from moorage_guest.shim.clients import STDERR, STDOUT, Client, Input
from moorage_guest.shim.fill import measure
from moorage_guest.shim.loop import WRITE, Loop
from moorage_guest.shim.runtime import OWN_NULL, Runtime, RuntimeFailed
from moorage_guest.shim.spill import Spill
from moorage_guest.shim.streams import Console, Reader
from moorage_guest.shim.wire import PROTOCOL


class Spec(NamedTuple):
    """What the agent was asked to fork a shim for."""

    container_id: str
    tty: bool
    open_stdin: bool
    stdin_once: bool
    runtime: str
    runtime_args: list[str]
    labels: dict[str, str]
    spill_bytes: int = 0
    spill_folder: str = ""


class Exit(NamedTuple):
    """How the first process ended."""

    code: int
    at_ns: int
    oom: bool

    def record(self) -> dict[str, Any]:
        """Return it as the protocol and state.json have it."""
        return {"code": self.code, "at_ns": self.at_ns, "oom": self.oom}


class Container:
    """`run` once; then the first process runs until `exit` is set. Files are kept in `folder` for agent and daemon."""

    def __init__(
        self, loop: Loop, spec: Spec, folder: str, runtime: Runtime, emit: Callable[[dict[str, Any]], None]
    ) -> None:
        self._loop = loop
        self.spec = spec
        self._folder = folder
        self._runtime = runtime
        self._emit = emit
        self.pid = 0
        self.started_ns = 0
        self.exit: Exit | None = None
        self.size = (0, 0)
        self.owner = (0, 0)
        self._started = False
        #: Whether the runtime is at work on the start.
        self.starting = False
        self._freezer = ""
        self._memory = ""
        self._numbers = (STDOUT,) if spec.tty else (STDOUT, STDERR)
        self._a: dict[int, tuple[int, int]] = {}
        self._b: dict[int, tuple[int, int]] = {}
        for number in self._numbers:
            self._a[number] = kernel.pipe_of_fixed_size()
            self._b[number] = kernel.pipe_of_fixed_size()
        self._spills: dict[int, Spill] = {}
        self._sources: dict[int, tuple[int, int]] = {}
        if spec.spill_bytes and not spec.tty:
            self._sources = {number: kernel.pipe_of_fixed_size() for number in self._numbers}
        self._terminal: Reader | None = None
        self._held = b""
        self.stdin: Input | None = None
        self._stdin_read = -1
        if spec.open_stdin and not spec.tty:
            self._stdin_read, write = os.pipe2(os.O_CLOEXEC)
            self.stdin = Input(loop, write)
        backlog = Backlog(spec.spill_folder or folder)
        self.attachments = Attachments(loop, lambda count: emit({"event": "attached", "count": count}), backlog)
        self._waiting_for_stdin: list[tuple[Client, bytes]] = []
        if self.stdin is not None:
            self.stdin.on_room = self._stdin_room

    # -- what the daemon asks -----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.pid > 0 and self.exit is None

    @property
    def paused(self) -> bool:
        return self.running and kernel.is_frozen(self._freezer)

    def pipes(self) -> list[int]:
        """Return A's read end and both ends of B for each stream, in order. They stay ours."""
        return [fd for number in self._numbers for fd in (self._a[number][0], *self._b[number])]

    @property
    def streams(self) -> list[int]:
        return list(self._numbers)

    def fill(self) -> list[dict[str, int | bool]]:
        """Return what waits in each pipe A, for the agent."""
        result: list[dict[str, int | bool]] = []
        for number in self._numbers:
            count, full = measure(self._a[number][0])
            spill = self._spills.get(number)
            if spill is not None:  # the container waits only when its own pipe is full, too
                full = spill.source >= 0 and measure(spill.source)[1]
            blocked = full and self.running
            result.append({"stream": number, "bytes": count, "capacity": kernel.PIPE_SIZE, "blocked": blocked})
        return result

    def run(self, bundle: str, done: Callable[[RuntimeFailed | None], None], owner: tuple[int, int] = (0, 0)) -> None:
        """Start the first process; `done` gets None once it runs. ValueError when it was started before.

        ``owner`` is the machine's number of the container's root, whose the pipes have to be to be opened again.
        """
        if self._started:
            raise ValueError(f"container {self.spec.container_id} was started before; a shim starts it only once")
        self._started = self.starting = True
        self.owner = owner
        pid_file = f"{self._folder}/container.pid"
        arguments = ["run", "--detach", f"--bundle={bundle}", f"--pid-file={pid_file}"]
        console = Console(Path(self._folder), "pty") if self.spec.tty else None
        if console is not None:
            arguments.append(f"--console-socket={console.path}")
            stdio = (OWN_NULL, OWN_NULL, OWN_NULL)
        else:
            stdin = self._stdin_read if self._stdin_read >= 0 else OWN_NULL
            outputs = self._sources or self._a
            stdio = (stdin, outputs[STDOUT][1], outputs[STDERR][1])
            kernel.give(stdio if self._stdin_read >= 0 else stdio[1:], owner)

        def finished(failure: RuntimeFailed | None) -> None:
            self.starting = False
            if self._stdin_read >= 0:
                os.close(self._stdin_read)
                self._stdin_read = -1
            master = None
            if console is not None:
                master = console.take()
                console.close()
            if failure is None:
                self._begin(int(kernel.read_small(pid_file)), master, bundle)
            else:
                self._fail()
            kernel.remove(pid_file)
            done(failure)

        self._runtime.start([*arguments, self.spec.container_id], stdio, finished)

    def close(self) -> None:
        """Let go of pipes and clients, for a container that does not run."""
        self.attachments.close()
        self._close_write_ends()
        for number in self._numbers:
            for fd in (self._a[number][0], *self._b[number]):
                os.close(fd)
        if self._stdin_read >= 0:
            os.close(self._stdin_read)
        if self.stdin is not None:
            self.stdin.abandon()

    def resize(self, rows: int, columns: int) -> bool:
        """Set the terminal's size, remembered when there is none yet; False when the container has no tty."""
        if not self.spec.tty:
            return False
        self.size = (rows, columns)
        if self._terminal is not None and not self._terminal.ended:
            kernel.set_terminal_size(self._terminal.fd, rows, columns)
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the first process. Raises ProcessLookupError when it does not run."""
        if not self.running:
            raise ProcessLookupError
        os.kill(self.pid, number)  # ours and not reaped yet, so the pid is still its own

    def attach(
        self, client: Client, stdin: bool, prefix: bytes, start: dict[int, int], detached: Callable[[], None],
        head: bytes = b"", held: bool = False,
    ) -> Attachment:  # fmt: skip
        """Serve a client from now on; one that is ``held`` once the beginning of its output is known."""

        def input_ended() -> None:
            if self.spec.stdin_once and not self.spec.tty and self.stdin is not None:
                self.stdin.close()

        client.on_detach = detached
        client.on_input_end = input_ended

        def take_input() -> None:
            if self.stdin is not None:
                client.feed_input(self.stdin, prefix)
            elif not self._started:
                self._waiting_for_stdin.append((client, prefix))

        attachment = self.attachments.add(client, start, input_ended if stdin else _nothing, head, held)
        if stdin and self.spec.open_stdin:
            if held:  # what the container answers must not come before the beginning is known
                attachment.on_begin = take_input
            else:
                take_input()
        return attachment

    # -- life ---------------------------------------------------------------------------------------------------------

    def _begin(self, pid: int, master: int | None, bundle: str) -> None:
        self.pid = pid
        self.started_ns = time.time_ns()
        fallback = "" if kernel.start_time(pid) else _cgroup_path(bundle)
        self._freezer = kernel.cgroup_folder(pid, "freezer", fallback)
        self._memory = kernel.cgroup_folder(pid, "memory", fallback)
        if master is not None:
            if self.size != (0, 0):
                kernel.set_terminal_size(master, *self.size)
            os.set_blocking(self._a[STDOUT][1], False)
            self._terminal = Reader(self._loop, master, self._from_terminal, self._terminal_ended, chunk=4096)
            if self.spec.open_stdin:
                self.stdin = Input(self._loop, os.dup(master))
                self.stdin.on_room = self._stdin_room
        elif self._sources:
            self._begin_spilling()
        else:
            self._close_write_ends()
        for client, prefix in self._waiting_for_stdin:
            if self.stdin is not None and not client.closed:
                client.feed_input(self.stdin, prefix)
        self._waiting_for_stdin.clear()
        self.save()
        self._loop.on_child(pid, self._exited)

    def _fail(self) -> None:
        """The runtime may have written its complaint to stderr, too: the daemon has it, the log need not."""
        for number in self._numbers:
            read = self._a[number][0]
            os.set_blocking(read, False)
            while kernel.bytes_waiting(read) > 0:
                os.read(read, kernel.PIPE_SIZE)
        self._close_write_ends()
        if self.stdin is not None:
            self.stdin.abandon()

    def _exited(self, code: int) -> None:
        self.exit = Exit(code, time.time_ns(), kernel.was_oom_killed(self._memory))
        self.save()
        if self.stdin is not None:
            self.stdin.abandon()
        self._emit({"event": "exited", **self.exit.record()})

    def _begin_spilling(self) -> None:
        """From now on the shim carries output from the container's own pipes to pipe A, or to a file while that is full."""
        for number, (read, write) in self._sources.items():
            os.close(write)
            target = self._a[number][1]
            self._a[number] = (self._a[number][0], -1)
            self._spills[number] = Spill(
                self._loop, read, target, self.spec.spill_folder, self.spec.spill_bytes, _nothing
            )
        self._sources = {}

    def _stdin_room(self) -> None:
        for client in self.attachments.clients():
            client.retry_input()

    def _close_write_ends(self) -> None:
        for fds in self._sources.values():
            for fd in fds:
                os.close(fd)
        self._sources = {}
        for number in self._numbers:
            read, write = self._a[number]
            if write >= 0:
                os.close(write)
                self._a[number] = (read, -1)

    # -- terminal -----------------------------------------------------------------------------------------------------

    def _from_terminal(self, data: bytes) -> None:
        self._held += data
        self._to_pipe(0)

    def _to_pipe(self, _ready: int) -> None:
        write = self._a[STDOUT][1]
        while self._held:
            try:
                count = os.write(write, self._held)
            except BlockingIOError:
                self._loop.watch(write, WRITE, self._to_pipe)
                if self._terminal is not None and not self._terminal.ended:
                    self._terminal.pause()
                return
            self._held = self._held[count:]
        self._loop.unwatch(write)
        if self._terminal is None or self._terminal.ended:
            self._close_write_ends()
        else:
            self._terminal.resume()

    def _terminal_ended(self) -> None:
        if not self._held:
            self._close_write_ends()

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write state.json: with the agent's shim.json all that is needed to find, or bury, this container."""
        ended = "null" if self.exit is None else json.dumps(self.exit.record())
        start = kernel.start_time(self.pid) if self.running else 0
        text = f'{{"pid":{self.pid},"start_time":{start},"started_ns":{self.started_ns},"exit":{ended}}}'
        try:
            kernel.replace_small(f"{self._folder}/state.json", text.encode())
        except OSError as error:  # /run is full: the daemon still gets it from us, only a burial would miss it
            self._loop.report(f"cannot write state.json: {error.strerror}")

    def status(self) -> dict[str, Any]:
        """Return the container's part of the status."""
        return {
            "protocol": PROTOCOL, "container_id": self.spec.container_id, "shim_pid": os.getpid(), "pid": self.pid,
            "started_ns": self.started_ns, "exit": self.exit.record() if self.exit is not None else None,
            "paused": self.paused, "tty": self.spec.tty, "open_stdin": self.spec.open_stdin,
            "stdin_open": self.stdin is not None and not self.stdin.closed, "attached": self.attachments.count,
            "size": list(self.size), "labels": self.spec.labels,
        }  # fmt: skip


def _cgroup_path(bundle: str) -> str:
    """Return the cgroup that a bundle asks for: the process may have ended before the kernel could be asked."""
    try:
        return str(json.loads((Path(bundle) / "config.json").read_text())["linux"]["cgroupsPath"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _nothing() -> None:
    """For clients whose leaving changes nothing."""
