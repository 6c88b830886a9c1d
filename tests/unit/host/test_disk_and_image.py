import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from moorage_contract import image_manifest as manifest
from moorage_contract.image_manifest import Manifest, described
from moorage_host.errors import HostError
from moorage_host.machine import disk, image


def small_image(folder: Path) -> Manifest:
    folder.mkdir(exist_ok=True)
    for name in ("vmlinuz", "initrd.img", "root.squashfs"):
        (folder / name).write_bytes(name.encode() * 100)
    kernel, initrd, root = (described(folder / name) for name in ("vmlinuz", "initrd.img", "root.squashfs"))
    content = Manifest(
        "amd64", "26.11.0", "trixie", "6.12", "2026-11-01T00:00:00Z", "x", "quiet", "ttyS0", kernel, initrd, root, {}
    )
    manifest.write(content, folder)
    return content


def test_disk_is_made_once_and_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "data.qcow2"
    disk.ensure(path, 3)
    assert disk.virtual_size(path) == 3 << 30
    disk.ensure(path, 5)
    assert disk.virtual_size(path) == 5 << 30
    disk.ensure(path, 2)
    assert disk.virtual_size(path) == 5 << 30
    assert path.stat().st_mode & 0o777 == 0o600


def test_full_disk_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 40, 1 << 40, 5 << 20))
    with pytest.raises(HostError, match="only 5 MiB are free") as caught:
        disk.ensure(tmp_path / "data.qcow2", 3)
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_damaged_disk_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "data.qcow2"
    path.write_bytes(b"no disk" * 1000)
    with pytest.raises(HostError, match="qemu-img info failed") as caught:
        disk.ensure(path, 3)
    assert "moorage delete" in caught.value.hint


def test_whole_image_is_accepted_and_remembered(tmp_path: Path) -> None:
    folder, stamp = tmp_path / "image", tmp_path / "stamp"
    content = small_image(folder)
    assert image.checked(folder, stamp) == content
    assert stamp.exists()
    assert image.checked(folder, stamp) == content


def test_changed_image_file_is_named(tmp_path: Path) -> None:
    folder, stamp = tmp_path / "image", tmp_path / "stamp"
    small_image(folder)
    image.checked(folder, stamp)
    (folder / "root.squashfs").write_bytes(b"something else")
    with pytest.raises(HostError, match=r"damaged.*root\.squashfs") as caught:
        image.checked(folder, stamp)
    assert "moorage image build" in caught.value.hint


def test_missing_image_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        image.checked(tmp_path / "none", tmp_path / "stamp")
    assert "moorage image build" in caught.value.hint
