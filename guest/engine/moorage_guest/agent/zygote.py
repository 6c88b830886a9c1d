"""The zygote: has imported all of moored, forks it on demand, and keeps the API's listening socket for the agent.

A process of its own, so that the agent stays small and an engine can be replaced without it. It has a single
thread and runs nothing but imports before it forks. When the agent dies, it goes on and waits for the next.

Init may start it with `--ahead` before there is a data disk or an agent: importing is most of what a start takes, and the
rest of the boot goes on meanwhile.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from moorage_guest.agent import precompiled
from moorage_guest.agent.imports import build_models, import_daemon
from moorage_guest.agent.jsonfile import write_json
from moorage_guest.shim import kernel, wire
from moorage_guest.shim.loop import trace
from moorage_guest.shim.runtime import RESET_SIGNALS


def main(argv: Sequence[str] | None = None) -> int:
    """Import the daemon, connect to the agent under argv[0] (the exec root), and serve until it says to end."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    exec_root = Path(arguments[0])
    kernel.set_name("moorage-zygote")
    kernel.set_oom_score(kernel.DAEMON_SCORE)
    if arguments[1:] == ["--ahead"]:
        record = {"zygote_pid": os.getpid(), "zygote_start": kernel.start_time(os.getpid()), "ahead": 1}
        write_json(exec_root / "supervised.json", record)
    gc.disable()  # imports make little garbage, and looking for it takes a fifth of their time
    with precompiled.used():
        import_daemon()
    return Zygote(exec_root).run()


class Zygote:
    """Serves fork requests, one after the other."""

    def __init__(self, exec_root: Path) -> None:
        self._exec_root = exec_root
        self._sock: socket.socket | None = None
        self._keep: int | None = None
        self._jobs: dict[int, int] = {}
        self._unsaid: list[dict[str, Any]] = []
        self._woken, self._waker = socket.socketpair()
        for sock in (self._woken, self._waker):
            sock.setblocking(False)

    def run(self) -> int:
        """Serve until the agent says to end."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        gc.collect()
        kernel.give_back()
        gc.freeze()
        gc.enable()
        while True:
            sock = self._connected()
            ready, _, _ = select.select([sock, self._woken], [], [])
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    while self._woken.recv(256):
                        pass
                self._reap()
            if sock not in ready:
                continue
            try:
                message = wire.receive(sock)
            except BlockingIOError:
                continue
            except (OSError, ValueError):
                message = None
            if message is None:
                sock.close()
                self._sock = None
            elif message.body.get("event") == "end":
                return 0
            else:
                self._act(message)

    def _connected(self) -> socket.socket:
        """Return the connection to the agent, waiting for one to come when there is none."""
        while self._sock is None:
            self._reap()
            try:
                sock = wire.connect(self._exec_root / "supervise.sock")
                sock.setblocking(True)
            except OSError:
                if not self._exec_root.is_dir():
                    raise SystemExit(0) from None  # there will be no agent any more
                time.sleep(0.05)
                continue
            self._sock = sock
            version = importlib.import_module("moorage_contract.version")
            hello = {
                "role": "zygote", "engine_version": version.ENGINE_VERSION, "api_version": version.API_VERSION,
                "listener": self._keep is not None, "jobs": {str(pid): job for pid, job in self._jobs.items()},
            }  # fmt: skip
            self._say({"id": 0, "method": "hello", "params": hello}, [] if self._keep is None else [self._keep])
            unsaid, self._unsaid = self._unsaid, []
            for body in unsaid:
                self._say(body)
        return self._sock

    def _say(self, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            if self._sock is None:
                raise OSError
            wire.send(self._sock, wire.pack(body), fds)
        except OSError:  # the end of the connection is noticed when reading
            self._unsaid.append(body)

    def _act(self, message: wire.Message) -> None:
        fds = message.fds
        try:
            match message.body.get("event"):
                case "keep" if fds:
                    if self._keep is not None:
                        os.close(self._keep)
                    self._keep = fds.pop(0)
                case "get_ready":
                    build_models()
                    gc.collect()
                    gc.freeze()
                case "fork" if fds:
                    job = int(message.body["job"])
                    pid = os.fork()
                    if pid == 0:
                        self._become(message.body, fds[0])
                    self._jobs[pid] = job
                    self._say({"method": "forked", "job": job, "pid": pid})
        finally:
            wire.close_all(fds)

    def _become(self, body: dict[str, Any], log: int) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in RESET_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as in any Python program
                signal.signal(number, signal.SIG_IGN)
            os.setsid()
            null = os.open("/dev/null", os.O_RDONLY)
            for target, source in ((0, null), (1, log), (2, log)):
                os.dup2(source, target)
            os.closerange(3, 1 << 20)
            kernel.set_name("moored")
            sys.argv = ["moored", *body["argv"]]
            status = int(importlib.import_module("moorage_guest.daemon").main(body["argv"]))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            os.write(2, f"moored: {trace(error)}\n".encode())
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._say({"method": "exited", "pid": pid, "job": self._jobs.pop(pid, 0), "code": code})


if __name__ == "__main__":
    sys.exit(main())
