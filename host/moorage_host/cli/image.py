"""`moorage image`: build the guest image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from moorage_images import manifest
from moorage_images.errors import ImageError

from moorage_host.cli.output import stdout, steps
from moorage_host.errors import HostError
from moorage_host.machine.accelerator import native_arch
from moorage_host.paths import user_paths

app = typer.Typer(no_args_is_help=True, help="The guest image.")


@app.command()
def build(
    arch: Annotated[str | None, typer.Option(help="amd64 or arm64; this machine's own by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to build into.")] = None,
) -> None:
    """Build kernel, initrd and root file system. Needs no rights; runs no foreign code."""
    from moorage_images import build as builder  # here, because no other verb needs what it imports

    target = user_paths().image if output is None else output.absolute()
    target.mkdir(parents=True, exist_ok=True)
    try:
        with steps("building the image") as show:
            built = builder.build_image(arch or native_arch(), target, progress=show)
    except ImageError as error:
        raise HostError(str(error.args[0]), hint=error.hint) from error
    size = sum(file.size for file in (built.kernel, built.initrd, built.root)) / (1 << 20)
    stdout.print(f"{target}: engine {built.engine_version}, {built.arch}, {size:.1f} MiB")


@app.command()
def verify(folder: Annotated[Path | None, typer.Argument(help="The image's folder.")] = None) -> None:
    """Check every file of an image against its manifest."""
    target = user_paths().image if folder is None else folder.absolute()
    try:
        faults = manifest.verify(target)
    except ImageError as error:
        raise HostError(str(error.args[0]), hint=error.hint) from error
    if faults:
        raise HostError("; ".join(faults), hint="moorage image build")
    stdout.print(f"{target} is whole.")
