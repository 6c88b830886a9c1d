"""The verbs put together, errors turned into exit statuses. Of the modules of the verbs those are imported that are asked for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from moorage_contract.version import API_VERSION, ENGINE_VERSION

from moorage_host.cli.output import failure, stdout
from moorage_host.errors import HostError

#: Verbs in the order of the help, each with what its command is made with. Each is a function of the same name in a module of it.
VERBS: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in ("start", "stop", "restart", "kill", "status", "delete", "logs", "console", "pipes", "settings")
    },
    "gui": {"context_settings": {"ignore_unknown_options": True, "allow_extra_args": True}},
    "ssh": {"context_settings": {"ignore_unknown_options": True, "allow_interspersed_args": False}},
    "docker": {
        "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
        "add_help_option": False,
    },
}

#: Verbs that have verbs: modules with an `app`.
GROUPS = ("config", "engine", "image", "backend")


def application(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the command line: the one verb that `arguments` begin with, or all of them."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Linux containers in a small virtual machine that keep running whatever happens to their daemon.",
    )
    first = arguments[0] if arguments else ""
    alone = first in {*VERBS, *GROUPS} and "_MOORAGE_COMPLETE" not in os.environ
    for name, settings in VERBS.items():
        if not alone or name == first:
            app.command(**settings)(getattr(importlib.import_module(f"moorage_host.cli.{name}"), name))
    for name in GROUPS:
        if not alone or name == first:
            app.add_typer(importlib.import_module(f"moorage_host.cli.{name}").app, name=name)
    app.command()(version)  # a second one, without which there would be no verbs at all
    return app


def version() -> None:
    """Print the versions of this program and of the Engine API."""
    stdout.print(f"moorage {ENGINE_VERSION}, Engine API {API_VERSION}")


def run(arguments: Sequence[str]) -> None:
    """Run the command line; does not return."""
    try:
        application(arguments)()
    except HostError as error:
        sys.exit(failure(error))
    except KeyboardInterrupt:
        sys.exit(130)
