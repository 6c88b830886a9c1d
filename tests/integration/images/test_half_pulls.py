"""A pull that broke off is gone on with by the next one, also after a restart; until then it is accounted for and can be freed."""

import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.images import listing, names
from moorage_guest.images.pulling import pull
from moorage_guest.images.pushing import push
from moorage_guest.images.registry import Credentials, RegistryError, RegistrySettings

from tests.support.cutting import CuttingProxy
from tests.support.images import docker_archive, layer_tar
from tests.support.imagestore import Shelf, shelf
from tests.support.registry import Registry, registry

pytestmark = pytest.mark.root

ANONYMOUS = Credentials()
SIZE = 6 << 20
#: Where the first connection for the big layer is cut.
CUT = 4 << 20


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
async def broken_off(tmp_path: Path, plain: Registry) -> AsyncIterator[Path]:
    """A data root, closed again, in which a pull of ``big:1`` broke off after one of its two layers and most of the other."""
    data = tmp_path / "data"
    noise = random.Random(3)
    layers = [layer_tar({"big": noise.randbytes(SIZE)}), layer_tar({"small": noise.randbytes(1 << 20)})]
    async with shelf(data) as opened:
        opened.load(docker_archive(layers, tags=[f"{plain.host}/big:1"]))
        await push(opened.images, names.parse(f"{plain.host}/big:1"), ignore, credentials=ANONYMOUS)
        await opened.images.remove(f"{plain.host}/big:1", force=True)
        opened.images.configure(RegistrySettings(max_download_attempts=1))
        with contextlib.closing(CuttingProxy(plain.port, CUT, 100)) as proxy:
            with pytest.raises(RegistryError):
                await pull(opened.images, name(proxy), ignore, credentials=ANONYMOUS)
        assert opened.images.all() == []
    yield data


def ignore(message: dict[str, Any]) -> None:
    return None


def name(proxy: CuttingProxy) -> names.Reference:
    return names.parse(f"127.0.0.1:{proxy.port}/big:1")


def halves(data: Path) -> list[Path]:
    return sorted((data / "image" / "halves").iterdir(), key=lambda path: path.stat().st_size)


async def fetched_again(opened: Shelf, plain: Registry) -> int:
    """Pull the image, see that it is whole and return the bytes that went over the wire."""
    with contextlib.closing(CuttingProxy(plain.port, 0, 0)) as proxy:
        (image,) = await pull(opened.images, name(proxy), ignore, credentials=ANONYMOUS)
    assert image.size == SIZE + (1 << 20)
    assert all(opened.images.content.verify(layer.digest) for layer in image.layers)
    assert halves(opened.data_root.root) == []
    assert opened.images.stored_bytes() == image.size
    return proxy.given


async def test_the_next_daemon_goes_on_where_the_last_one_stood(broken_off: Path, plain: Registry) -> None:
    kept = sum(path.stat().st_size for path in halves(broken_off))
    assert kept > CUT // 2
    async with shelf(broken_off) as opened:
        assert opened.images.stored_bytes() == kept
        given = await fetched_again(opened, plain)
    assert given < SIZE + (1 << 20) - kept + 100_000


async def test_half_pulls_count_as_disk_usage_until_they_are_pruned(broken_off: Path) -> None:
    kept = sum(path.stat().st_size for path in halves(broken_off))
    async with shelf(broken_off) as opened:
        assert listing.disk_usage(opened.images)["LayersSize"] == kept
        assert await opened.images.prune(keep=lambda image: False) == ([], 0)
        assert await opened.images.prune(until=time.time() - 3600) == ([], 0)
        assert await opened.images.prune() == ([], kept)
        assert listing.disk_usage(opened.images)["LayersSize"] == 0
        assert opened.files() == set()


async def test_a_damaged_half_is_fetched_anew(broken_off: Path, plain: Registry) -> None:
    with halves(broken_off)[-1].open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    async with shelf(broken_off) as opened:
        assert await fetched_again(opened, plain) > SIZE


async def test_a_half_of_long_ago_is_not_there_after_a_restart(broken_off: Path) -> None:
    old = time.time() - 8 * 24 * 3600
    for path in halves(broken_off):
        os.utime(path, (old, old))
    async with shelf(broken_off) as opened:
        assert opened.files() == set()
