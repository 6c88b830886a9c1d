"""`moorage ssh`: a shell, or one command, in the guest."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from moorage_host.client import Client
from moorage_host.errors import ErrorCode, HostError


def ssh(
    command: Annotated[list[str] | None, typer.Argument(help="A command and its arguments; a shell without.")] = None,
) -> None:
    """Open a shell in the guest, or run one command there; ends with its exit status."""
    from moorage_host.link import keys, terminal  # here, because paramiko takes longer to import than most verbs to run
    from moorage_host.link.ssh import Link

    client = Client()
    status = client.status()
    if not status.ssh_port:
        raise HostError(f"the machine is {status.state}", hint="moorage start", code=ErrorCode.UNAVAILABLE)
    pair = keys.ensure(client.paths.client_key, client.paths.host_key)
    link = Link.connect(("127.0.0.1", status.ssh_port), pair, timeout=30)
    try:
        code = terminal.run(link.session(), shlex.join(command) if command else "")
    finally:
        link.close()
    raise typer.Exit(code)
