"""`moorage pipes`: what containers have written and nobody has read yet."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from moorage_host.cli.output import raw, stdout
from moorage_host.client import Client


def pipes(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Show the fill of every container's log pipes; works while the daemon is dead. A full pipe blocks its container."""
    found = Client().pipes()
    if as_json:
        raw(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        return
    table = Table(box=None, header_style="bold")
    for column in ("container", "stream", "waiting", "capacity", "full in", "blocked"):
        table.add_column(column)
    for one in found:
        full = "-" if one.seconds_to_full is None else f"{one.seconds_to_full:.0f} s"
        table.add_row(
            one.name or one.container[:12],
            one.stream,
            str(one.bytes),
            str(one.capacity),
            full,
            "yes" if one.blocked else "no",
        )
    stdout.print(table)
