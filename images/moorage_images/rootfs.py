"""The guest's root: Debian's files, the recipe's files and the kernel's modules in one tree, then one squashfs.

The engine is a layer of its own (/opt/moorage) that is appended to the finished base, so that a change of our code alone
costs seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from moorage_images import elf, kernel, packages, python
from moorage_images.errors import ImageError
from moorage_images.packages import Package
from moorage_images.recipe import Recipe

FOLDERS = (
    "dev",
    "etc/ssl/certs",
    "media",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/sbin",
    "var/lib/moorage",
    "var/log",
)
LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "etc/mtab": "/proc/self/mounts",
    "var/run": "/run",
    "var/lock": "/run/lock",
    "var/tmp": "/tmp",
    "usr/bin/docker-init": "tini-static",
}
# Where the kernel, init and Debian's programs look for them.
SYSTEM_APPLETS = (
    "halt",
    "init",
    "insmod",
    "ip",
    "modprobe",
    "mkswap",
    "nologin",
    "poweroff",
    "reboot",
    "sysctl",
    "udhcpc",
)
COMMANDS = ("dockerd", "moorage-agent", "moored")
ENGINE_SITE = "opt/moorage/lib"
ENGINE_PACKAGES = ("moorage_contract", "moorage_guest")
# An emulated processor is slow at decompression: lz4, and no block shared between files, start Python a second sooner than
# zstd does, for 12 MB.
COMPRESSION = ("-comp", "lz4", "-Xhc", "-b", "131072", "-no-fragments")
# Every file in the image is this old (1 November 2026), whenever it was built.
INODE_TIME = 1793491200
SQUASH_TIMEOUT_S = 1800


def unpack(recipe: Recipe, fetched: Iterable[Package], root: Path, boot: Path) -> None:
    """Unpack Debian's part: what the recipe keeps goes to `root`, the kernel package's files to `boot`."""
    for package in fetched:
        if package.name.startswith("linux-image-"):
            packages.unpack(package, boot, lambda path: path.startswith(("boot/vmlinuz", "usr/lib/modules/")))
        elif package.name not in recipe.drop_packages:
            packages.unpack(package, root, lambda path: not recipe.dropped(path))


def complete(recipe: Recipe, root: Path, tree: kernel.ModuleTree) -> None:
    """Add everything that is not Debian's: folders, links, recipe files, modules, certificates."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, destination in LINKS.items():
        _link(root / name, destination)
    for applet in recipe.applets:
        if not os.path.lexists(root / "usr/bin" / applet) and not os.path.lexists(root / "usr/sbin" / applet):
            _link(root / "usr/bin" / applet, "busybox")
    for applet in SYSTEM_APPLETS:
        _link(root / "usr/sbin" / applet, "../bin/busybox")
    for command in COMMANDS:
        _link(root / "usr/bin" / command, f"../../opt/moorage/bin/{command}")
    for name in ENGINE_PACKAGES:
        _link(root / python.DIST_PACKAGES / name, f"/{ENGINE_SITE}/{name}")
    for path in sorted(recipe.root_files.rglob("*")):
        target = root / path.relative_to(recipe.root_files)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.unlink(missing_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
    (root / "etc/shadow").chmod(0o600)
    (root / "root").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = b"".join(path.read_bytes().rstrip() + b"\n" for path in certificates)
    (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(bundle)
    kernel.install(tree, recipe, root)


def check(recipe: Recipe, root: Path) -> None:
    """Fail with names when a program in the tree lacks a library or is for another machine."""
    folders = (f"usr/lib/{recipe.triplet}", "usr/lib64", "usr/lib")
    missing = elf.missing_libraries(root, folders)
    if missing:
        lines = [f"{name} (needed by {', '.join(users[:3])})" for name, users in sorted(missing.items())]
        raise ImageError(
            "libraries are missing in the image: " + "; ".join(lines), hint="correct the recipe's drop lists"
        )
    for name in ("usr/bin/busybox", "usr/bin/crun", "usr/sbin/sshd", recipe.emulator, recipe.loader):
        path = root / name
        if not path.is_file():
            raise ImageError(f"{name} is missing in the image", hint="correct the recipe")
        if elf.machine(path.read_bytes()) != recipe.elf_machine:
            raise ImageError(f"{name} is not a program for {recipe.arch}")


def engine_layer(sources: Iterable[Path], layer: Path) -> None:
    """Make the engine's layer (the content of /opt) from wheels or source folders."""
    commands: dict[str, str] = {}
    site = layer / ENGINE_SITE
    site.mkdir(parents=True)
    for source in sources:
        commands |= python.install(source, site)
    absent = [name for name in ENGINE_PACKAGES if not (site / name).is_dir()]
    absent += [name for name in COMMANDS if name not in commands]
    if absent:
        raise ImageError(f"the engine given to the builder lacks {', '.join(absent)}")
    python.write_commands({name: commands[name] for name in COMMANDS}, layer / "opt/moorage/bin")


def squash(root: Path, target: Path) -> None:
    """Make a squashfs of the tree; every file belongs to root. Blocks for up to a minute."""
    target.unlink(missing_ok=True)
    _mksquashfs([str(root), str(target), *COMPRESSION, "-noappend"])


def append(layer: Path, target: Path) -> None:
    """Append the top-level folders of `layer`, which the squashfs must not have yet, to its root."""
    _mksquashfs([*(str(path) for path in sorted(layer.iterdir())), str(target), "-keep-as-directory", "-no-recovery"])


def _mksquashfs(arguments: list[str]) -> None:
    times = ["-mkfs-time", str(INODE_TIME), "-all-time", str(INODE_TIME)]
    options = ["-all-root", "-no-exports", "-no-xattrs", "-no-progress", "-quiet", *times]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    try:
        done = subprocess.run(
            ["mksquashfs", *arguments, *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SQUASH_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise ImageError("mksquashfs is not installed", hint="apt-get install squashfs-tools") from error
    if done.returncode != 0:
        raise ImageError(f"mksquashfs failed: {done.stderr.strip() or done.stdout.strip()}", hint="is the disk full?")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        raise ImageError(f"a package put a folder where the image has a link: {path}")
    path.unlink(missing_ok=True)
    path.symlink_to(target)
