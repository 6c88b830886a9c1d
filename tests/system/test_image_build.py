"""Images are built from the cache of packages: the same input gives the same bytes, for every architecture."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from moorage_contract import image_manifest as manifest
from moorage_images import build, recipe
from moorage_images.errors import ImageError

pytestmark = pytest.mark.timeout(1800)


def own_cache(folder: Path) -> Path:
    """An empty cache, but for the packages that the user's cache has already."""
    folder.mkdir()
    for path in build.default_cache().glob("debs-*"):
        if not path.name.endswith((".new", ".root")):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> build.Sources:
    """The engine as it is now, whoever edits it meanwhile."""
    found = build.checkout_sources()
    for source in found:
        shutil.copytree(
            source, tmp_path / "sources" / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    return build.Sources(tmp_path / "sources" / found.contract.name, tmp_path / "sources" / found.engine.name)


def test_two_builds_of_the_same_input_are_equal(sources: build.Sources, tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        output = tmp_path / name
        made.append(
            build.build_image(
                "amd64",
                output,
                sources=sources,
                source_date_epoch=1_800_000_000,
                cache=own_cache(tmp_path / f"{name}-cache"),
            )
        )
        assert manifest.verify(output) == []
    assert made[0] == made[1]
    assert (tmp_path / "first/manifest.json").read_bytes() == (tmp_path / "second/manifest.json").read_bytes()


def test_image_for_a_foreign_architecture_is_built_without_running_any_of_it(
    sources: build.Sources, tmp_path: Path
) -> None:
    made = build.build_image("arm64", tmp_path / "image", sources=sources)
    assert made.console == "ttyAMA0"
    assert sum(file.size for file in (made.kernel, made.initrd, made.root)) <= 80 << 20
    listing = subprocess.run(
        ["unsquashfs", "-lls", str(tmp_path / "image/root.squashfs")], capture_output=True, text=True, check=True
    ).stdout
    assert "/usr/lib/ld-linux-aarch64.so.1" in listing
    assert "/usr/bin/qemu-x86_64\n" in listing and "/usr/bin/qemu-aarch64" not in listing
    assert "/opt/moorage/lib/moorage_guest/__pycache__/__init__.cpython-313.pyc" in listing
    assert {line.split()[1] for line in listing.splitlines() if line.startswith(("-", "d", "l"))} == {"root/root"}


def test_image_is_current_until_the_engine_changes(sources: build.Sources, tmp_path: Path) -> None:
    build.build_image("amd64", tmp_path / "image", sources=sources)
    assert build.is_current(tmp_path / "image", "amd64", sources)
    assert not build.is_current(tmp_path / "image", "arm64", sources)
    (sources.engine / "moorage_guest/errors.py").write_text("")
    assert not build.is_current(tmp_path / "image", "amd64", sources)


def test_damaged_image_is_not_current(sources: build.Sources, tmp_path: Path) -> None:
    build.build_image("amd64", tmp_path / "image", sources=sources)
    (tmp_path / "image/initrd.img").write_bytes(b"")
    assert not build.is_current(tmp_path / "image", "amd64", sources)


def test_missing_library_stops_the_build_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe.load("amd64")
    narrow = recipe.Recipe(**(vars(loaded) | {"drop_packages": loaded.drop_packages | {"libyajl2"}}))
    monkeypatch.setattr(recipe, "load", lambda arch: narrow)
    with pytest.raises(ImageError, match=r"libyajl.*usr/bin/crun"):
        build.build_image("amd64", tmp_path / "image", cache=own_cache(tmp_path / "cache"))
    assert not (tmp_path / "image").exists()
