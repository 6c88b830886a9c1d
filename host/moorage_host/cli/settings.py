"""`moorage settings`: show or change the machine's settings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from moorage_host.cli.output import raw, stdout
from moorage_host.client import Client
from moorage_host.errors import ErrorCode, HostError


def settings(
    changes: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE, any number.", metavar="[KEY=VALUE]...")
    ] = None,
) -> None:
    """Print the machine's settings, or change some; they hold from its next start on."""
    client = Client()
    if not changes:
        raw(json.dumps(client.settings().model_dump(), indent=2))
        return
    wanted: dict[str, object] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise HostError(f"{change!r} is not KEY=VALUE", code=ErrorCode.INVALID)
        wanted[key.replace("-", "_")] = int(value) if value.isdigit() else value
    client.change_settings(**wanted)
    if client.status().restart_needed:
        stdout.print("Kept; moorage restart puts it in force.")
