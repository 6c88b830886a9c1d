"""The initrd: busybox, the few modules that lead to the root file system, and one script.

Written as an uncompressed newc archive: it is small, and unpacking would cost an emulated processor more than reading.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from moorage_images.kernel import ModuleTree
from moorage_images.recipe import Recipe

APPLETS = ("sh", "mount", "insmod", "mkdir", "sleep", "usleep", "switch_root", "echo", "[")
FOLDERS = ("bin", "dev", "layer", "lower", "modules", "proc", "root", "sys")


@dataclass(frozen=True)
class Entry:
    """One file of the archive."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(recipe: Recipe, tree: ModuleTree, busybox: Path, epoch: int) -> bytes:
    """The initrd's bytes; the same input gives the same bytes."""
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    entries.append(Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)))
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    entries += [Entry(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox") for applet in APPLETS]
    entries.append(Entry("init", stat.S_IFREG | 0o755, (recipe.initrd_files / "init").read_bytes()))
    order = []
    for module in tree.closure(recipe.modules.initrd):
        order.append(f"{module.name}.ko")
        entries.append(Entry(f"modules/{module.name}.ko", stat.S_IFREG | 0o644, module.data))
    entries.append(Entry("modules/order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in order).encode()))
    return newc(entries, epoch)


def newc(entries: list[Entry], epoch: int) -> bytes:
    """A cpio archive (SVR4 newc), every file owned by root and as old as `epoch` seconds."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        mode = entry.mode
        links = 2 if stat.S_ISDIR(mode) else 1
        time = epoch if mode else 0
        fields = (number if mode else 0, mode, 0, 0, links, time, len(entry.data), 0, 0, *entry.device, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        archive += b"\0" * (-len(archive) % 4)
        archive += entry.data
        archive += b"\0" * (-len(archive) % 4)
    archive += b"\0" * (-len(archive) % 512)
    return bytes(archive)
