"""`moorage gui`: the tray icon and the settings window."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import typer

from moorage_host.errors import ErrorCode, HostError


def gui(context: typer.Context) -> None:
    """Open the window and the tray icon; arguments are those of moorage-gui."""
    beside = Path(sys.executable).with_name("moorage-gui")
    program = str(beside) if beside.exists() else shutil.which("moorage-gui")
    if program is None:
        raise HostError("the graphical part is not installed", hint="pip install moorage-gui", code=ErrorCode.NOT_FOUND)
    os.execv(program, [program, *context.args])
