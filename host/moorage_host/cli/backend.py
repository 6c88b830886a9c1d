"""`moorage backend`: the background process, for when one must look at it."""

from __future__ import annotations

import typer

from moorage_host.backend_process import running
from moorage_host.cli.output import stdout
from moorage_host.client import Client
from moorage_host.paths import user_paths

app = typer.Typer(no_args_is_help=True, help="The background process of the command line and the window.")


@app.command()
def stop() -> None:
    """End the backend; the machine goes on, the next command starts another."""
    Client(start_backend=False).stop_backend()


@app.command()
def status() -> None:
    """Whether a backend runs, and which."""
    if not running(user_paths()):
        stdout.print("no backend runs")
        raise typer.Exit(3)
    found = Client(start_backend=False).status().backend
    stdout.print(f"backend {found.version}, pid {found.pid}")
