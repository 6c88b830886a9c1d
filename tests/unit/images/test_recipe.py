"""Recipes are read and checked as a whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from moorage_images import recipe
from moorage_images.errors import ImageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(recipe.RECIPES, tmp_path / "recipes")
    return tmp_path / "recipes"


@pytest.mark.parametrize("arch", recipe.ARCHITECTURES)
def test_recipe_of_each_architecture_is_valid(arch: str) -> None:
    loaded = recipe.load(arch)
    assert loaded.cmdline[-1] == f"console={loaded.console}"
    assert loaded.include[0].startswith("linux-image-")
    assert not loaded.drop_packages & set(loaded.include)


def test_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ImageError, match="amd64, arm64"):
        recipe.load("riscv64")


def test_unknown_key_and_wrong_format_are_reported_together(folder: Path) -> None:
    text = (folder / "amd64.toml").read_text()
    (folder / "amd64.toml").write_text(text.replace("format = 1", "format = 9\nconsol = 'x'"))
    with pytest.raises(ImageError) as caught:
        recipe.load("amd64", folder)
    assert "consol" in str(caught.value) and "format is 9" in str(caught.value)


def test_value_named_twice_is_refused(folder: Path) -> None:
    text = (folder / "guest.toml").read_text()
    (folder / "guest.toml").write_text(text.replace('"crun",\n', '"crun", "crun",\n', 1))
    with pytest.raises(ImageError, match="twice: crun"):
        recipe.load("amd64", folder)


def test_broken_toml_names_the_file(folder: Path) -> None:
    (folder / "guest.toml").write_text("format = ")
    with pytest.raises(ImageError, match=r"guest\.toml"):
        recipe.load("amd64", folder)


def test_keep_is_an_exception_from_drop() -> None:
    loaded = recipe.load("amd64")
    assert loaded.dropped("usr/share/doc/crun/copyright")
    assert loaded.dropped("usr/share/locale/de/LC_MESSAGES/x.mo")
    assert not loaded.dropped("usr/share/ca-certificates/mozilla/a.crt")
    assert not loaded.dropped("usr/bin/crun")


@pytest.mark.parametrize(("arch", "emulator"), [("amd64", "qemu-aarch64"), ("arm64", "qemu-x86_64")])
def test_only_the_emulator_of_the_other_architecture_is_kept(arch: str, emulator: str) -> None:
    loaded = recipe.load(arch)
    names = [f"usr/bin/{name}" for name in ("qemu-aarch64", "qemu-x86_64", "qemu-arm", "qemu-aarch64_be")]
    assert [name for name in names if not loaded.dropped(name)] == [loaded.emulator] == [f"usr/bin/{emulator}"]
    assert emulator in (recipe.RECIPES / "root/usr/lib/moorage/emulation").read_text()


def test_shell_scripts_of_the_guest_are_executable() -> None:
    for path in recipe.RECIPES.rglob("*"):
        if path.is_file() and path.read_bytes()[:2] == b"#!":
            assert path.stat().st_mode & 0o111, path


def test_digest_notices_a_change_of_content_name_and_mode(folder: Path) -> None:
    seen = {recipe.folder_digest([folder])}
    (folder / "root/etc/hosts").write_text("other")
    seen.add(recipe.folder_digest([folder]))
    (folder / "root/etc/hosts").rename(folder / "root/etc/hosts2")
    seen.add(recipe.folder_digest([folder]))
    (folder / "root/etc/hosts2").chmod(0o755)
    seen.add(recipe.folder_digest([folder]))
    assert len(seen) == 4
