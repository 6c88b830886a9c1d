"""manifest.json: what the folder of a virtual machine's image holds. Written by the image builder, read by the host."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1
NAME = "manifest.json"


class ManifestError(Exception):
    """A folder holds no image that can be used. `hint` says what to try."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"


@dataclass(frozen=True)
class ImageFile:
    """A file of the image: its name in the folder, its digest and its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """An image. `inputs` is the digest of recipe, builder and engine: equal inputs need no new build."""

    arch: str
    engine_version: str
    suite: str
    kernel_release: str
    created: str
    inputs: str
    cmdline: str
    console: str
    kernel: ImageFile
    initrd: ImageFile
    root: ImageFile
    packages: Mapping[str, str]

    def to_json(self) -> str:
        files = {name: vars(getattr(self, name)) for name in ("kernel", "initrd", "root")}
        content = {
            "format": FORMAT,
            "arch": self.arch,
            "engine_version": self.engine_version,
            "suite": self.suite,
            "kernel_release": self.kernel_release,
            "created": self.created,
            "inputs": self.inputs,
            "cmdline": self.cmdline,
            "console": self.console,
            "files": files,
            "packages": dict(sorted(self.packages.items())),
        }
        return json.dumps(content, indent=2) + "\n"


def timestamp(epoch: int) -> str:
    """Seconds since 1970 as RFC 3339 in UTC."""
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def described(path: Path) -> ImageFile:
    """Name, digest and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ImageFile(path.name, digest, path.stat().st_size)


def read(folder: Path) -> Manifest:
    """The manifest of an image folder; raises ManifestError when there is none or it cannot be understood."""
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ManifestError(
                f"{path} has format {content['format']!r}, this release reads {FORMAT}", hint="build the image again"
            )
        files = {name: ImageFile(**content["files"][name]) for name in ("kernel", "initrd", "root")}
        return Manifest(
            arch=str(content["arch"]),
            engine_version=str(content["engine_version"]),
            suite=str(content["suite"]),
            kernel_release=str(content["kernel_release"]),
            created=str(content["created"]),
            inputs=str(content["inputs"]),
            cmdline=str(content["cmdline"]),
            console=str(content["console"]),
            kernel=files["kernel"],
            initrd=files["initrd"],
            root=files["root"],
            packages=content["packages"],
        )
    except FileNotFoundError as error:
        raise ManifestError(f"there is no image in {folder}", hint="moorage image build") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}", hint="moorage image build") from error


def verify(folder: Path) -> list[str]:
    """What is wrong with the files of an image folder, one sentence each; reads every byte."""
    manifest = read(folder)
    faults = []
    for file in (manifest.kernel, manifest.initrd, manifest.root):
        path = folder / file.name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif described(path) != file:
            faults.append(f"{path} is not the file that was built (size or sha256 differs from {NAME})")
    return faults


def write(manifest: Manifest, folder: Path) -> None:
    """Write the manifest as if power fails: it names a complete image or is the previous one."""
    staged = folder / (NAME + ".new")
    with staged.open("w", encoding="utf-8") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    staged.rename(folder / NAME)
