"""`moorage stop`."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage_host.cli.output import steps
from moorage_host.client import Client


def stop(
    timeout: Annotated[float | None, typer.Option(help="Seconds that containers get to stop.", min=0)] = None,
) -> None:
    """Stop the containers, each by its stop signal, then the machine."""
    with steps("stopping") as show:
        Client().stop(show, timeout)
