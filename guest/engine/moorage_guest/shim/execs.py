"""Exec sessions: one process each inside the container, its client, its output and its exit code."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from moorage_guest.shim import kernel
from moorage_guest.shim.clients import STDERR, STDOUT, Client, Input
from moorage_guest.shim.loop import Loop
from moorage_guest.shim.runtime import Runtime, RuntimeFailed
from moorage_guest.shim.streams import Console, Reader

#: Seconds that output may go on after the process has ended, when something it started keeps the pipes open.
_OUTPUT_GRACE = 2.0


class ExecOptions(NamedTuple):
    """What the daemon asked for."""

    exec_id: str
    tty: bool
    open_stdin: bool
    capture: int


class ExecSession:
    """From the start of the process until both it and its output have ended."""

    def __init__(
        self,
        loop: Loop,
        runtime: Runtime,
        options: ExecOptions,
        client: Client | None,
        prefix: bytes,
        on_exit: Callable[["ExecSession"], None],
    ) -> None:
        self._loop = loop
        self._runtime = runtime
        self.options = options
        self._client = client
        self._prefix = prefix
        self._on_exit = on_exit
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

    def start(self, folder: str, container_id: str, done: Callable[[RuntimeFailed | None], None]) -> None:
        """Start the process; its description is exec-ID.json in the shim's folder, removed here."""
        name = self.options.exec_id
        file = f"{folder}/exec-{name}.json"
        pid_file = f"{folder}/exec-{name}.pid"
        arguments = ["exec", "--detach", f"--process={file}", f"--pid-file={pid_file}"]
        console = Console(Path(folder), f"e{name[:12]}") if self.options.tty else None
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        ours: list[int] = []
        theirs = [null]
        if console is not None:
            arguments.append(f"--console-socket={console.path}")
            stdio = (null, null, null)
        else:
            out_read, out_write = os.pipe2(os.O_CLOEXEC)
            err_read, err_write = os.pipe2(os.O_CLOEXEC)
            ours += [out_read, err_read]
            theirs += [out_write, err_write]
            stdin = null
            if self.options.open_stdin and self._client is not None:
                stdin, in_write = os.pipe2(os.O_CLOEXEC)
                theirs.append(stdin)
                self._input = Input(self._loop, in_write)
            stdio = (stdin, out_write, err_write)

        def finished(failure: RuntimeFailed | None) -> None:
            for number in theirs:
                os.close(number)
            master = None
            if console is not None:
                master = console.take()
                console.close()
            kernel.remove(file)
            if failure is None:
                self._begin(int(kernel.read_small(pid_file)), ours, master)
            kernel.remove(pid_file)
            done(failure)  # first: a client whose stream has ended asks the daemon for the exit code
            if failure is not None:
                for number in ours:
                    os.close(number)
                self._abandon()

        self._runtime.start([*arguments, container_id], stdio, finished)

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

    def _begin(self, pid: int, outputs: list[int], master: int | None) -> None:
        self.pid = pid
        self.started_ns = time.time_ns()
        if master is not None:
            self._terminal = master
            if self._size != (0, 0):
                kernel.set_terminal_size(master, *self._size)
            if self.options.open_stdin and self._client is not None:
                self._input = Input(self._loop, os.dup(master))
            self._readers = [Reader(self._loop, master, lambda data: self._output(STDOUT, data), self._end)]
        else:
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
        self._loop.on_child(pid, self._exited)

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
        if self._input is not None:
            self._input.abandon()
        if self._client is not None:
            self._client.release()
