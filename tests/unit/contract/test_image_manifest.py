"""The manifest says what an image folder holds, and notices when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from moorage_contract import image_manifest as manifest
from moorage_contract.image_manifest import Manifest, ManifestError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name in ("vmlinuz", "initrd.img", "root.squashfs"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    manifest.write(
        Manifest(
            arch="amd64",
            engine_version="26.11.0",
            suite="trixie",
            kernel_release="6.12",
            created=manifest.timestamp(0),
            inputs="abc",
            cmdline="quiet console=ttyS0",
            console="ttyS0",
            kernel=manifest.described(tmp_path / "vmlinuz"),
            initrd=manifest.described(tmp_path / "initrd.img"),
            root=manifest.described(tmp_path / "root.squashfs"),
            packages={"crun": "1.21-1"},
        ),
        tmp_path,
    )
    return tmp_path


def test_what_is_written_is_read_back(image: Path) -> None:
    read = manifest.read(image)
    assert read.created == "1970-01-01T00:00:00Z"
    assert read.root.size == 1300
    assert read.packages == {"crun": "1.21-1"}
    assert manifest.verify(image) == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_file_is_named(image: Path, damage: str) -> None:
    path = image / "root.squashfs"
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"R" + path.read_bytes()[1:])
    faults = manifest.verify(image)
    assert len(faults) == 1 and "root.squashfs" in faults[0]


def test_folder_without_image_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="moorage image build"):
        manifest.read(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "files": {}}'])
def test_unreadable_manifest_is_an_error_that_names_it(image: Path, content: str) -> None:
    (image / manifest.NAME).write_text(content)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        manifest.read(image)


def test_newer_format_is_refused(image: Path) -> None:
    content = json.loads((image / manifest.NAME).read_text())
    (image / manifest.NAME).write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ManifestError, match="format 2"):
        manifest.read(image)
