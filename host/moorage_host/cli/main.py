"""`moorage`: the verbs put together, errors turned into exit statuses."""

from __future__ import annotations

import sys

import typer
from moorage_contract.version import API_VERSION, ENGINE_VERSION

from moorage_host.cli import backend, config, engine, image
from moorage_host.cli.console import console
from moorage_host.cli.delete import delete
from moorage_host.cli.docker import docker
from moorage_host.cli.gui import gui
from moorage_host.cli.kill import kill
from moorage_host.cli.logs import logs
from moorage_host.cli.output import failure, stdout
from moorage_host.cli.pipes import pipes
from moorage_host.cli.restart import restart
from moorage_host.cli.settings import settings
from moorage_host.cli.ssh import ssh
from moorage_host.cli.start import start
from moorage_host.cli.status import status
from moorage_host.cli.stop import stop
from moorage_host.errors import HostError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Linux containers in a small virtual machine that keep running whatever happens to their daemon.",
)

for verb in (start, stop, restart, kill, status, delete, logs, console, pipes, settings):
    app.command()(verb)
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(gui)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(ssh)
app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)(docker)
app.add_typer(config.app, name="config")
app.add_typer(engine.app, name="engine")
app.add_typer(image.app, name="image")
app.add_typer(backend.app, name="backend")


@app.command()
def version() -> None:
    """Print the versions of this program and of the Engine API."""
    stdout.print(f"moorage {ENGINE_VERSION}, Engine API {API_VERSION}")


def main() -> None:
    """Run the command line; does not return."""
    try:
        app()
    except HostError as error:
        sys.exit(failure(error))
    except KeyboardInterrupt:
        sys.exit(130)
