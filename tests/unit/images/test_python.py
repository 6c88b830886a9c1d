"""Wheels and source folders are put in place alike."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from moorage_images import build, python, rootfs
from moorage_images.errors import ImageError

PYPROJECT = '[project]\nname = "our-tool"\nversion = "3.1.0"\n\n[project.scripts]\ntool = "our_tool.main:main"\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "our_tool/__pycache__").mkdir(parents=True)
    (folder / "our_tool/__init__.py").write_text("")
    (folder / "our_tool/data.json").write_text("{}")
    (folder / "our_tool/__pycache__/x.pyc").write_text("")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    return folder


def test_source_folder_is_copied_without_leftovers(source: Path, tmp_path: Path) -> None:
    commands = python.install(source, tmp_path / "target")
    assert commands == {"tool": "our_tool.main:main"}
    found = {str(p.relative_to(tmp_path / "target")) for p in (tmp_path / "target").rglob("*") if p.is_file()}
    assert found == {"our_tool/__init__.py", "our_tool/data.json", "our_tool-3.1.0.dist-info/METADATA"}


def test_wheel_gives_files_and_commands(tmp_path: Path) -> None:
    wheel = tmp_path / "our_tool-3.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("our_tool/__init__.py", "")
        archive.writestr("our_tool-3.1.0.dist-info/entry_points.txt", "[console_scripts]\ntool = our_tool.main:main\n")
    (tmp_path / "target").mkdir()
    assert python.install(wheel, tmp_path / "target") == {"tool": "our_tool.main:main"}
    assert (tmp_path / "target/our_tool/__init__.py").is_file()


def test_wheel_that_leads_out_of_the_target_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "evil-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../evil.py", "")
    (tmp_path / "target").mkdir()
    with pytest.raises(ImageError, match="out of the target"):
        python.install(wheel, tmp_path / "target")


def test_commands_are_small_isolated_scripts(tmp_path: Path) -> None:
    python.write_commands({"tool": "our_tool.main:main"}, tmp_path)
    assert (tmp_path / "tool").read_text().startswith("#!/usr/bin/python3 -I\n")
    assert (tmp_path / "tool").stat().st_mode & 0o111


def test_engine_that_lacks_a_part_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"moorage_guest.*moored"):
        rootfs.engine_layer([source], tmp_path / "layer")


def test_missing_engine_source_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no engine at"):
        build.inputs_digest("amd64", build.Sources(tmp_path / "a", tmp_path / "b"))
