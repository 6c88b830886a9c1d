"""Settings of the machine: one declaration each, read and written as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder, write_atomically

Accelerator = Literal["auto", "kvm", "hvf", "tcg"]
SavedStartSetting = Literal["auto", "on", "off"]


def _cpus() -> int:
    return max(1, min(4, os.cpu_count() or 1))


class Settings(BaseModel):
    """What the user may choose about the virtual machine. Unknown keys are kept: a newer release may have written them."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)

    name: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$", description="Name of the machine and of its docker context")
    ] = "moorage"
    cpus: Annotated[int, Field(ge=1, le=256, description="Processors of the virtual machine")] = Field(
        default_factory=_cpus
    )
    memory_mib: Annotated[int, Field(ge=512, le=1 << 20, description="Memory of the virtual machine in MiB")] = 2048
    disk_gib: Annotated[
        int, Field(ge=2, le=1 << 16, description="Largest size of the data disk in GiB; it only ever grows")
    ] = 64
    accelerator: Annotated[
        Accelerator, Field(description="auto tries the processor's virtualization and falls back to tcg")
    ] = "auto"
    saved_start: Annotated[
        SavedStartSetting,
        Field(
            description="Start from a state that is saved when the machine has been stopped, instead of booting; auto does with tcg"
        ),
    ] = "auto"
    libvirt_uri: Annotated[
        str, Field(min_length=1, description="libvirt connection, also qemu+ssh://user@host/system, or auto")
    ] = "auto"
    image: Annotated[str, Field(description="Folder of the guest image, or auto")] = "auto"

    @field_validator("image")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value != "auto" and not Path(value).is_absolute():
            raise ValueError("must be an absolute path, or auto")
        return value


def load(path: Path) -> Settings:
    """The settings in `path`, or the defaults when there is no such file. Raises HostError that names every fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(
            f"the settings {path} cannot be read: {error}",
            hint="make it yours and readable, or remove it for the defaults",
            code=ErrorCode.INVALID,
        ) from error
    try:
        return Settings.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise HostError(
            f"the settings {path} are not JSON: {error.msg} in line {error.lineno}",
            hint="mend it, or remove it for the defaults",
            code=ErrorCode.INVALID,
        ) from error
    except ValidationError as error:
        raise HostError(
            f"the settings {path} are not valid: {faults(error)}",
            hint="mend them, or remove the file for the defaults",
            code=ErrorCode.INVALID,
        ) from error


def changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    """`settings` with `changes` applied; an unknown or invalid one raises HostError and nothing is changed."""
    unknown = sorted(changes.keys() - Settings.model_fields.keys())
    if unknown:
        raise HostError(
            f"there is no setting {', '.join(unknown)}",
            hint="known: " + ", ".join(Settings.model_fields),
            code=ErrorCode.INVALID,
        )
    try:
        return Settings.model_validate(settings.model_dump() | changes)
    except ValidationError as error:
        raise HostError(f"these settings are not valid: {faults(error)}", code=ErrorCode.INVALID) from error


def save(settings: Settings, path: Path) -> None:
    """Write the settings so that a reader finds the old ones or the new ones whole."""
    private_folder(path.parent)
    write_atomically(path, json.dumps(settings.model_dump(), indent=2) + "\n")


def faults(error: ValidationError) -> str:
    """Every fault of a document in one sentence, each with the place it is at."""
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'document'}: {fault['msg']}" for fault in error.errors()
    )
