"""`moorage status`."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer
from moorage_contract.agent import DaemonState
from rich.table import Table

from moorage_host.cli.output import raw, stdout, warn
from moorage_host.client import Client, MachineStatus


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on printing on every change.")] = False,
) -> None:
    """Show the machine, the engine and the published ports. Exit status 0 when the engine answers, 3 when it does not."""
    client = Client()
    if watch:
        for one in client.watch():
            show(one, as_json)
        return
    found = client.status()
    show(found, as_json)
    if found.state != "ready":
        raise typer.Exit(3)


def show(found: MachineStatus, as_json: bool) -> None:
    """Print one status."""
    if as_json:
        raw(found.model_dump_json(indent=2))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows(found):
        table.add_row(f"[bold]{name}[/bold]", value)
    stdout.print(table)
    for sentence in (found.warning, found.config_problem, *(found.engine.warnings if found.engine else ())):
        if sentence:
            warn(sentence)


def rows(found: MachineStatus) -> list[tuple[str, str]]:
    """What the table shows, top to bottom."""
    since = datetime.datetime.fromtimestamp(found.since).strftime("%Y-%m-%d %H:%M:%S")
    lines = [("machine", f"{found.name}: {found.state} since {since}")]
    if found.step:
        lines.append(("now", found.step))
    if found.message:
        lines.append(("message", found.message))
    if found.accelerator:
        note = f" ({found.accelerator_note})" if found.accelerator_note else ""
        lines.append(("accelerator", found.accelerator + note))
    lines.append(("resources", f"{found.cpus} CPUs, {found.memory_mib} MiB memory, {found.disk_gib} GiB disk"))
    if found.restart_needed:
        lines.append(("settings", "changed; they hold after moorage restart"))
    if found.engine is not None:
        daemon = found.engine.daemon
        lines.append(
            (
                "engine",
                f"{found.engine.engine_version}: {daemon.state.value}, pid {daemon.pid}, restarted {daemon.restarts} times",
            )
        )
        if daemon.last_error and daemon.state is not DaemonState.RUNNING:
            lines.append(("engine said", daemon.last_error))
    if found.config_pending:
        lines.append(("daemon.json", "changed; applied when the engine starts"))
    lines.append(
        (
            "docker",
            f"unix://{found.docker_socket}" + (f" (context {found.docker_context})" if found.docker_context else ""),
        )
    )
    for port in found.ports:
        text = f"{port.address}:{port.port}/{port.protocol} -> {port.container}:{port.container_port}"
        lines.append(("port", text + (f"  [{port.error}]" if port.error else "")))
    return lines
