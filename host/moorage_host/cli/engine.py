"""`moorage engine`: the daemon in the machine, its versions and its restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage_host.cli.output import stdout, steps
from moorage_host.client import Client

app = typer.Typer(no_args_is_help=True, help="The engine in the machine. Containers keep running through all of this.")


@app.command()
def versions() -> None:
    """List the engine versions in the machine."""
    found = Client().engine_versions()
    for version in dict.fromkeys([found.current, *found.versions]):
        mark = " (running)" if version == found.current else " (before)" if version == found.previous else ""
        stdout.print(f"{version}{mark}")


@app.command()
def upgrade(file: Annotated[Path, typer.Argument(help="The engine file.", exists=True, dir_okay=False)]) -> None:
    """Deliver another engine and switch to it; the old one comes back by itself when the new one does not answer."""
    with steps("upgrading") as show:
        Client().upgrade_engine(file, show)
    stdout.print("The new engine answers.")


@app.command()
def rollback() -> None:
    """Go back to the engine before."""
    with steps("going back"):
        Client().rollback_engine()
    stdout.print("The previous engine answers.")


@app.command()
def restart() -> None:
    """Restart the daemon."""
    with steps("restarting the daemon"):
        Client().daemon("restart")


@app.command()
def reload() -> None:
    """Let the daemon read its configuration again (SIGHUP)."""
    Client().daemon("reload")


@app.command()
def kill() -> None:
    """SIGKILL the daemon, to see that it makes no difference."""
    Client().daemon("kill")


@app.command("stop-containers")
def stop_containers(
    containers: Annotated[list[str] | None, typer.Argument(help="Containers; all of them without.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that each gets.", min=0)] = None,
) -> None:
    """Stop containers without the daemon, also those that it does not manage."""
    for one in Client().stop_containers(containers or [], timeout):
        stdout.print(one)


@app.command()
def trim() -> None:
    """Give free space of the data disk back to the host."""
    freed = int(Client().call("trim").get("bytes", 0))
    stdout.print(f"{freed / (1 << 20):.0f} MiB given back.")
