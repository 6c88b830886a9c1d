"""The agent as the guest's supervisor: puts its parts together, and decides when they start and end."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from moorage_guest.agent import bootlog
from moorage_guest.agent.config import Config
from moorage_guest.agent.containers import Containers
from moorage_guest.agent.daemon import Daemon
from moorage_guest.agent.engines import BUILT_IN, Engines
from moorage_guest.agent.forking import spawn_program
from moorage_guest.agent.host import HostServer
from moorage_guest.agent.logfile import LogFile
from moorage_guest.agent.methods import Methods
from moorage_guest.agent.netd import Netd
from moorage_guest.agent.rehearsal import rehearse
from moorage_guest.agent.service import Service
from moorage_guest.agent.shims import Shims
from moorage_guest.agent.upgrade import Upgrade
from moorage_guest.room import shortages
from moorage_guest.shim import kernel
from moorage_guest.shim.loop import Loop, catch

#: Seconds between two looks at the size of the daemon's log.
_LOG_INTERVAL = 10.0

#: Starts of an engine from the data disk that may fail before the image's own is taken.
_MAX_ATTEMPTS = 3

#: Init's word that the guest is held: the program that will mount the data disk. An engine that knows of no hold lets it be.
_HELD_MOUNT = "MOORAGE_HELD_MOUNT"

#: What ends the machine; busybox's poweroff tells init, which unmounts.
_POWER_OFF = ("/sbin/poweroff", "/usr/sbin/poweroff", "/bin/poweroff")


def supervise(data_root: Path, exec_root: Path, config_file: Path, arguments: Sequence[str]) -> int:
    """Serve until SIGTERM; return the exit status. Replaces itself by the agent of the engine in force.

    In a guest that init holds, the data disk comes only with the release.
    """
    mount = os.environ.pop(_HELD_MOUNT, "")
    if mount:
        from moorage_guest.agent.hold import wait_for_release  # elsewhere it would only take memory

        if not wait_for_release(exec_root, mount):
            return 1
    folder = data_root / "log"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = LogFile(folder / "agent.log")
    engines = Engines(data_root)
    _enter_engine(engines, exec_root, log)
    supervisor = Supervisor(data_root, exec_root, config_file, arguments, engines, log, LogFile(folder / "daemon.log"))
    return supervisor.run(rehearsed=bool(mount))


def _enter_engine(engines: Engines, exec_root: Path, log: LogFile) -> None:
    """Become the agent of the engine in force, unless this is it, or it has failed to come up too often."""
    inside = _inside()
    wanted = engines.current
    if inside == wanted:
        return
    counter = exec_root / "engine.attempts"
    try:
        attempts = int(counter.read_text())
    except (OSError, ValueError):
        attempts = 0
    if wanted != BUILT_IN and attempts >= _MAX_ATTEMPTS:
        log(f"engine {wanted} did not come up {attempts} times: the image's own engine is put in force again")
        engines.switch(BUILT_IN, previous=None)
        counter.unlink(missing_ok=True)
        if inside == BUILT_IN:
            return
    else:
        counter.write_text(str(attempts + 1))
    _execute(engines)


def _inside() -> str:
    """Return the engine that this agent is of."""
    return os.environ.get("MOORAGE_ENGINE", BUILT_IN)


def _execute(engines: Engines) -> NoReturn:
    """Replace this process by the agent of the engine in force. Shims, zygote and moored are found again by it."""
    environment = engines.environment()
    environment["MOORAGE_ENGINE"] = engines.current
    argv = [sys.executable, "-m", "moorage_guest.agent.main", *sys.argv[1:]]
    os.execve(sys.executable, argv, environment)  # descriptors close: to the others this is an agent that died


class Supervisor:
    """All parts of the supervising agent."""

    def __init__(
        self,
        data_root: Path,
        exec_root: Path,
        config_file: Path,
        arguments: Sequence[str],
        engines: Engines,
        log: LogFile,
        output: LogFile,
    ) -> None:
        kernel.set_name("moorage-agent")
        kernel.set_oom_score(kernel.KEEP_ALIVE)
        kernel.become_subreaper()
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        self._exec_root = exec_root
        self._log = log
        self._output = output
        self._engines = engines
        self._ending = False
        self._ended = False
        self._reexec = False
        self._roots = data_root, exec_root
        self._short: list[str] = []
        self._loop = loop = Loop(log)
        for number in (signal.SIGTERM, signal.SIGINT):
            catch(number)
        loop.on_signal = lambda _number: self._end(loop.stop)
        argv = [
            "--data-root", str(data_root), "--exec-root", str(exec_root), "--config-file", str(config_file), *arguments,
        ]  # fmt: skip
        self._shims = Shims(loop, exec_root, log)
        self._daemon = daemon = Daemon(loop, exec_root, argv, engines, log, output)
        self._containers = Containers(loop, exec_root, self._shims, log)
        config = Config(loop, config_file, exec_root, daemon, log)
        upgrade = Upgrade(loop, exec_root, engines, daemon, self._containers.names_of_running, log, _inside())
        self._upgrade = upgrade
        upgrade.on_switched = self._enter_new_engine
        methods = Methods(
            loop, (data_root, exec_root), (daemon, config, self._containers, self._shims, engines, upgrade),
            {"daemon": output, "agent": log}, self._power_off,
        )  # fmt: skip

        def ready() -> None:
            (exec_root / "engine.attempts").unlink(missing_ok=True)
            bootlog.tell("engine ready")
            bootlog.close()
            config.daemon_ready()

        daemon.on_ready = ready
        daemon.on_failed = config.daemon_failed
        service = Service(loop, exec_root, self._shims, Netd(loop, exec_root, log), log)
        service.on_hello = daemon.hello
        service.on_close = daemon.closed
        service.on_message = daemon.message
        service.add("listener", daemon.give_listener)
        service.add("ready", daemon.take_ready)
        service.add("stream_open", daemon.open_stream)
        service.add("stream_take", daemon.streams.take)
        service.add("client_take", daemon.clients.take)
        # Last, so that whoever gets an answer finds the other sockets, too.
        self._host = HostServer(loop, exec_root / "agent.sock", methods.table, methods.status)
        daemon.on_change = self._shims.on_change = self._changed

    def run(self, *, rehearsed: bool) -> int:
        """Serve until told to end, or to become another engine's agent."""
        self._log(f"agent {os.getpid()} begins, engine {self._engines.version_of(self._engines.current)}")
        self._shims.find()
        self._daemon.begin()
        self._upgrade.resume()
        if not rehearsed:
            rehearse(self._loop, self._exec_root)  # meanwhile the zygote imports
        self._loop.later(_LOG_INTERVAL, self._look_at_log)
        self._log.redirect_stdio()
        gc.collect()
        kernel.give_back()
        gc.freeze()
        self._loop.run()
        if self._reexec:
            _execute(self._engines)
        self._log(f"agent {os.getpid()} ends")
        return 0

    def _changed(self) -> None:
        self._host.changed()
        if not self._daemon.zygote_got_ready and self._shims.running:
            self._daemon.containers_run()

    def _end(self, done: Callable[[], None]) -> None:
        """End daemon, zygote and sockets; containers go on."""
        if self._ended:
            done()
        if self._ending:
            return
        self._ending = True

        def closed() -> None:
            self._ended = True
            for name in ("agent.sock", "supervise.sock"):
                (self._exec_root / name).unlink(missing_ok=True)
            done()

        self._daemon.close(closed)

    def _enter_new_engine(self) -> None:
        def leave() -> None:
            if not self._ending:
                self._reexec = True
                self._loop.stop()

        self._loop.later(0.2, leave)  # the answer to the host has left by then

    def _power_off(self, timeout: float, answer: Callable[[], None]) -> None:
        program = next((path for path in _POWER_OFF if os.access(path, os.X_OK)), "")
        self._log(f"powering off, containers get {timeout:.0f} s")
        answer()

        def stopped(_ids: list[str]) -> None:
            os.sync()
            if program:
                output = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
                self._loop.on_child(spawn_program([program], dict(os.environ), output), lambda _: None)
                os.close(output)
            else:
                self._log(f"no program to power off with: looked for {', '.join(_POWER_OFF)}")

        self._end(lambda: self._containers.stop([], timeout, stopped))

    def _look_at_log(self) -> None:
        self._output.cut()
        short = shortages(*self._roots)
        if short != self._short:
            self._log(f"room: {'; '.join(short) or 'there is enough again'}")
            self._short = short
            self._changed()
        self._loop.later(_LOG_INTERVAL, self._look_at_log)
