"""moored under supervision: started by a fork of the zygote, watched, and started again whenever it ends.

Owns docker.sock's listening socket, so that its inode never changes. What daemon.json says is no business of this module.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from moorage_guest.agent.clients import HeldClients
from moorage_guest.agent.engines import BUILT_IN, Engines
from moorage_guest.agent.forking import spawn_program
from moorage_guest.agent.jsonfile import write_json
from moorage_guest.agent.logfile import LogFile
from moorage_guest.agent.service import peer_pid
from moorage_guest.agent.streams import Streams
from moorage_guest.shim import kernel, wire
from moorage_guest.shim.connection import Connection, Request
from moorage_guest.shim.loop import READ, Loop

#: A daemon that ends before it is ready this many times in a row counts as failed (and is tried on, ever more seldom).
FAILED_AFTER = 3

#: Longest pause before the next try, in seconds.
LONGEST_PAUSE = 30.0

#: Seconds that processes of the agent before us get to connect again.
_RECONNECT = 10.0

#: Seconds that a zygote which init started ahead of the agent gets: it may still have everything to import.
_IMPORTS = 120.0

#: Seconds after which the zygote gets ready for containers: they start meanwhile.
_GET_READY = 3.0

#: How the daemon's log line about a reload that failed begins.
RELOAD_FAILED = "Failed to reload the configuration"

#: Seconds between SIGTERM and SIGKILL for the daemon.
STOP_GRACE = 45.0


class State(StrEnum):
    """Where the daemon stands, as `status` reports it."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"


