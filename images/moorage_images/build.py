"""Build a VM image: `moorage-image build`, and `build_image` for other programs.

The steps and what they keep in the cache (~/.cache/moorage/images or $MOORAGE_IMAGE_CACHE):
packages (`debs-…`, by package list) → base root and kernel (`base-…`, by packages, recipe and builder) → engine layer, image.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moorage_contract import image_manifest as manifest
from moorage_contract.image_manifest import Manifest, ManifestError

from moorage_images import initrd, packages, python, recipe, rootfs
from moorage_images.errors import ImageError
from moorage_images.kernel import ModuleTree
from moorage_images.packages import Package
from moorage_images.recipe import Recipe

Progress = Callable[[str], None]

FAULT = "moorage-image: "  # begins the line that says why nothing was built


@dataclass(frozen=True)
class Sources:
    """Where the engine comes from: wheels or distributions' source folders."""

    contract: Path
    engine: Path

    def __iter__(self) -> Iterator[Path]:
        return iter((self.contract, self.engine))

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for source in self:
            if source.is_file():
                digest.update(source.read_bytes())
            elif source.is_dir():
                digest.update(recipe.folder_digest([source]).encode())
            else:
                raise ImageError(
                    f"there is no engine at {source}", hint="give --engine and --contract a wheel or a source folder"
                )
        return digest.hexdigest()


@dataclass(frozen=True)
class Base:
    """A finished base in the cache."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def squashfs(self) -> Path:
        return self.folder / "root.squashfs"

    @property
    def kernel(self) -> Path:
        return next((self.folder / "boot/boot").glob("vmlinuz-*"))

    @property
    def modules(self) -> ModuleTree:
        return ModuleTree(next((self.folder / "boot/usr/lib/modules").iterdir()))


def checkout_sources() -> Sources:
    """The engine's source folders beside this one in a checkout."""
    top = Path(__file__).resolve().parents[2]
    return Sources(top / "guest/contract", top / "guest/engine")


