"""`moorage ssh`: a shell, or one command, in the guest."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import sys
import termios
import threading
import tty
from typing import Annotated, Any

import paramiko
import typer

from moorage_host.client import Client
from moorage_host.errors import ErrorCode, HostError
from moorage_host.link import keys
from moorage_host.link.ssh import Link


def ssh(
    command: Annotated[list[str] | None, typer.Argument(help="A command and its arguments; a shell without.")] = None,
) -> None:
    """Open a shell in the guest, or run one command there; ends with its exit status."""
    client = Client()
    status = client.status()
    if not status.ssh_port:
        raise HostError(f"the machine is {status.state}", hint="moorage start", code=ErrorCode.UNAVAILABLE)
    pair = keys.ensure(client.paths.client_key, client.paths.host_key)
    link = Link.connect(("127.0.0.1", status.ssh_port), pair, timeout=30)
    try:
        code = run(link.session(), shlex.join(command) if command else "")
    finally:
        link.close()
    raise typer.Exit(code)


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
def _raw_terminal(channel: paramiko.Channel) -> Any:
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
