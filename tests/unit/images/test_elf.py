"""ELF files are read well enough to find what they need."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from moorage_images import elf


def test_libraries_that_a_program_needs_are_listed() -> None:
    data = Path(sys.executable).resolve().read_bytes()
    assert elf.is_elf(data)
    assert "libc.so.6" in elf.needed(data)


def test_file_that_is_no_elf_is_recognized() -> None:
    assert not elf.is_elf(b"#!/bin/sh\n")


def test_missing_library_is_reported_with_who_needs_it(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    shutil.copy(Path(sys.executable).resolve(), tmp_path / "bin/python")
    missing = elf.missing_libraries(tmp_path, ["lib"])
    assert missing["libc.so.6"] == ["bin/python"]
    for name in missing:
        (tmp_path / "lib" / name).touch()
    assert elf.missing_libraries(tmp_path, ["lib"]) == {}