class Daemon:
    """One moored at a time. `on_change` is called on every change of `state` or `pid`."""

    def __init__(
        self, loop: Loop, exec_root: Path, argv: list[str], engines: Engines, log: Callable[[str], None], output: LogFile
    ) -> None:  # fmt: skip
        self._loop = loop
        self._exec_root = exec_root
        self.argv = argv
        self._engines = engines
        self._log = log
        self._output = output
        self.streams = Streams(loop, self._tell)
        self.clients = HeldClients(loop)
        self.on_change: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failed: Callable[[], None] = lambda: None
        self.state = State.STOPPED
        self.pid = 0
        self.since = time.time()
        self.restarts = 0
        self.last_exit: int | None = None
        self.last_error = ""
        self.engine_version = ""
        self.api_version = ""
        self._wanted = True
        self._failures = 0
        self._log_offset = 0
        self._listener: socket.socket | None = None
        self._connection: Connection | None = None
        self._zygote: Connection | None = None
        self._zygote_pid = 0
        self.zygote_got_ready = False
        self._job = int(time.time() * 1000)
        self._jobs: dict[int, Callable[[int], None]] = {}
        self._job_of: dict[int, int] = {}
        self._starting_job = 0
        self._watched: dict[int, int] = {}
        self._zygote_waiters: list[Callable[[bool], None]] = []
        self._waiters: list[Callable[[bool], None]] = []
        self._enders: list[Callable[[], None]] = []

    # -- what others ask ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Find what an agent before us left, or start everything."""
        record = self._read_record()
        zygote = _alive(record.get("zygote_pid", 0), record.get("zygote_start", 0))
        ahead = bool(zygote and record.get("ahead"))
        if ahead and self._engines.current != BUILT_IN:  # it imports the image's engine, which is not the one in force
            _kill(zygote)
            zygote, ahead = 0, False
        moored = _alive(record.get("moored_pid", 0), record.get("moored_start", 0))
        self.restarts = record.get("restarts", 0)
        if moored:
            self.pid = moored
            self._watch(moored, lambda: self._ended(moored, None))
            self._set(State.STARTING)
        if zygote:
            self._zygote_pid = zygote
            self._watch(zygote, lambda: self._zygote_ended(zygote))
        if ahead:
            self._set(State.STARTING)
            self._loop.later(_IMPORTS, lambda: self._nobody_came() if self._zygote_pid == zygote else None)
        elif zygote or moored:
            self._log(f"found zygote {zygote or '-'} and moored {moored or '-'} of the agent before")
            self._loop.later(_RECONNECT, self._nobody_came)
        else:
            self._nobody_came()

    def wait_ready(self, done: Callable[[bool], None]) -> None:
        """Call `done(True)` once the daemon is ready, `done(False)` when it ends before."""
        if self.state is State.RUNNING:
            done(True)
        else:
            self._waiters.append(done)

    def restart(self, done: Callable[[bool], None]) -> None:
        """End the daemon and start it again; `done` tells whether the new one became ready at its first try."""

        def ended() -> None:
            self._failures = 0
            self._wanted = True
            self._waiters.append(done)
            self._start()

        self.stop(ended)

    def stop(self, done: Callable[[], None]) -> None:
        """End the daemon (SIGTERM, later SIGKILL) and leave it ended; `done` is called when it is."""
        self._wanted = False
        if not self.pid and not self._starting_job:
            self._set(State.STOPPED)
            done()
            if not self._wanted:
                self.clients.close_all()
            return
        self._enders.append(done)
        pid = self.pid
        self.signal(signal.SIGTERM)

        def insist() -> None:
            if self.pid == pid:
                self.signal(signal.SIGKILL)

        self._loop.later(STOP_GRACE, insist)

    def signal(self, number: int) -> bool:
        """Send the daemon a signal; False when there is none."""
        if not self.pid:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def reload(self) -> None:
        """Have the daemon read daemon.json again, now or as soon as it is up."""
        self.signal(signal.SIGHUP)

    def log_size(self) -> int:
        """Return how long the daemon's log is now."""
        try:
            return self._output.path.stat().st_size
        except OSError:
            return 0

    def complaint_since(self, offset: int) -> str:
        """Return what the daemon has logged about a reload that failed since then, "" when nothing."""
        try:
            with self._output.path.open("rb") as stream:
                stream.seek(offset)
                text = stream.read(256 * 1024).decode(errors="replace")
        except OSError:
            return ""
        for line in text.splitlines():
            if RELOAD_FAILED in line:
                return line.partition(RELOAD_FAILED)[2].strip(" :").removesuffix('"').rpartition('" module=')[0] or line
        return ""

    def run_once(self, argv: list[str], output: int, done: Callable[[int], None]) -> None:
        """Run moored with other arguments for its exit status, such as --validate. Needs no daemon and no zygote."""
        if self._zygote is not None:
            self._fork(argv, output, done)
            return
        pid = spawn_program([sys.executable, "-m", "moorage_guest.daemon", *argv], self._engines.environment(), output)
        self._loop.on_child(pid, done)

    def replace_zygote(self, done: Callable[[bool], None]) -> None:
        """Start a zygote of the engine now in force, and tell whether it came up. The daemon goes on until restarted."""
        self._zygote_waiters.append(done)
        if self._zygote is not None:
            zygote, self._zygote = self._zygote, None
            self._zygote_pid = 0
            zygote.send({"event": "end"})
        self._start_zygote()

    def close(self, done: Callable[[], None]) -> None:
        """End daemon and zygote; lasting streams end with them, containers go on."""

        def ended() -> None:
            if self._zygote_pid:  # also one that still imports, and has not connected
                _kill(self._zygote_pid)
                self._zygote_pid = 0
            (self._exec_root / "docker.sock").unlink(missing_ok=True)
            (self._exec_root / "supervised.json").unlink(missing_ok=True)
            done()

        self.stop(ended)

    # -- connections --------------------------------------------------------------------------------------------------

    def hello(self, connection: Connection, request: Request) -> None:
        """A daemon or a zygote introduces itself."""
        if request.params.get("role") == "zygote":
            self._zygote_hello(connection, request)
        elif request.params.get("role") == "moored":
            self._moored_hello(connection, request)
        else:  # somebody who only wants shims
            request.answer({"supervised": False, "pid": os.getpid(), "streams": []})

    def closed(self, connection: Connection) -> None:
        """A connection has ended; whether its process has is noticed separately."""
        if connection is self._connection:
            self._connection = None
        elif connection is self._zygote:
            self._zygote = None

    def message(self, connection: Connection, message: wire.Message) -> bool:
        """Take what is no request: pieces of streams, and the zygote's news."""
        body = message.body
        match body.get("method"):
            case "forked":
                self._forked(int(body["job"]), int(body["pid"]))
            case "exited":
                self._exited(int(body["pid"]), int(body["job"]), int(body["code"]))
            case _:
                return self.clients.message(message) or self.streams.message(connection, message)
        return True

    def give_listener(self, request: Request) -> None:
        """Hand docker.sock to the daemon (`listener`)."""
        request.answer({}, fds=[self._listening().fileno()])

    def open_stream(self, request: Request) -> None:
        """Write a client's answer from now on (`stream_open`), and hold its connection for nothing else."""
        self.streams.open(request)
        if (held := request.params.get("held")) is not None:
            self.clients.let_go(int(held))

    def take_ready(self, request: Request) -> None:
        """The daemon says that it serves (`ready`)."""
        request.answer({})
        self._became_ready()

    def _moored_hello(self, connection: Connection, request: Request) -> None:
        if self._connection is not None and self._connection is not connection:
            self._connection.drain()
        self._connection = connection
        pid = peer_pid(connection.sock)
        if pid != self.pid:
            self.pid = pid
            self._watch(pid, lambda: self._ended(pid, None))
        if request.params.get("listener"):
            self._adopt_listener(request)
        request.answer(
            {"supervised": True, "pid": os.getpid(), "streams": self.streams.keys, "clients": self.clients.keys}
        )
        self._save()
        if request.params.get("ready"):
            self._became_ready()

    def _zygote_hello(self, connection: Connection, request: Request) -> None:
        pid = peer_pid(connection.sock)
        if self._zygote_pid and pid != self._zygote_pid:
            connection.send({"event": "end"})
            return
        self._zygote = connection
        self._zygote_pid = pid
        self.zygote_got_ready = False
        self.engine_version = str(request.params["engine_version"])
        self.api_version = str(request.params["api_version"])
        if request.params.get("listener"):
            self._adopt_listener(request)
        request.answer({})
        connection.send({"event": "keep"}, fds=[self._listening().fileno()])
        self._save()
        if self._wanted and not self.pid and not self._starting_job:
            self._start()
        self._answer_zygote_waiters(True)
        self.on_change()

    def containers_run(self) -> None:
        """Have the zygote build, soon and once, what the next daemon needs to take containers back. Idempotent."""
        zygote = self._zygote
        if zygote is not None and not self.zygote_got_ready:
            self.zygote_got_ready = True
            self._loop.later(_GET_READY, lambda: zygote.send({"event": "get_ready"}))

    def _answer_zygote_waiters(self, up: bool) -> None:
        waiters, self._zygote_waiters = self._zygote_waiters, []
        for done in waiters:
            done(up)

    def _tell(self, event: dict[str, object]) -> None:
        if self._connection is not None:
            self._connection.send(event)

    # -- docker.sock --------------------------------------------------------------------------------------------------

    def _adopt_listener(self, request: Request) -> None:
        sock = socket.socket(fileno=request.take_fd())
        if self._listener is None:
            self._listener = sock
        else:
            sock.close()

    def _listening(self) -> socket.socket:
        if self._listener is None:
            self._listener = wire.listen(self._exec_root / "docker.sock", socket.SOCK_STREAM, 4096)
        return self._listener

    # -- zygote -------------------------------------------------------------------------------------------------------

    def _nobody_came(self) -> None:
        if self._zygote is None:
            if self._zygote_pid:
                self._log(f"zygote {self._zygote_pid} did not connect: ending it")
                _kill(self._zygote_pid)
            self._start_zygote()
        if self.pid and self._connection is None and self._read_record().get("moored_pid") == self.pid:
            self._log(f"moored {self.pid} did not connect: ending it")
            _kill(self.pid)

    def _start_zygote(self) -> None:
        output = self._open_output()
        self._mark_log()
        self._listening()
        try:
            argv = [sys.executable, "-m", "moorage_guest.agent.zygote", str(self._exec_root)]
            pid = spawn_program(argv, self._engines.environment(), output)
        finally:
            os.close(output)
        self._zygote_pid = pid
        if not self.pid:
            self._set(State.STARTING)
        self._save()
        self._loop.on_child(pid, lambda _code: self._zygote_ended(pid))

    def _zygote_ended(self, pid: int) -> None:
        if pid != self._zygote_pid:
            return
        had_connected = self._zygote is not None
        if self._zygote is not None:
            self._zygote.drain()
        self._zygote = None
        self._zygote_pid = 0
        self._log(f"zygote {pid} ended")
        jobs, self._jobs = self._jobs, {}
        starting, self._starting_job = self._starting_job, 0
        for job, done in jobs.items():
            if job != starting:
                done(1)
        if had_connected:
            self._start_zygote()
        else:
            self._failed_start()
            self._answer_zygote_waiters(False)
            self._loop.later(self._pause(), lambda: self._start_zygote() if not self._zygote_pid else None)

    def _fork(self, argv: list[str], output: int, done: Callable[[int], None]) -> int:
        assert self._zygote is not None
        self._job += 1
        self._jobs[self._job] = done
        self._zygote.send({"event": "fork", "job": self._job, "argv": argv}, fds=[output])
        return self._job

    def _forked(self, job: int, pid: int) -> None:
        self._job_of[pid] = job
        if job == self._starting_job:
            self._starting_job = 0
            self.pid = pid
            self._watch(pid, lambda: self._ended(pid, None))
            self._save()
            if not self._wanted:
                self.signal(signal.SIGTERM)
            self.on_change()

    def _exited(self, pid: int, job: int, code: int) -> None:
        self._job_of.pop(pid, None)
        done = self._jobs.pop(job, None)
        if done is not None:
            done(code)
        elif pid == self.pid:
            self._ended(pid, code)

    # -- moored -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._wanted or self.pid or self._starting_job:
            return
        if self.state is not State.FAILED:
            self._set(State.STARTING)
        if self._zygote is None:
            if not self._zygote_pid:
                self._start_zygote()
            return
        self._mark_log()
        output = self._open_output()
        try:
            self._starting_job = self._fork(self.argv, output, lambda code: self._ended(self.pid, code))
        finally:
            os.close(output)

    def _became_ready(self) -> None:
        if self.state is State.RUNNING:
            return
        self._failures = 0
        self._set(State.RUNNING)
        waiters, self._waiters = self._waiters, []
        for done in waiters:
            done(True)
        self.on_ready()

    def _ended(self, pid: int, code: int | None) -> None:
        if pid != self.pid or not pid:
            return
        if code is None and self._zygote is not None and pid in self._job_of:
            # The zygote is about to say how it ended.
            self._loop.later(0.25, lambda: self._ended_unknown(pid))
            return
        self._gone(code)

    def _ended_unknown(self, pid: int) -> None:
        if pid == self.pid:
            self._gone(None)

    def _gone(self, code: int | None) -> None:
        was_ready = self.state is State.RUNNING
        self._unwatch(self.pid)
        if self._connection is not None:
            self._connection.drain()
        self.pid = 0
        self.last_exit = code
        self.last_error = self._error_text()
        if not self._wanted:
            self._set(State.STOPPED)
        else:
            self._log(f"moored ended with status {code}; last words: {self.last_error or '-'}")
            self.restarts += 1
            if was_ready:
                self._set(State.STARTING)
            else:
                self._failed_start()
        self._save()
        enders, self._enders = self._enders, []
        for done in enders:
            done()
        if not self._wanted:  # it was not ended to be started again
            self.clients.close_all()
        if self._wanted and not self.pid:
            if was_ready:
                self._start()
            else:
                self._loop.later(self._pause(), self._start)

    def _failed_start(self) -> None:
        self._failures += 1
        self.last_error = self._error_text() or self.last_error
        if self._failures >= FAILED_AFTER:
            self._set(State.FAILED)
        waiters, self._waiters = self._waiters, []
        for done in waiters:
            done(False)
        self.on_failed()

    @property
    def failures(self) -> int:
        """How often in a row it ended before it was ready."""
        return self._failures

    def forgive(self) -> None:
        """Something was changed that lets the next start succeed: try it at once."""
        self._failures = 0
        self._loop.later(0, self._start)

    def _pause(self) -> float:
        return float(min(LONGEST_PAUSE, 0.1 * 2.0 ** min(self._failures, 12))) if self._failures > 1 else 0.0

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self.since = time.time()
        self.on_change()

    def _watch(self, pid: int, ended: Callable[[], None]) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            self._loop.later(0, ended)
            return
        self._watched[pid] = descriptor

        def ready(_mask: int) -> None:
            self._unwatch(pid)
            ended()

        self._loop.watch(descriptor, READ, ready)

    def _unwatch(self, pid: int) -> None:
        descriptor = self._watched.pop(pid, None)
        if descriptor is not None:
            self._loop.unwatch(descriptor)
            os.close(descriptor)

    # -- log and record -----------------------------------------------------------------------------------------------

    def _open_output(self) -> int:
        """Open the daemon's log; a disk that is full must not keep the daemon from starting."""
        try:
            self._output.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._output.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._log(f"the daemon's log cannot be opened: {error.strerror}")
            return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def _mark_log(self) -> None:
        try:
            self._log_offset = self._output.path.stat().st_size
        except OSError:
            self._log_offset = 0

    def _error_text(self) -> str:
        """Return the daemon's own last words, at most a few lines."""
        try:
            with self._output.path.open("rb") as stream:
                stream.seek(self._log_offset)
                lines = stream.read(64 * 1024).decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-3:])

    def _read_record(self) -> dict[str, int]:
        try:
            record = json.loads((self._exec_root / "supervised.json").read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _save(self) -> None:
        record = {
            "zygote_pid": self._zygote_pid, "zygote_start": kernel.start_time(self._zygote_pid),
            "moored_pid": self.pid, "moored_start": kernel.start_time(self.pid) if self.pid else 0,
            "restarts": self.restarts,
        }  # fmt: skip
        try:
            write_json(self._exec_root / "supervised.json", record)
        except OSError as error:  # only an agent after us would miss it
            self._log(f"cannot write {self._exec_root / 'supervised.json'}: {error.strerror}")


def _alive(pid: int, start: int) -> int:
    """Return the pid if it still is the process that was recorded, else 0."""
    if pid and start and kernel.start_time(pid) == start and kernel.state(pid) not in ("Z", "X", ""):
        return pid
    return 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile
