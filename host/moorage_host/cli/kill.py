"""`moorage kill`."""

from __future__ import annotations

from moorage_host.cli.output import steps
from moorage_host.client import Client


def kill() -> None:
    """Cut the machine's power at once. Containers get no signal; use stop when you can."""
    with steps("cutting the power") as show:
        Client().kill(show)
