"""A hostile or damaged archive is refused whole: nothing of it stays, and nothing outside is touched."""

import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.errors import EngineError
from moorage_guest.images.compression import BOMB_FLOOR
from moorage_guest.images.tarformat import TarError

from tests.support.images import Content, docker_archive, layer_tar
from tests.support.imagestore import Shelf, image_api, serving, shelf

pytestmark = pytest.mark.root


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path / "data") as found:
        yield found


def special(kind: bytes, *, link: str = "", device: tuple[int, int] = (0, 0)) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, link
    info.devmajor, info.devminor = device
    return info


def with_xattr(key: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.pax_headers = {f"SCHILY.xattr.{key}": "y"}
    return info


HOSTILE_LAYERS: dict[str, list[tuple[str, Content]]] = {
    "absolute path": [("/etc/evil", b"x")],
    "climbing path": [("a/../../evil", b"x")],
    "only dots": [("..", None)],
    "symbolic link that climbs": [("d", None), ("d/l", "../../evil")],
    "hard link that climbs": [("l", special(tarfile.LNKTYPE, link="../../../etc/passwd"))],
    "hard link to nothing": [("l", special(tarfile.LNKTYPE, link="/etc/passwd"))],
    "path through an absolute link": [("l", "/etc"), ("l/evil", b"x")],
    "path through a loop": [("l", "m"), ("m", "l"), ("l/x", b"x")],
    "block device": [("sda", special(tarfile.BLKTYPE, device=(8, 0)))],
    "memory device": [("mem", special(tarfile.CHRTYPE, device=(1, 1)))],
    "whiteout of the parent": [("d", None), ("d/.wh...", b"")],
    "the same file twice": [("f", b"1"), ("f", b"2")],
    "a link where a file was": [("f", b"1"), ("f", "/etc/passwd")],
    "a file where a folder was": [("f", None), ("f", b"2")],
    "a file as a folder": [("f", b"1"), ("f/x", b"2")],
    "the storage driver's attribute": [("f", with_xattr("trusted.overlay.redirect"))],
}


@pytest.mark.parametrize("what", HOSTILE_LAYERS)
async def test_a_hostile_layer_is_refused(opened: Shelf, what: str, tmp_path: Path) -> None:
    good = layer_tar({"good": b"x"})
    with pytest.raises(TarError):
        opened.load(docker_archive([good, layer_tar(HOSTILE_LAYERS[what])], tags=["evil:1"]))
    assert opened.files() == set()
    assert opened.images.all() == []
    assert opened.images.layer_store.all() == []
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def outer(*entries: tuple[str, Content]) -> bytes:
    return layer_tar(entries)


def archives() -> dict[str, bytes]:
    layer = layer_tar({"a": b"x" * 5000})
    whole = docker_archive([layer], tags=["x:1"])
    packed = docker_archive([layer], tags=["x:1"], compress=True)

    def wrong(change: Callable[[dict[str, Any]], None]) -> bytes:
        return docker_archive([layer], tags=["x:1"], change_document=change)

    def other_digest(document: dict[str, Any]) -> None:
        document["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]

    blob = hashlib.sha256(b"else").hexdigest()
    return {
        "cut in the layer": whole[:3000],
        "cut in a header": whole[: 512 + 300],
        "cut before the manifest": whole[:7680],
        "empty": b"",
        "no archive": b"hello world" * 1000,
        "cut gzip": gzip.compress(whole)[:-200],
        "broken gzip": gzip.compress(whole)[:300] + b"\0" * 500,
        "wrong digest": wrong(other_digest),
        "no digest": wrong(lambda d: d["rootfs"].update(diff_ids=["nonsense"])),
        "too few digests": wrong(lambda d: d["rootfs"].update(diff_ids=[])),
        "no rootfs": wrong(lambda d: d.pop("rootfs")),
        "another system": wrong(lambda d: d.update(os="windows")),
        "layer cut inside": docker_archive([layer[:3000]], tags=["x:1"]),
        "wrong checksum": docker_archive([layer[:148] + b"0000000\0" + layer[156:]], tags=["x:1"]),
        "cut compressed layer": packed.replace(gzip.compress(layer, 1, mtime=0), gzip.compress(layer, 1, mtime=0)[:-4] + b"\0\0\0\0"),
        "bad tag": docker_archive([layer], tags=["UPPER CASE"]),
        "two manifests": outer(("manifest.json", b"[]"), ("manifest.json", b"[]")),
        "manifest of nothing": outer(("manifest.json", b"[]")),
        "manifest without layers": outer(("manifest.json", json.dumps([{"Config": "c", "Layers": ["l"]}]).encode())),
        "manifest that climbs": outer(("manifest.json", json.dumps([{"Config": "../../c", "Layers": []}]).encode())),
        "absolute name": outer(("/manifest.json", b"[]")),
        "climbing name": outer(("../x", b"x"), ("manifest.json", b"[]")),
        "device in the archive": outer(("x", special(tarfile.BLKTYPE, device=(8, 0)))),
        "link out of the archive": outer(("manifest.json", "../../etc/passwd")),
        "blob with another's name": outer((f"blobs/sha256/{blob}", b"what"), ("manifest.json", b"[]")),
        "deep json": outer(("manifest.json", b"[" * 100_000)),
    }  # fmt: skip


@pytest.mark.parametrize("what", archives())
async def test_a_damaged_archive_is_refused(opened: Shelf, what: str) -> None:
    with pytest.raises(EngineError) as caught:
        opened.load(archives()[what])
    assert caught.value.status == 400, repr(caught.value)
    assert opened.files() == set()
    assert opened.images.all() == []


async def test_a_bomb_is_refused_long_before_the_disk_is_full(opened: Shelf) -> None:
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 20)
    bomb = b"".join([*(pack.compress(block) for _ in range((BOMB_FLOOR >> 20) + 8)), pack.flush()])
    with pytest.raises(TarError, match="bomb"):
        opened.load(bomb)
    assert opened.files() == set()


async def test_the_cli_is_told_what_is_wrong(opened: Shelf) -> None:
    async with serving(opened, image_api(opened)):
        done = await opened.docker("load", input=docker_archive([layer_tar({"/etc/evil": b"x"})], tags=["x:1"]))
        assert done.returncode != 0
        assert b"absolute path" in done.stderr
        big = docker_archive([layer_tar([("a", bytes(3 << 20)), ("a", b"x")])], tags=["x:1"])
        done = await opened.docker("load", input=big)
        assert b'duplicate entry "a"' in done.stderr


async def test_harmless_oddities_are_taken(opened: Shelf) -> None:
    entries: list[tuple[str, Content]] = [
        ("./d/", None), ("d", None), ("./d/f", b"1"), ("l", "d"), ("l/through", b"2"), ("up", "d/../d/f"),
        ("abs", "/d/f"), ("hard", special(tarfile.LNKTYPE, link="./d/f")), ("null", special(tarfile.CHRTYPE, device=(1, 3))),
        ("fifo", special(tarfile.FIFOTYPE)), ("n" * 200 + "/" + "m" * 200, b"long"), ("ü" * 60, b"utf"), ("cap", with_xattr("user.x")),
        (".wh.f0", b""), ("f0", b"again"),
    ]  # fmt: skip
    (image,) = opened.load(docker_archive([layer_tar({"f0": b"0"}), layer_tar(entries)], tags=["x:1"]))
    await opened.layers.create_rw("c", image.id)
    root = await opened.layers.mount("c")
    assert (root / "d/through").read_bytes() == b"2"
    assert (root / "hard").stat().st_nlink == 2
    assert (root / "f0").read_bytes() == b"again"
    assert (root / ("n" * 200) / ("m" * 200)).read_bytes() == b"long"
    assert (root / "null").is_char_device()
