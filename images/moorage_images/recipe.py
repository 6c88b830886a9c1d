"""Image recipes: the TOML files below recipes/, read and checked as a whole.

Building is left to the modules named for each part.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage_images.errors import ImageError

RECIPES = Path(__file__).parent / "recipes"
FORMAT = 1
ARCHITECTURES = ("amd64", "arm64")
MOMENTS = ("initrd", "disk", "host", "network", "late", "extra")

_GUEST_KEYS = {"format", "suite", "packages", "files", "kernel", "busybox"}
_ARCH_KEYS = {
    "cmdline",
    "compress_kernel",
    "console",
    "elf_machine",
    "emulator",
    "format",
    "kernel_package",
    "loader",
    "machine",
    "modules",
    "triplet",
}


@dataclass(frozen=True)
class Modules:
    """Kernel modules by the moment they are loaded; `extra` only on demand."""

    initrd: tuple[str, ...]
    disk: tuple[str, ...]
    host: tuple[str, ...]
    network: tuple[str, ...]
    late: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def wanted(self) -> tuple[str, ...]:
        return self.initrd + self.disk + self.host + self.network + self.late + self.extra


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an image for one architecture holds, apart from the engine."""

    arch: str
    suite: str
    include: tuple[str, ...]
    drop_packages: frozenset[str]
    drop_files: tuple[str, ...]
    keep_files: tuple[str, ...]
    emulator: str
    modules: Modules
    applets: tuple[str, ...]
    cmdline: tuple[str, ...]
    console: str
    compress_kernel: bool
    triplet: str
    loader: str
    machine: str
    elf_machine: int
    root_files: Path
    initrd_files: Path

    def dropped(self, path: str) -> bool:
        """Whether the file at this path (relative to the root) stays out of the image."""
        return _matches(self.drop_files, path) and not _matches(self.keep_files, path)

    @property
    def packages_key(self) -> str:
        """Digest of what decides which packages are fetched."""
        return _digest([self.suite, self.arch, *self.include])


def load(arch: str, folder: Path = RECIPES) -> Recipe:
    """Read the recipe for `arch`; raises ImageError that names every fault found in the files."""
    if arch not in ARCHITECTURES:
        raise ImageError(f"no recipe for the architecture {arch!r}", hint="one of " + ", ".join(ARCHITECTURES))
    guest = _read(folder / "guest.toml", _GUEST_KEYS)
    machine = _read(folder / f"{arch}.toml", _ARCH_KEYS)
    try:
        modules = {name: tuple(_strings(guest["kernel"], name)) for name in MOMENTS}
        for name in machine["modules"]:
            modules[name] += tuple(_strings(machine["modules"], name))
        console = str(machine["console"])
        emulator = str(machine["emulator"])
        return Recipe(
            arch=arch,
            suite=str(guest["suite"]),
            include=(str(machine["kernel_package"]), *_strings(guest["packages"], "include")),
            drop_packages=frozenset(_strings(guest["packages"], "drop")),
            drop_files=tuple(_strings(guest["files"], "drop")),
            keep_files=(*_strings(guest["files"], "keep"), f"usr/bin/{emulator}"),
            emulator=f"usr/bin/{emulator}",
            modules=Modules(**modules),
            applets=tuple(_strings(guest["busybox"], "applets")),
            cmdline=(*_strings(guest["kernel"], "cmdline"), *_strings(machine, "cmdline"), f"console={console}"),
            console=console,
            compress_kernel=bool(machine["compress_kernel"]),
            triplet=str(machine["triplet"]),
            loader=str(machine["loader"]),
            machine=str(machine["machine"]),
            elf_machine=int(machine["elf_machine"]),
            root_files=folder / "root",
            initrd_files=folder / "initrd",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"the recipe in {folder} for {arch} is incomplete: {error}") from error


def folder_digest(folders: Iterable[Path]) -> str:
    """Digest of every file below the folders: paths, modes and content."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.parent.name.endswith(".egg-info"):
                mode = path.stat().st_mode & 0o111
                digest.update(f"{path.relative_to(folder)}\0{bool(mode)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ImageError(f"cannot read the recipe {path}: {error}") from error
    faults = [f"unknown key {key!r}" for key in sorted(content.keys() - known)]
    if content.get("format") != FORMAT:
        faults.append(f"format is {content.get('format')!r}, this builder reads {FORMAT}")
    if faults:
        raise ImageError(f"the recipe {path} is not valid: {'; '.join(faults)}")
    return content


def _strings(table: object, key: str) -> list[str]:
    if not isinstance(table, Mapping) or key not in table:
        raise KeyError(f"{key} is missing")
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{key} is not a list of strings")
    repeated = sorted({item for item in value if value.count(item) > 1})
    if repeated:
        raise ValueError(f"{key} names twice: {', '.join(repeated)}")
    return list(value)


def _matches(patterns: tuple[str, ...], path: str) -> bool:
    return _compiled(patterns).match(path) is not None


@functools.cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")


def _digest(words: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
