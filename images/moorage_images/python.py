"""Python in the image: the engine put in place, from wheels or source folders, and everything compiled to .pyc.

Debian compiles on installation and nothing is installed here, so the image's own interpreter is run from its unpacked
tree. For a foreign architecture the build machine's architecture is unpacked too and its interpreter of the same minor
version does the work: .pyc files do not depend on the processor. The .pyc files carry a source hash that is not checked at
import, so that neither times nor sources matter at run time.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from moorage_images.errors import ImageError
from moorage_images.recipe import Recipe

COMPILE_TIMEOUT_S = 1800
DIST_PACKAGES = "usr/lib/python3/dist-packages"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def build_machine() -> str:
    """The build machine's architecture in Debian's words."""
    name = platform.machine()
    if name not in _MACHINES:
        raise ImageError(f"images cannot be built on {name}", hint="build on amd64 or arm64")
    return _MACHINES[name]


def install(source: Path, target: Path) -> dict[str, str]:
    """Put a wheel, or a distribution's source folder, below `target`; returns its commands as name → module:function."""
    if source.is_dir():
        return _install_folder(source, target)
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            destination = (target / name).resolve()
            if target.resolve() not in destination.parents:
                raise ImageError(f"{source}: {name} leads out of the target folder")
            if name.endswith("/"):
                continue
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(archive.read(name))
        entries = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        parser = ConfigParser()
        for name in entries:
            parser.read_string(archive.read(name).decode())
    return dict(parser["console_scripts"]) if parser.has_section("console_scripts") else {}


def write_commands(commands: Mapping[str, str], folder: Path) -> None:
    """Write one small script for each command; -I keeps the caller's environment and folder out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in sorted(commands.items()):
        module, _, function = entry.partition(":")
        script = folder / name
        script.write_text(
            f"#!/usr/bin/python3 -I\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        script.chmod(0o755)


def compile_tree(interpreter_root: Path, recipe: Recipe, root: Path, folders: list[str]) -> None:
    """Compile everything below `folders` of `root` with the interpreter unpacked in `interpreter_root`.

    `recipe` is that of the interpreter's root, which must be for the build machine. Blocks for seconds. Raises
    ImageError for a file that is not valid Python.
    """
    command = [*_interpreter(interpreter_root, recipe), "-m", "compileall"]
    command += ["-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    command += [str(root / folder) for folder in folders]
    done = _run(command, interpreter_root)
    if done.returncode != 0:
        raise ImageError(f"compiling the Python files failed: {done.stdout.strip()}\n{done.stderr.strip()}")


def precompile(interpreter_root: Path, recipe: Recipe, layer: Path, site: str, package: str) -> None:
    """Record what importing the daemon takes, in the folder of `package` below `site` of `layer`, whose .pyc files are there.

    `recipe` is that of the interpreter's root, as in `compile_tree`. Blocks for a second. Raises ImageError.
    """
    target = layer / site / package.replace(".", "/") / "precompiled.bin"
    command = [*_interpreter(interpreter_root, recipe), "-m", f"{package}.precompiled"]
    command += [str(target), str(layer), str(interpreter_root)]
    search = os.pathsep.join([str(layer / site), str(interpreter_root / DIST_PACKAGES)])
    done = _run(command, interpreter_root, {"PYTHONPATH": search})
    if done.returncode != 0:
        raise ImageError(f"importing the engine failed: {done.stderr.strip()}")


def _interpreter(root: Path, recipe: Recipe) -> list[str]:
    """Command that runs the interpreter unpacked in `root`, without its site module, without writing .pyc files and without
    the columns of what stands in a line."""
    library_path = ":".join(str(root / f) for f in (f"usr/lib/{recipe.triplet}", "usr/lib"))
    python = next((root / "usr/bin").glob("python3.[0-9]*"), None)
    if python is None:
        raise ImageError(f"no Python interpreter in {root}")
    options = ["-S", "-B", "-X", "no_debug_ranges"]
    return [str(root / recipe.loader), "--library-path", library_path, str(python), *options]


def _run(
    command: list[str], interpreter_root: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PYTHONHOME": str(interpreter_root / "usr"),
        "PYTHONHASHSEED": "0",
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
        **(more or {}),
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)


def project_version(source: Path) -> str:
    """The version in a source folder's pyproject.toml."""
    return str(_project(source)["version"])


def _project(source: Path) -> dict[str, Any]:
    content = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    project: dict[str, Any] = content["project"]
    return project


def _install_folder(source: Path, target: Path) -> dict[str, str]:
    project = _project(source)
    for package in sorted(path.parent for path in source.glob("*/__init__.py")):
        shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    information = target / f"{str(project['name']).replace('-', '_')}-{project['version']}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    return dict(project.get("scripts", {}))
