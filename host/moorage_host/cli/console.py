"""`moorage console`."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from moorage_host.cli.output import raw
from moorage_host.errors import ErrorCode, HostError
from moorage_host.machine.console import tail
from moorage_host.paths import user_paths


def console(
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines.", min=1)] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
) -> None:
    """Print the machine's serial console, also of a machine that does not start."""
    path = user_paths().console_log
    if not path.exists():
        raise HostError(
            "there is no console log: the machine has not been started yet",
            hint="moorage start",
            code=ErrorCode.NOT_FOUND,
        )
    raw(tail(path, lines))
    position = path.stat().st_size
    while follow:
        time.sleep(0.2)
        size = path.stat().st_size if path.exists() else 0
        position = 0 if size < position else position
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                data = file.read()
            position += len(data)
            sys.stdout.write(data.decode("utf-8", "replace").replace("\r", ""))
            sys.stdout.flush()