def default_cache() -> Path:
    """The folder of the builder's cache."""
    if named := os.environ.get("MOORAGE_IMAGE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moorage" / "images"


def inputs_digest(arch: str, sources: Sources) -> str:
    """Digest of what we put into an image of `arch`: builder, recipe and engine (packages come from the distribution)."""
    words = [arch, recipe.folder_digest([Path(__file__).parent]), sources.digest]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def is_current(output: Path, arch: str, sources: Sources | None = None) -> bool:
    """Whether `output` holds a whole image made from exactly these inputs; compares sizes, not every byte."""
    try:
        found = manifest.read(output)
    except ManifestError:
        return False
    files = (found.kernel, found.initrd, found.root)
    whole = all((output / f.name).is_file() and (output / f.name).stat().st_size == f.size for f in files)
    return whole and found.arch == arch and found.inputs == inputs_digest(arch, sources or checkout_sources())


def build_image(
    arch: str,
    output: Path,
    *,
    sources: Sources | None = None,
    source_date_epoch: int | None = None,
    cache: Path | None = None,
    refresh: bool = False,
    progress: Progress = lambda message: None,
) -> Manifest:
    """Build kernel, initrd, root and manifest for `arch` into `output`, replacing what is there file by file.

    Blocks: seconds when only the engine changed, minutes the first time. Needs no rights. `refresh` fetches the packages
    again. A machine running from the previous image goes on undisturbed. Raises ImageError.
    """
    sources = sources or checkout_sources()
    cache = cache or default_cache()
    chosen = recipe.load(arch)
    inputs = inputs_digest(arch, sources)
    epoch = (
        source_date_epoch if source_date_epoch is not None else int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    )
    with _locked(cache):
        base, fetched = _base(chosen, cache, refresh, progress)
        interpreter, interpreter_recipe = base.root, chosen
        if arch != python.build_machine():
            interpreter_recipe = recipe.load(python.build_machine())
            interpreter = _base(interpreter_recipe, cache, False, progress)[0].root
        output.mkdir(parents=True, exist_ok=True)
        progress("adding the engine")
        with tempfile.TemporaryDirectory(dir=output, prefix=".build-") as scratch:
            staged = Path(scratch)
            layer = staged / "layer"
            rootfs.engine_layer(sources, layer)
            python.compile_tree(interpreter, interpreter_recipe, layer, ["opt"])
            python.precompile(interpreter, interpreter_recipe, layer, rootfs.ENGINE_SITE, "moorage_guest.agent")
            shutil.copyfile(base.squashfs, staged / "root.squashfs")
            rootfs.append(layer, staged / "root.squashfs")
            (staged / "initrd.img").write_bytes(
                initrd.build(chosen, base.modules, base.root / "usr/bin/busybox", rootfs.INODE_TIME)
            )
            kernel = base.kernel.read_bytes()
            if chosen.compress_kernel:
                kernel = gzip.compress(kernel, 9, mtime=0)
            (staged / "vmlinuz").write_bytes(kernel)
            for name in ("vmlinuz", "initrd.img", "root.squashfs"):
                (staged / name).replace(output / name)
        made = Manifest(
            arch=arch,
            engine_version=_engine_version(sources.engine),
            suite=chosen.suite,
            kernel_release=base.modules.release,
            created=manifest.timestamp(epoch),
            inputs=inputs,
            cmdline=" ".join(chosen.cmdline),
            console=chosen.console,
            kernel=manifest.described(output / "vmlinuz"),
            initrd=manifest.described(output / "initrd.img"),
            root=manifest.described(output / "root.squashfs"),
            packages=_contained(chosen, fetched),
        )
        manifest.write(made, output)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `moorage-image`: steps and faults to stderr, what was built to stdout."""
    parser = argparse.ArgumentParser(prog="moorage-image", description="Build the image of Moorage's virtual machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build kernel, initrd and root")
    check = commands.add_parser("check", help="end with 0 when the image is whole and made from the present inputs")
    for command in (build, check):
        command.add_argument("--arch", choices=recipe.ARCHITECTURES, default=python.build_machine())
        command.add_argument(
            "--output", type=Path, default=Path("image"), help="folder of the image (default: ./image)"
        )
        command.add_argument("--engine", type=Path, help="the engine's wheel or source folder")
        command.add_argument("--contract", type=Path, help="the contract's wheel or source folder")
    build.add_argument("--refresh", action="store_true", help="fetch the packages again")
    build.add_argument("--if-needed", action="store_true", help="do nothing when the image is current")
    options = parser.parse_args(arguments)
    found = checkout_sources()
    sources = Sources(options.contract or found.contract, options.engine or found.engine)
    try:
        if options.command == "check" or options.if_needed:
            current = is_current(options.output, options.arch, sources) and not manifest.verify(options.output)
            if current or options.command == "check":
                _say("the image is current" if current else "the image must be built")
                return 0 if current else 1
        made = build_image(options.arch, options.output, sources=sources, refresh=options.refresh, progress=_say)
    except (ImageError, ManifestError) as error:
        _say(f"{FAULT}{error}")
        return 1
    total = sum(file.size for file in (made.kernel, made.initrd, made.root))
    summary = f"{options.output}: engine {made.engine_version}, {made.arch}, {len(made.packages)} packages"
    sys.stdout.write(f"{summary}, {total / 2**20:.1f} MiB\n")
    return 0


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _base(chosen: Recipe, cache: Path, refresh: bool, progress: Progress) -> tuple[Base, list[Package]]:
    debs = cache / f"debs-{chosen.arch}-{chosen.packages_key[:16]}"
    fetched = packages.listed(debs) if debs.is_dir() and not refresh else []
    if not fetched:
        progress(f"fetching Debian packages for {chosen.arch} (about 150 MB)")
        fetched = packages.fetch(chosen, debs)
    names = [package.path.name for package in fetched]
    key = hashlib.sha256("\0".join([*names, recipe.folder_digest([Path(__file__).parent])]).encode()).hexdigest()[:16]
    folder = cache / f"base-{chosen.arch}-{key}"
    if not folder.is_dir():
        for stale in cache.glob(f"base-{chosen.arch}-*"):
            shutil.rmtree(stale)
        _build_base(chosen, fetched, cache, folder, progress)
    return Base(folder), fetched


def _build_base(chosen: Recipe, fetched: list[Package], cache: Path, folder: Path, progress: Progress) -> None:
    staged = Base(folder.with_name(f"{folder.name}.new"))
    progress(f"unpacking {len(fetched)} packages for {chosen.arch}")
    rootfs.unpack(chosen, fetched, staged.root, staged.folder / "boot")
    rootfs.complete(chosen, staged.root, staged.modules)
    rootfs.check(chosen, staged.root)
    interpreter, interpreter_recipe = staged.root, chosen
    if chosen.arch != python.build_machine():
        interpreter_recipe = recipe.load(python.build_machine())
        interpreter = _base(interpreter_recipe, cache, False, progress)[0].root
    progress("compiling the Python files")
    python.compile_tree(interpreter, interpreter_recipe, staged.root, ["usr/lib/python3.13", "usr/lib/python3"])
    progress("compressing the root")
    rootfs.squash(staged.root, staged.squashfs)
    staged.folder.rename(folder)


def _contained(chosen: Recipe, fetched: list[Package]) -> dict[str, str]:
    return {p.name: p.version for p in fetched if p.name not in chosen.drop_packages}


def _engine_version(source: Path) -> str:
    if source.is_file():
        return source.name.split("-")[1]
    return python.project_version(source)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
