"""`moorage delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage_host.cli.output import steps
from moorage_host.client import Client


def delete(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove the machine with its disk: all images, containers and volumes in it."""
    if not yes:
        typer.confirm("Remove the machine with all images, containers and volumes in it?", abort=True)
    with steps("deleting") as show:
        Client().delete(show)
