"""`moorage image`: have the guest image built by its builder, a program of its own; check one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from moorage_contract import image_manifest
from moorage_contract.image_manifest import ManifestError

from moorage_host.cli.output import stdout, steps
from moorage_host.errors import ErrorCode, HostError
from moorage_host.machine.accelerator import native_arch
from moorage_host.machine.domain_xml import MACHINES
from moorage_host.paths import user_paths

BUILDER = "moorage_images"
FAULT = "moorage-image: "  # begins the builder's line that says why it gave up

app = typer.Typer(no_args_is_help=True, help="The guest image.")


@app.command()
def build(
    arch: Annotated[str | None, typer.Option(help="amd64 or arm64; this machine's own by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to build into.")] = None,
) -> None:
    """Build kernel, initrd and root file system. Needs no rights; runs no foreign code."""
    wanted = arch or native_arch()
    if wanted not in MACHINES:
        raise HostError(
            f"there is no image for {wanted}", hint=f"--arch is one of {', '.join(MACHINES)}", code=ErrorCode.INVALID
        )
    if importlib.util.find_spec(BUILDER) is None:
        raise HostError(
            "the image builder is not installed here",
            hint="pip install moorage-images, or copy the folder of an image that was built elsewhere",
            code=ErrorCode.NOT_FOUND,
        )
    target = user_paths().image if output is None else output.absolute()
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"{BUILDER}.build", "build", "--arch", wanted]
    fault: list[str] = []
    with steps("building the image") as show:
        pipe = subprocess.PIPE
        builder = subprocess.Popen([*command, "--output", str(target)], stdout=pipe, stderr=pipe, text=True)
        assert builder.stdout is not None and builder.stderr is not None
        try:
            for line in builder.stderr:
                if fault or line.startswith(FAULT):
                    fault.append(line.removeprefix(FAULT))
                else:
                    show(line.rstrip())
            built = builder.stdout.read()
            status = builder.wait()
        except BaseException:
            builder.terminate()
            builder.wait()
            raise
    if status != 0:
        raise HostError("".join(fault).strip() or f"the image builder ended with {status}")
    stdout.print(built.strip())


@app.command()
def verify(folder: Annotated[Path | None, typer.Argument(help="The image's folder.")] = None) -> None:
    """Check every file of an image against its manifest."""
    target = user_paths().image if folder is None else folder.absolute()
    try:
        faults = image_manifest.verify(target)
    except ManifestError as error:
        raise HostError(error.message, hint=error.hint) from error
    if faults:
        raise HostError("; ".join(faults), hint="moorage image build")
    stdout.print(f"{target} is whole.")
