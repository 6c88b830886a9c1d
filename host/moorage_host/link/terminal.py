"""Our standard streams joined to a channel of the guest, as a terminal when they are one."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator

import paramiko


def run(channel: paramiko.Channel, command: str) -> int:
    """Run `command` (a login shell when empty) with our standard streams; its exit status. Blocks."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        size = shutil.get_terminal_size()
        channel.get_pty(os.environ.get("TERM", "xterm"), size.columns, size.lines)
    if command:
        channel.exec_command(command)
    else:
        channel.invoke_shell()
    with _raw_terminal(channel) if terminal else contextlib.nullcontext():
        threading.Thread(target=_feed, args=(channel,), daemon=True).start()
        _drain(channel)
    return channel.recv_exit_status()


def _feed(channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := os.read(0, 65536):
            channel.sendall(data)
        channel.shutdown_write()


def _drain(channel: paramiko.Channel) -> None:
    while True:
        select.select([channel], [], [], 1)
        moved = False
        while channel.recv_ready():
            os.write(1, channel.recv(65536))
            moved = True
        while channel.recv_stderr_ready():
            os.write(2, channel.recv_stderr(65536))
            moved = True
        if not moved and (channel.eof_received or channel.closed):
            return


@contextlib.contextmanager
def _raw_terminal(channel: paramiko.Channel) -> Iterator[None]:
    def resize(_number: int, _frame: object) -> None:
        size = shutil.get_terminal_size()
        channel.resize_pty(size.columns, size.lines)

    before = termios.tcgetattr(0)
    handler = signal.signal(signal.SIGWINCH, resize)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)
