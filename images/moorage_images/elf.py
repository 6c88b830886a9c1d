"""Just enough of ELF: what a program needs from shared libraries, and a kernel module's .modinfo."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PT_DYNAMIC = 2
_PT_LOAD = 1
_DT_NEEDED = 1
_DT_STRTAB = 5


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def is_elf(data: bytes) -> bool:
    """Whether this is a 64-bit little-endian ELF file."""
    return data[:6] == b"\x7fELF\x02\x01"


def machine(data: bytes) -> int:
    """The machine an ELF file is for (e_machine)."""
    return int(struct.unpack_from("<H", data, 18)[0])


def needed(data: bytes) -> list[str]:
    """Names of the shared libraries that an ELF file asks for; empty for a static program."""
    table, _, _, _, size, count = struct.unpack_from("<QQIHHH", data, 32)
    segments = []
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + index * size)
        segments.append(_Segment(kind, offset, address, length))
    dynamic = next((segment for segment in segments if segment.kind == _PT_DYNAMIC), None)
    if dynamic is None:
        return []
    names, strings = [], 0
    for position in range(dynamic.offset, dynamic.offset + dynamic.size, 16):
        tag, value = struct.unpack_from("<QQ", data, position)
        if tag == 0:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = value
    load = next(s for s in segments if s.kind == _PT_LOAD and s.address <= strings < s.address + s.size)
    base = strings - load.address + load.offset
    return [_text(data, base + name) for name in names]


def modinfo(data: bytes) -> dict[str, list[str]]:
    """The key=value pairs of a kernel module's .modinfo section."""
    sections, _, _, _, _, size, count, names_index = struct.unpack_from("<QIHHHHHH", data, 40)

    def section(index: int) -> tuple[int, int, int]:
        name, _, _, _, offset, length = struct.unpack_from("<IIQQQQ", data, sections + index * size)
        return name, offset, length

    _, names, _ = section(names_index)
    pairs: dict[str, list[str]] = {}
    for index in range(count):
        name, offset, length = section(index)
        if _text(data, names + name) == ".modinfo":
            for entry in data[offset : offset + length].split(b"\0"):
                key, separator, value = entry.decode("utf-8", "replace").partition("=")
                if separator:
                    pairs.setdefault(key, []).append(value)
    return pairs


def missing_libraries(root: Path, folders: Iterable[str]) -> Mapping[str, list[str]]:
    """Libraries that programs or libraries below `root` need and none of `folders` holds, each with who needs it."""
    present = {path.name for folder in folders if (root / folder).is_dir() for path in (root / folder).iterdir()}
    missing: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.suffix == ".ko":
            continue
        with path.open("rb") as file:
            if not is_elf(file.read(6)):
                continue
        for name in needed(path.read_bytes()):
            if name not in present:
                missing.setdefault(name, []).append(str(path.relative_to(root)))
    return missing


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode("utf-8", "replace")
