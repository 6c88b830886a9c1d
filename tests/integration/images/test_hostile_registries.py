"""What a hostile or broken registry serves is refused whole while it is unpacked on the way; odd but honest images are taken."""

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from moorage_guest.errors import EngineError
from moorage_guest.images import names
from moorage_guest.images.compression import BOMB_FLOOR
from moorage_guest.images.image import Image
from moorage_guest.images.platforms import this_platform
from moorage_guest.images.pulling import pull
from moorage_guest.images.registry import Credentials, RegistryError, RegistrySettings
from moorage_guest.images.tarformat import TarError

from tests.integration.images.test_hostile_archives import HOSTILE_LAYERS
from tests.support.handmade import INDEX, HandmadeRegistry
from tests.support.images import layer_tar
from tests.support.imagestore import Shelf, shelf

pytestmark = pytest.mark.root

GOOD = layer_tar({"good": b"x" * 3000})


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path / "data") as found:
        found.images.configure(RegistrySettings(max_download_attempts=1))
        yield found


@pytest.fixture
def served() -> Iterator[HandmadeRegistry]:
    with contextlib.closing(HandmadeRegistry()) as running:
        yield running


async def pulled(opened: Shelf, served: HandmadeRegistry, tag: str = "1") -> Image:
    def ignore(message: dict[str, Any]) -> None:
        return None

    reference = names.parse(f"{served.host}/x:{tag}")
    (image,) = await pull(opened.images, reference, ignore, credentials=Credentials())
    return image


async def refused(opened: Shelf, served: HandmadeRegistry, error: type[EngineError], message: str = ".") -> None:
    with pytest.raises(error, match=message):
        await pulled(opened, served)
    assert opened.images.all() == []
    assert opened.files() == set()
    assert opened.images.layer_store.all() == []


@pytest.mark.parametrize("what", HOSTILE_LAYERS)
async def test_a_hostile_layer_is_refused_while_it_comes(
    opened: Shelf, served: HandmadeRegistry, tmp_path: Path, what: str
) -> None:
    layers = [GOOD, layer_tar(HOSTILE_LAYERS[what])]
    served.image(layers, "1", packed=[gzip.compress(each, 1) for each in layers], suffix="+gzip")
    await refused(opened, served, TarError)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


async def test_a_bomb_is_refused_while_it_comes(opened: Shelf, served: HandmadeRegistry) -> None:
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = layer_tar({"zeros": b""})[:512]
    block = bytes(1 << 20)
    bomb = pack.compress(head) + b"".join(pack.compress(block) for _ in range((BOMB_FLOOR >> 20) * 4)) + pack.flush()
    served.image([GOOD], "1", packed=[bomb], suffix="+gzip")
    await refused(opened, served, TarError)


async def test_a_layer_of_another_content_is_refused(opened: Shelf, served: HandmadeRegistry) -> None:
    served.image([GOOD], "1", packed=[gzip.compress(layer_tar({"other": b"y"}))], suffix="+gzip")
    await refused(opened, served, TarError, "the image's configuration says")


async def test_a_layer_cut_short_inside_its_compression_is_refused(opened: Shelf, served: HandmadeRegistry) -> None:
    served.image([GOOD], "1", packed=[gzip.compress(GOOD)[:-9]], suffix="+gzip")
    await refused(opened, served, TarError, "unexpected EOF")


async def test_a_layer_longer_than_its_manifest_says_is_refused(opened: Shelf, served: HandmadeRegistry) -> None:
    served.image([GOOD], "1", size=len(GOOD) - 1)
    await refused(opened, served, TarError, "longer than")


async def test_a_layer_shorter_than_its_manifest_says_is_no_image(opened: Shelf, served: HandmadeRegistry) -> None:
    served.image([GOOD], "1", size=len(GOOD) + 1)
    with pytest.raises(RegistryError, match="filesystem layer verification failed"):
        await pulled(opened, served)
    assert opened.images.all() == []
    await opened.images.prune()
    assert opened.files() == set()


async def test_bytes_with_another_digest_are_refused(opened: Shelf, served: HandmadeRegistry) -> None:
    served.image([GOOD], "1")
    (name,) = [each for each, data in served.blobs.items() if data == GOOD]
    served.blobs[name] = layer_tar({"good": b"y" * 3000})
    await refused(opened, served, RegistryError, "verification failed")


async def test_plain_and_zstd_layers_and_attestations_are_taken(opened: Shelf, served: HandmadeRegistry) -> None:
    here = this_platform()
    plain = served.image([GOOD])
    packed = [zstandard.ZstdCompressor().compress(each) for each in (GOOD, layer_tar({"more": b"z"}))]
    newer = served.image([GOOD, layer_tar({"more": b"z"})], "zstd", packed=packed, suffix="+zstd")
    note = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": plain["digest"]}
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries = [
        {**newer, "platform": unknown, "annotations": note},
        {**newer, "platform": {"os": "linux", "architecture": "s390x"}},
        {**plain, "platform": {"os": "linux", "architecture": here.architecture}},
    ]
    index = served.document(INDEX, {"manifests": entries}, "1")
    image = await pulled(opened, served)
    assert image.digests == (f"{served.host}/x@{index['digest']}",)
    assert (await pulled(opened, served, "zstd")).size == 3001
    await opened.layers.create_rw("c", opened.images.resolve(f"{served.host}/x:zstd").id)
    assert ((await opened.layers.mount("c")) / "more").read_bytes() == b"z"


async def test_pulls_of_one_image_at_a_time_fetch_every_blob_once(opened: Shelf, served: HandmadeRegistry) -> None:
    served.image([GOOD, layer_tar({"more": b"z"})], "1")
    served.image([GOOD, layer_tar({"other": b"z"})], "2")
    served.gate.clear()
    pulls = [asyncio.create_task(pulled(opened, served, tag)) for tag in ("1", "1", "2")]
    assert await asyncio.to_thread(served.begun.wait, 60)
    served.gate.set()
    first, again, _other = await asyncio.gather(*pulls)
    assert first.id == again.id
    asked = {
        path: count
        for path, count in served.asked.items()
        if "/blobs/" in path and served.blobs[path.rpartition("/")[2]][:1] != b"{"
    }
    assert len(asked) == 3
    assert set(asked.values()) == {1}


async def test_who_gives_up_one_of_two_pulls_does_not_spoil_the_other(opened: Shelf, served: HandmadeRegistry) -> None:
    served.image([GOOD, layer_tar({"more": b"z"})], "1")
    served.gate.clear()
    first, second = [asyncio.create_task(pulled(opened, served)) for _ in range(2)]
    assert await asyncio.to_thread(served.begun.wait, 60)
    first.cancel()
    served.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    image = await second
    assert len(image.chain) == 2
    assert opened.images.all() == [image]
