"""Debian packages: fetched by mmdebstrap's extract variant, kept as .deb files, unpacked file by file.

Nothing of a package is ever run, no rights are needed, and any architecture can be unpacked on any other. Which files
go into an image is the recipe's decision.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moorage_images.errors import ImageError
from moorage_images.recipe import Recipe

FETCH_TIMEOUT_S = 3600
_MERGED = ("bin", "sbin", "lib", "lib64")


@dataclass(frozen=True)
class Package:
    """A fetched package."""

    name: str
    version: str
    path: Path


def fetch(recipe: Recipe, target: Path) -> list[Package]:
    """Fetch the recipe's packages with all they depend on into `target`, which appears whole or not at all.

    Blocks for minutes on a slow network. Uses the distribution's own default source, so the machine needs nothing but
    mmdebstrap and Debian's keys. Raises ImageError with the tool's last words.
    """
    if shutil.which("mmdebstrap") is None:
        raise ImageError("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    root = target.with_name(target.name + ".root")
    staged = target.with_name(target.name + ".new")
    for leftover in (root, staged, target):
        _remove(leftover)
    root.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "mmdebstrap",
        "--mode=chrootless",
        "--variant=extract",
        "--format=directory",
        f"--architectures={recipe.arch}",
        "--aptopt=APT::Install-Recommends false",
        "--aptopt=Acquire::Retries 3",
        "--skip=cleanup/apt/cache",
        "--include=" + ",".join(recipe.include),
        recipe.suite,
        str(root),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=FETCH_TIMEOUT_S)
        if done.returncode != 0:
            tail = "\n".join(done.stderr.splitlines()[-8:])
            raise ImageError(
                f"mmdebstrap could not fetch the packages of {recipe.suite} for {recipe.arch}:\n{tail}",
                hint="check the network, and that debian-archive-keyring is installed",
            )
        staged.mkdir()
        for deb in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            shutil.move(deb, staged / deb.name)
        staged.rename(target)
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"mmdebstrap did not finish within {FETCH_TIMEOUT_S} s") from error
    finally:
        _remove(root)
    return listed(target)


def listed(folder: Path) -> list[Package]:
    """The packages in a folder that `fetch` made, by name."""
    packages = []
    for path in sorted(folder.glob("*.deb")):
        name, version, _ = path.name.split("_", 2)
        packages.append(Package(name, urllib.parse.unquote(version), path))
    return packages


def unpack(package: Package, root: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the files of a package that `wanted` (given the path relative to the root) accepts.

    Owners are left to the file system image, where everything belongs to root. Raises ImageError for a path that
    leaves the root.
    """
    with _contents(package) as archive:
        for member in archive:
            path = _inside(member.name, package)
            if path is None or member.isdir() or not wanted(path):
                continue
            target = root / path
            if root not in target.parent.resolve().parents and target.parent.resolve() != root:
                raise ImageError(f"{package.name}: {member.name} leads out of the root")
            target.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                target.unlink(missing_ok=True)
                target.symlink_to(member.linkname)
            elif member.islnk():
                source = _inside(member.linkname, package)
                if source is not None and (root / source).is_file():
                    shutil.copy2(root / source, target)
            elif member.isfile():
                content = archive.extractfile(member)
                if content is not None:
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file, 1 << 20)
                    target.chmod(0o755 if member.mode & 0o111 else 0o644)


@contextmanager
def _contents(package: Package) -> Iterator[tarfile.TarFile]:
    command = ["dpkg-deb", "--fsys-tarfile", str(package.path)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise ImageError("dpkg-deb is not installed", hint="images are built on Debian or Ubuntu") from error
    with process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
        except tarfile.TarError as error:
            raise ImageError(f"{package.path} is damaged: {error}", hint="delete it and build again") from error
        process.stdout.read()
    if process.returncode != 0:
        raise ImageError(
            f"{package.path} is damaged: dpkg-deb ended with {process.returncode}", hint="delete it and build again"
        )


def _inside(name: str, package: Package) -> str | None:
    """The path relative to the root, in the merged layout; None for the root itself."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    if ".." in parts:
        raise ImageError(f"{package.name}: {name} leads out of the root")
    if len(parts) > 1 and parts[0] in _MERGED:
        parts.insert(0, "usr")
    return "/".join(parts) or None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
