"""`moorage logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage_host.cli.output import raw
from moorage_host.client import Client


def logs(
    what: Annotated[str, typer.Option(help="daemon, agent, shim (with --container), console or backend.")] = "daemon",
    container: Annotated[str | None, typer.Option(help="The container whose shim's log is wanted.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines.", min=1)] = 200,
) -> None:
    """Print what Moorage's own processes logged. (A container's output: docker logs.)"""
    raw(Client().logs(what, lines, container))
