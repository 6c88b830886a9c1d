"""`moorage config`: the engine's daemon.json, whether or not the engine is up."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from moorage_contract.daemon_config import ConfigError, read, set_key

from moorage_host.cli.output import raw, stdout, steps
from moorage_host.client import Client, EngineConfigApplied, EngineConfigCheck
from moorage_host.errors import ErrorCode, HostError

app = typer.Typer(no_args_is_help=True, help="The engine's daemon.json.")

File = Annotated[Path, typer.Argument(help="A daemon.json; - is standard input.", allow_dash=True)]


@app.command()
def get(key: Annotated[str | None, typer.Argument(help="One key; the whole file without.")] = None) -> None:
    """Print daemon.json, or one of its values as JSON."""
    content = Client().engine_config().content
    if key is None:
        raw(content)
        return
    value = read(content).root.get(key)
    if value is None:
        raise HostError(f"daemon.json does not set {key}", code=ErrorCode.NOT_FOUND)
    raw(json.dumps(value))


@app.command("set")
def set_value(
    key: Annotated[str, typer.Argument(help="A key of daemon.json.")],
    value: Annotated[str, typer.Argument(help="Its value as JSON; anything else is taken as a string.")],
) -> None:
    """Set one key and apply. The rest of the file keeps its order and form."""
    client = Client()
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    content = client.engine_config().content
    try:
        changed = set_key(content, key, parsed)
    except (ConfigError, ValueError) as error:
        raise HostError(f"daemon.json cannot be changed: {error}", code=ErrorCode.INVALID) from error
    _apply(client, changed)


@app.command()
def edit() -> None:
    """Open daemon.json in $VISUAL or $EDITOR; check it, show the plan, ask, apply."""
    client = Client()
    before = client.engine_config().content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "daemon.json"
        path.write_text(before, encoding="utf-8")
        while True:
            editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
            try:
                subprocess.run([*editor, str(path)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise HostError(f"the editor failed: {error}", hint="set EDITOR") from error
            content = path.read_text(encoding="utf-8")
            if content == before:
                stdout.print("Nothing changed.")
                return
            found = client.check_engine_config(content)
            _show(found)
            if found.ok:
                break
            if not typer.confirm("Edit again?", default=True):
                raise typer.Exit(2)
    if not typer.confirm("Apply?", default=True):
        raise typer.Exit(1)
    _apply(client, content)


@app.command()
def validate(file: File) -> None:
    """Check a daemon.json and print what applying it would change and cost. Applies nothing."""
    found = Client().check_engine_config(_text(file))
    _show(found)
    if not found.ok:
        raise typer.Exit(2)


@app.command()
def apply(file: File) -> None:
    """Put a daemon.json in force: reloaded when that suffices, else the daemon restarts. Never the machine."""
    _apply(Client(), _text(file))


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"{file} cannot be read: {error}", code=ErrorCode.INVALID) from error


def _show(found: EngineConfigCheck) -> None:
    for fault in found.faults:
        place = f"line {fault.line}, column {fault.column}: " if fault.line else ""
        raw(f"{place}{fault.message}")
    for change in found.changes:
        raw(f"{change.key}: {json.dumps(change.old)} -> {json.dumps(change.new)}  ({change.sentence})")
    if found.ok:
        raw(found.sentence)


def _apply(client: Client, content: str) -> None:
    with steps("applying") as show:
        result: EngineConfigApplied = client.apply_engine_config(content, show)
    if not result.ok:
        kept = "the previous daemon.json is in force again" if result.rolled_back else "nothing was changed"
        raise HostError(f"{result.message}; {kept}", code=ErrorCode.INVALID)
    if result.pending:
        stdout.print("Saved; it takes effect when the engine starts.")
    else:
        stdout.print(
            "Applied: reloaded." if result.mode == "reload" else "Applied: the daemon restarted, containers went on."
        )
