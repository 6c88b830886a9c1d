"""The initrd is an archive that every cpio reads, with the same bytes for the same input."""

from __future__ import annotations

import stat

from moorage_images.initrd import Entry, newc


def entries() -> list[Entry]:
    return [
        Entry("bin", stat.S_IFDIR | 0o755),
        Entry("bin/tool", stat.S_IFREG | 0o755, b"12345"),
        Entry("bin/link", stat.S_IFLNK | 0o777, b"tool"),
        Entry("console", stat.S_IFCHR | 0o600, device=(5, 1)),
    ]


def parse(archive: bytes) -> list[tuple[str, int, bytes, int]]:
    found: list[tuple[str, int, bytes, int]] = []
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        name = archive[position + 110 : position + 110 + fields[11] - 1].decode()
        start = (position + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], archive[start : start + fields[6]], fields[5]))
        position = (start + fields[6] + 3) & ~3


def test_entries_are_read_back_with_mode_content_and_time() -> None:
    assert parse(newc(entries(), 77)) == [(e.path, e.mode, e.data, 77) for e in entries()]


def test_same_entries_give_the_same_bytes() -> None:
    assert newc(entries(), 1) == newc(entries(), 1) != newc(entries(), 2)


def test_archive_is_padded_to_blocks() -> None:
    assert len(newc(entries(), 1)) % 512 == 0
