"""Modules come with all they depend on, in the order in which they can be loaded."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest
from moorage_images import kernel
from moorage_images.errors import ImageError
from moorage_images.kernel import ModuleTree


def module(**info: list[str]) -> bytes:
    """A minimal relocatable ELF file with a .modinfo section."""
    modinfo = b"".join(f"{key}={value}\0".encode() for key, values in info.items() for value in values)
    names = b"\0.modinfo\0.shstrtab\0"
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 2)
    )
    start = 64 + 3 * 64
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, start, len(modinfo), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, start + len(modinfo), len(names), 0, 0, 1, 0)
    return header + sections + modinfo + names


@pytest.fixture
def tree(tmp_path: Path) -> ModuleTree:
    folder = tmp_path / "6.1"
    content = {
        "fs/ext4.ko.xz": module(depends=["jbd2,mbcache"], softdep=["pre: crc32c absent"], alias=["fs-ext4"]),
        "fs/jbd2.ko.xz": module(depends=[""]),
        "fs/mbcache.ko": module(),
        "crypto/crc32c.ko.xz": module(alias=["crypto-crc32c"]),
        "net/nf-nat.ko.xz": module(depends=["jbd2"]),
    }
    for name, data in content.items():
        path = folder / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(data) if name.endswith(".xz") else data)
    (folder / "modules.builtin").write_text("kernel/fs/fuse/fuse.ko\n")
    return ModuleTree(folder)


def test_dependencies_come_first_and_once(tree: ModuleTree) -> None:
    names = [m.name for m in tree.closure(["ext4", "nf_nat", "jbd2"])]
    assert sorted(names) == ["crc32c", "ext4", "jbd2", "mbcache", "nf_nat"]
    assert names.index("ext4") > max(names.index(n) for n in ("crc32c", "jbd2", "mbcache"))
    assert names.index("nf_nat") > names.index("jbd2")


def test_modules_are_found_by_either_spelling(tree: ModuleTree) -> None:
    assert [m.name for m in tree.closure(["nf-nat"])] == [m.name for m in tree.closure(["nf_nat"])]


def test_part_of_the_kernel_needs_no_file(tree: ModuleTree) -> None:
    assert tree.closure(["fuse"]) == []


def test_unknown_module_is_an_error_with_its_name(tree: ModuleTree) -> None:
    with pytest.raises(ImageError, match="no module warp_drive"):
        tree.closure(["warp_drive"])


def test_canonical_name_is_the_kernels() -> None:
    assert kernel.canonical("virtio-rng") == "virtio_rng"
