"""Exec sessions: one process each inside the container, its client, its output and its exit code."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from moorage_guest.shim import kernel, wire
from moorage_guest.shim.clients import STDERR, STDOUT, Client, Input
from moorage_guest.shim.loop import Loop
from moorage_guest.shim.runtime import OWN_NULL, Runtime, RuntimeFailed
from moorage_guest.shim.streams import Console, Reader

#: Seconds that output may go on after the process has ended, when something it started keeps the pipes open.
_OUTPUT_GRACE = 2.0


class ExecOptions(NamedTuple):
    """What the daemon asked for."""

    exec_id: str
    tty: bool
    open_stdin: bool
    capture: int
    #: The container's root, as of `Container.run`.
    owner: tuple[int, int] = (0, 0)


class Launch:
    """One call of the runtime for a session: the streams it was given, and our ends of them.

    The process is described in exec-ID.json, which is removed here; with `ahead` by `describe`, for which the runtime waits when it
    has been loaded and has looked at the container. `on_end` is called once, when the runtime has ended.
    """

    def __init__(self, runtime: Runtime, folder: str, container_id: str, options: ExecOptions, stdin: bool, ahead: bool) -> None:  # fmt: skip
        name = options.exec_id
        self._file = "" if ahead else f"{folder}/exec-{name}.json"
        self._pid_file = f"{folder}/exec-{name}.pid"
        self._description = -1
        self.on_end: Callable[[RuntimeFailed | None], None] = lambda _failure: self.close()
        self.ended = False
        self.input = -1
        self.outputs: list[int] = []
        self.terminal: int | None = None
        process, inherited = self._file, -1
        if ahead:
            inherited, self._description = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._description, False)
            process = f"/proc/self/fd/{inherited}"
        arguments = ["exec", "--detach", f"--process={process}", f"--pid-file={self._pid_file}"]
        self._console = Console(Path(folder), f"e{name[:12]}") if options.tty else None
        self._theirs: list[int] = []
        if self._console is not None:
            arguments.append(f"--console-socket={self._console.path}")
            stdio = (OWN_NULL, OWN_NULL, OWN_NULL)
        else:
            out_read, out_write = os.pipe2(os.O_CLOEXEC)
            err_read, err_write = os.pipe2(os.O_CLOEXEC)
            self.outputs = [out_read, err_read]
            self._theirs += [out_write, err_write]
            source = OWN_NULL
            if stdin:
                source, self.input = os.pipe2(os.O_CLOEXEC)
                self._theirs.append(source)
            stdio = (source, out_write, err_write)
            kernel.give(self._theirs, options.owner)
        runtime.start([*arguments, container_id], stdio, self._runtime_ended, inherited)
        if ahead:
            os.close(inherited)

    def describe(self, process: bytes) -> bool:
        """Let a runtime that was started ahead go on. False: it takes no description, and executes nothing."""
        if self._description < 0:
            return False
        try:
            return os.write(self._description, process) == len(process)
        except OSError:  # it has ended, or there is too much for a pipe
            return False
        finally:
            self.give_up()

    def give_up(self) -> None:
        """A runtime that still waits for its description finds none, and ends. Idempotent."""
        if self._description >= 0:
            os.close(self._description)
            self._description = -1

    def pid(self) -> int:
        """Return the pid of what was started; once, after a success."""
        pid = int(kernel.read_small(self._pid_file))
        kernel.remove(self._pid_file)
        return pid

    def close(self) -> None:
        """Close our ends; they are nobody's yet."""
        wire.close_all([*self.outputs, *(fd for fd in (self.input, self.terminal) if fd is not None and fd >= 0)])

    def _runtime_ended(self, failure: RuntimeFailed | None) -> None:
        self.ended = True
        self.give_up()
        for number in self._theirs:
            os.close(number)
        if self._console is not None:
            self.terminal = self._console.take()
            self._console.close()
        if self._file:
            kernel.remove(self._file)
        self.on_end(failure)


