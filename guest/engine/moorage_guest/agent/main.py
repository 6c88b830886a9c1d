"""Command line of the agent: `--private` as moored starts it for itself, `--supervise` as init starts it in the VM."""

import fcntl
import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moorage_guest.agent.logfile import LogFile
from moorage_guest.agent.netd import Netd
from moorage_guest.agent.rehearsal import rehearse
from moorage_guest.agent.service import Service
from moorage_guest.agent.shims import Shims
from moorage_guest.shim import kernel
from moorage_guest.shim.loop import Loop, catch

#: Seconds for which a supervising agent waits for the one before: a child of that which is yet to execute its program may
#: outlive it for a moment, with all it had.
_LOCK_PATIENCE = 2.0

#: Seconds that a private agent stays when it has no shim and nobody is connected.
IDLE = 10.0


class Options(NamedTuple):
    """What the command line says."""

    supervise: bool
    data_root: Path
    exec_root: Path
    config_file: Path | None
    rest: list[str]


_ROOTS = {"--data-root": "/var/lib/moorage", "--exec-root": "/run/moorage", "--config-file": ""}


def read_options(argv: Sequence[str]) -> Options:
    """Return what the command line says; ends the process when it is wrong.

    What is as usual is read here: argparse, which knows the rest and says what is wrong, would stay in memory, 0.6 MB of it.
    """
    mode, values = "", dict(_ROOTS)
    words = iter(argv)
    for word in words:
        value = next(words, "") if word in values else ""
        if value:
            values[word] = value
        elif word in ("--private", "--supervise") and not mode:
            mode = word
        else:
            return _parse(argv)
    if not mode:
        return _parse(argv)
    config_file = Path(values["--config-file"]) if values["--config-file"] else None
    return Options(
        mode == "--supervise", Path(values["--data-root"]), Path(values["--exec-root"]), config_file, rest=[]
    )


def _parse(argv: Sequence[str]) -> Options:
    import argparse

    parser = argparse.ArgumentParser(
        prog="moorage-agent",
        description="Keeps containers' shims, and with --supervise the daemon itself, whatever happens to the daemon.",
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--private", action="store_true", help="serve one moored that is run by hand, and end after it")
    mode.add_argument("--supervise", action="store_true", help="start moored and start it again whenever it ends")
    root = _ROOTS["--data-root"]
    parser.add_argument("--data-root", type=Path, default=Path(root), help="what survives a reboot")
    root = _ROOTS["--exec-root"]
    parser.add_argument("--exec-root", type=Path, default=Path(root), help="sockets and shims")
    parser.add_argument("--config-file", type=Path, help="daemon.json (default: in the data root)")
    found, rest = parser.parse_known_args(argv)
    if rest and not found.supervise:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return Options(found.supervise, found.data_root, found.exec_root, found.config_file, rest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent. Returns its exit status: 0, or 1 when it cannot start."""
    options = read_options(sys.argv[1:] if argv is None else argv)
    exec_root, data_root = options.exec_root, options.data_root
    exec_root.mkdir(mode=0o711, parents=True, exist_ok=True)
    lock = os.open(exec_root / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(lock, _LOCK_PATIENCE if options.supervise else 0):
        if not options.supervise:  # somebody else was faster; the daemon connects to that one
            os.write(1, b"ready\n")
            return 0
        os.write(2, f"moorage-agent: another agent serves {exec_root}; stop it first\n".encode())
        return 1
    if options.supervise:
        from moorage_guest.agent.supervisor import supervise

        return supervise(data_root, exec_root, options.config_file or data_root / "daemon.json", options.rest)
    return _private(exec_root)


def _locked(lock: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _private(exec_root: Path) -> int:
    log = LogFile(exec_root / "agent.log")
    told, tell = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(tell)
        if os.read(told, 1) != b"!":
            return 1
        os.write(1, b"ready\n")
        return 0
    os.close(told)
    os.setsid()
    kernel.set_name("moorage-agent")
    kernel.set_oom_score(kernel.KEEP_ALIVE)
    kernel.become_subreaper()  # for what a dead shim leaves
    for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    loop = Loop(log)
    for number in (signal.SIGTERM, signal.SIGINT):
        catch(number)
    loop.on_signal = lambda _number: loop.stop()
    shims = Shims(loop, exec_root, log)
    service = Service(loop, exec_root, shims, Netd(loop, exec_root, log), log)
    shims.find()

    def look_idle(was_idle: bool) -> None:
        idle = not shims.running and not service.connections
        if idle and was_idle:
            (exec_root / "supervise.sock").unlink(missing_ok=True)
            loop.stop()
        else:
            loop.later(IDLE / 2, lambda: look_idle(idle))

    loop.later(IDLE / 2, lambda: look_idle(False))
    log.redirect_stdio()
    os.write(tell, b"!")
    os.close(tell)
    stage = Loop(log)  # meanwhile the daemon starts, and is heard afterwards: a shim forked before would be a heavy one
    rehearse(stage, exec_root)
    stage.close()
    loop.take_signals()
    loop.reap()
    gc.collect()
    kernel.give_back()
    gc.freeze()
    loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
