"""Layers of many files are written by several threads at once, and come out as if one had done it."""

import io
import os
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from moorage_guest.images.kernel import umask_free_executor
from moorage_guest.images.unpack import Unpacked, unpack

pytestmark = pytest.mark.root


@pytest.fixture
def helpers() -> Iterator[ThreadPoolExecutor]:
    with umask_free_executor(2, "files") as pool:
        yield pool


def layer(count: int, last: str = "") -> bytes:
    """A layer of files of all sizes in folders, some of which force their group, with links to files far and near."""
    noise = random.Random(count)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(count):
            info = tarfile.TarInfo(f"d{number // 50}")
            if number % 50 == 0:
                info.type, info.mode, info.gid, info.mtime = tarfile.DIRTYPE, noise.choice([0o755, 0o2775]), 7, number
                tar.addfile(info)
            name = f"d{number // 50}/f{number}"
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid, info.mtime = (
                noise.choice([0o644, 0o4755, 0o600]),
                number % 3,
                number % 2,
                number,
            )
            data = noise.randbytes(300_000 if number % 200 == 0 else noise.randrange(3000))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            if number % 7 == 0:
                link = tarfile.TarInfo(f"{name}-link")
                link.type, link.linkname = (
                    tarfile.LNKTYPE,
                    name if number % 2 else f"d0/f{number % 50 if number < 50 else 0}",
                )
                tar.addfile(link)
        if last:
            tar.addfile(tarfile.TarInfo(last), io.BytesIO())
    return out.getvalue()


def unpacked(data: bytes, folder: Path, helpers: ThreadPoolExecutor | None) -> Unpacked:
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    archive.write_bytes(data)
    descriptor = os.open(archive, os.O_RDONLY)
    try:
        with umask_free_executor(1, "unpack") as alone:
            return alone.submit(
                unpack, descriptor, len(data), folder, base=True, free_bytes=1 << 40, helpers=helpers
            ).result()
    finally:
        os.close(descriptor)


def seen(folder: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime, status.st_nlink, content,
        )  # fmt: skip
    return found


def test_several_threads_write_what_one_would(tmp_path: Path, helpers: ThreadPoolExecutor) -> None:
    data = layer(1000)
    assert unpacked(data, tmp_path / "many", helpers) == unpacked(data, tmp_path / "one", None)
    many, one = seen(tmp_path / "many"), seen(tmp_path / "one")
    assert many.keys() == one.keys()
    assert [name for name in one if one[name] != many[name]] == []


def test_nobody_writes_any_more_when_one_file_could_not_be_written(tmp_path: Path, helpers: ThreadPoolExecutor) -> None:
    with pytest.raises(OSError, match="File name too long"):
        unpacked(layer(300, last="x" * 300), tmp_path / "many", helpers)
    before = seen(tmp_path / "many")
    helpers.shutdown()
    assert seen(tmp_path / "many") == before