class ExecSession:
    """From the start of the process until both it and its output have ended."""

    def __init__(
        self, loop: Loop, runtime: Runtime, options: ExecOptions, on_exit: Callable[["ExecSession"], None]
    ) -> None:
        self._loop = loop
        self._runtime = runtime
        self.options = options
        self._on_exit = on_exit
        self._client: Client | None = None
        self._prefix = b""
        self._launch: Launch | None = None
        self.pid = 0
        self.started_ns = 0
        self.exit_code: int | None = None
        self.ended_ns = 0
        self.captured = bytearray()
        self._readers: list[Reader] = []
        self._input: Input | None = None
        self._terminal: int | None = None
        self._size = (0, 0)
        self.on_detach: Callable[[], None] | None = None

    def make_ready(self, folder: str, container_id: str, dropped: Callable[[], None]) -> None:
        """Start the runtime ahead of `start`, which is about to come. `dropped` is called when it has ended before that."""
        launch = Launch(self._runtime, folder, container_id, self.options, self.options.open_stdin, ahead=True)

        def ended(_failure: RuntimeFailed | None) -> None:
            launch.close()
            dropped()

        launch.on_end = ended
        self._launch = launch

    def give_up(self) -> None:
        """The start has not come: end what `make_ready` has begun. Changes nothing after `start`."""
        if self._launch is not None:
            self._launch.give_up()

    def start(
        self, folder: str, container_id: str, client: Client | None, prefix: bytes, process: bytes,
        done: Callable[[RuntimeFailed | None], None],
    ) -> None:  # fmt: skip
        """Start the process for a client. An empty `process` means that its description is in exec-ID.json already."""
        self._client = client
        self._prefix = prefix

        def begin(launch: Launch) -> None:
            def finished(failure: RuntimeFailed | None) -> None:
                if failure is None:
                    self._begin(launch)
                done(failure)  # first: a client whose stream has ended asks the daemon for the exit code
                if failure is not None:
                    launch.close()
                    self._abandon()

            self._launch = launch
            launch.on_end = finished

        def anew() -> None:
            if process:
                kernel.replace_small(f"{folder}/exec-{self.options.exec_id}.json", process)
            stdin = self.options.open_stdin and client is not None
            begin(Launch(self._runtime, folder, container_id, self.options, stdin, ahead=False))

        ahead = self._launch
        if ahead is None or ahead.ended:
            anew()
        elif process and ahead.describe(process):
            begin(ahead)
        else:

            def ended(_failure: RuntimeFailed | None) -> None:
                ahead.close()
                anew()

            ahead.give_up()
            ahead.on_end = ended

    def fail(self, code: int) -> None:
        """Note that nothing was started, and the exit code that stands for it."""
        self.exit_code = code
        self.ended_ns = time.time_ns()

    @property
    def running(self) -> bool:
        return self.pid > 0 and self.exit_code is None

    def status(self) -> dict[str, Any]:
        """Return the session as the protocol has it."""
        return {
            "exec_id": self.options.exec_id, "pid": self.pid, "running": self.running, "exit_code": self.exit_code,
            "started_ns": self.started_ns, "at_ns": self.ended_ns, "tty": self.options.tty,
            "attached": self._client is not None and not self._client.closed,
        }  # fmt: skip

    def resize(self, rows: int, columns: int) -> bool:
        """Set the terminal's size; False when there is no terminal."""
        if not self.options.tty:
            return False
        self._size = (rows, columns)
        if self._terminal is not None:
            kernel.set_terminal_size(self._terminal, rows, columns)
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the process. Raises ProcessLookupError once it has ended."""
        if not self.running:
            raise ProcessLookupError
        os.kill(self.pid, number)  # ours and not reaped yet, so the pid is still its own

    # -- life ---------------------------------------------------------------------------------------------------------

    def _begin(self, launch: Launch) -> None:
        self.pid = launch.pid()
        self.started_ns = time.time_ns()
        self._launch = None
        if launch.input >= 0:
            self._input = Input(self._loop, launch.input)
        if launch.terminal is not None:
            self._terminal = launch.terminal
            if self._size != (0, 0):
                kernel.set_terminal_size(launch.terminal, *self._size)
            if self.options.open_stdin and self._client is not None:
                self._input = Input(self._loop, os.dup(launch.terminal))
            self._readers = [Reader(self._loop, launch.terminal, lambda data: self._output(STDOUT, data), self._end)]
        else:
            outputs = launch.outputs
            self._readers = [
                Reader(self._loop, outputs[0], lambda data: self._output(STDOUT, data), self._end),
                Reader(self._loop, outputs[1], lambda data: self._output(STDERR, data), self._end),
            ]
        if self._client is not None and not self._client.closed:
            self._client.on_room = self._resume
            self._client.on_gone = self._left
            self._client.on_detach = lambda: self.on_detach() if self.on_detach is not None else None
            self._client.on_input_end = self._input_ended
            if self._input is not None:
                self._input.on_room = self._client.retry_input
                self._client.feed_input(self._input, self._prefix)
        else:
            self._left()
        self._loop.on_child(self.pid, self._exited)

    def _output(self, stream: int, data: bytes) -> None:
        room = self.options.capture - len(self.captured)
        if room > 0:
            self.captured += data[:room]
        if self._client is None or self._client.closed:
            return
        self._client.write(stream, data)
        if self._client.slow:
            for reader in self._readers:
                reader.pause()

    def _resume(self) -> None:
        for reader in self._readers:
            reader.resume()

    def _input_ended(self) -> None:
        if self._input is not None and not self.options.tty:
            self._input.close()

    def _left(self) -> None:
        if self._input is not None and not self.options.tty:
            self._input.close()

    def _exited(self, code: int) -> None:
        self.exit_code = code
        self.ended_ns = time.time_ns()
        if self._input is not None:
            self._input.abandon()
        if not self.output_ended:
            self._loop.later(_OUTPUT_GRACE, self._cut)
        self._on_exit(self)
        self._end()

    @property
    def output_ended(self) -> bool:
        return all(reader.ended for reader in self._readers)

    def _end(self) -> None:
        if self.output_ended:
            self._terminal = None
            if self.exit_code is not None and self._client is not None:
                self._client.finish()

    def _cut(self) -> None:
        """Something keeps the output open. A slow client has its time, others have had theirs."""
        if self._client is not None and self._client.slow:
            self._loop.later(_OUTPUT_GRACE, self._cut)
            return
        for reader in self._readers:
            reader.drain()
            reader.close()
        self._end()

    def _abandon(self) -> None:
        self._launch = None
        if self._client is not None:
            self._client.release()
