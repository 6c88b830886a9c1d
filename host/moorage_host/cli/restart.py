"""`moorage restart`."""

from __future__ import annotations

from moorage_host.cli.output import stdout, steps
from moorage_host.client import Client


def restart() -> None:
    """Stop the machine in order and start it again."""
    with steps("restarting") as show:
        Client().restart(show)
    stdout.print("The engine is ready.")
