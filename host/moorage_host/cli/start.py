"""`moorage start`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moorage_host.cli.output import stdout, steps, warn
from moorage_host.client import Client


def start(
    cpus: Annotated[int | None, typer.Option(help="Processors of the machine.", min=1)] = None,
    memory: Annotated[int | None, typer.Option(help="Memory of the machine in MiB.", min=512)] = None,
    disk: Annotated[
        int | None, typer.Option(help="Largest size of the data disk in GiB; it only grows.", min=2)
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, kvm, hvf or tcg.")] = None,
    image: Annotated[str | None, typer.Option(help="Folder of the guest image, or auto.")] = None,
    libvirt_uri: Annotated[
        str | None, typer.Option(help="libvirt connection, also qemu+ssh://user@host/system, or auto.")
    ] = None,
) -> None:
    """Start the machine and wait until the engine answers. Options are kept as settings."""
    changes: dict[str, Any] = {
        "cpus": cpus,
        "memory_mib": memory,
        "disk_gib": disk,
        "accelerator": accelerator,
        "image": str(Path(image).absolute()) if image and image != "auto" else image,
        "libvirt_uri": libvirt_uri,
    }
    with steps("starting") as show:
        status = Client().start(show, **{key: value for key, value in changes.items() if value is not None})
    if status.warning:
        warn(status.warning)
    stdout.print(
        f"The engine is ready: docker --context {status.docker_context or status.name} ps"
        if status.docker_context
        else f"The engine is ready at unix://{status.docker_socket}"
    )
