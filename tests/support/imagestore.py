"""An image store in a temporary folder, with its routes on a socket when a client is wanted. Needs root."""

import asyncio
import contextlib
import io
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from moorage_guest.api import images as image_routes
from moorage_guest.api.server import ApiRequest, ApiServer, Route, json_response
from moorage_guest.events import EventBus
from moorage_guest.images import loading
from moorage_guest.images.buildcache import BuildCache
from moorage_guest.images.image import Image
from moorage_guest.images.layers import Layers
from moorage_guest.images.store import Images
from moorage_guest.images.streams import BufferedSource
from moorage_guest.paths import DataRoot
from moorage_guest.store import Store


@dataclass
class Shelf:
    """The objects of one data root."""

    data_root: DataRoot
    store: Store
    images: Images
    layers: Layers
    events: EventBus
    cache: BuildCache
    socket: Path | None = None

    def load(self, archive: bytes) -> list[Image]:
        """Load an archive."""
        return loading.load(self.images, source(archive), lambda message: None)

    def files(self) -> set[str]:
        """Every file of the data root but the database and the layout's own."""
        found = set()
        for folder, _, names in os.walk(self.data_root.root):
            for name in names:
                path = Path(folder, name).relative_to(self.data_root.root)
                if not str(path).startswith("moorage.db") and path.name not in ("index.json", "oci-layout"):
                    found.add(str(path))
        return found

    async def docker(self, *argv: str, input: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        """Run the docker CLI against the routes."""
        return await asyncio.to_thread(
            subprocess.run, ["docker", "-H", f"unix://{self.socket}", *argv], input=input, capture_output=True,
            timeout=120, env={**os.environ, "DOCKER_CONFIG": str(self.data_root.root / "cli")},
        )  # fmt: skip


def source(data: bytes) -> BufferedSource:
    """Return data as a source that gives it in odd pieces."""
    stream = io.BytesIO(data)
    return BufferedSource(lambda: stream.read(70_001))


@contextlib.asynccontextmanager
async def shelf(root: Path, *, live: tuple[str, ...] = ()) -> AsyncIterator[Shelf]:
    """Open (or open again) the data root ``root``; everything but its files ends with the block."""
    data_root = DataRoot(root)
    store = Store(data_root.database)
    events = EventBus()
    images = Images(data_root, store, events)
    await images.start()
    layers = Layers(data_root, store, images)
    cache = BuildCache(data_root.build_cache, store, images)
    await cache.start()
    await layers.restore(live)
    await images.sweep()
    try:
        yield Shelf(data_root, store, images, layers, events, cache)
    finally:
        for entry in (data_root.root / "mounts").glob("*"):
            await layers.unmount(entry.name)
        await layers.close()
        await images.close()
        store.close()


@contextlib.asynccontextmanager
async def serving(opened: Shelf, routes: list[Route]) -> AsyncIterator[Shelf]:
    """Serve routes (and those that every client asks for) on a socket in the data root."""

    async def ping(request: ApiRequest) -> web.StreamResponse:
        return web.Response(text="OK")

    async def version(request: ApiRequest) -> web.StreamResponse:
        answer: dict[str, Any] = {"Version": "1", "ApiVersion": "1.51", "MinAPIVersion": "1.24", "Os": "linux"}
        return json_response(answer)

    server = ApiServer([*routes, Route("GET", "/_ping", ping), Route("GET", "/version", version)])
    opened.socket = opened.data_root.root.parent / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(opened.socket))
    listener.listen()
    try:
        await server.serve(listener)
        yield opened
    finally:
        await server.close()
        listener.close()
        opened.socket.unlink(missing_ok=True)


def image_api(opened: Shelf) -> list[Route]:
    """Return the routes of images."""
    return image_routes.routes(opened.images)


def assert_whole(opened: Shelf) -> None:
    """Everything that images need is there and right, and nothing else but half pulls."""
    blobs: set[str] = set()
    chains: set[str] = set()
    for each in opened.images.all():
        blobs |= {each.id, each.manifest, *each.hidden, *(layer.digest for layer in each.layers)}
        chains |= set(each.chain)
    assert set(opened.images.content.digests()) == blobs
    assert all(opened.images.content.verify(digest) for digest in blobs)
    assert {layer.chain_id for layer in opened.images.layer_store.all()} == chains
    folders = {layer.folder for layer in opened.images.layer_store.all()}
    assert {path.name for path in opened.data_root.layers.iterdir()} - {"base"} == folders
    assert list(opened.images.content.tmp.iterdir()) == []
    mounts = opened.data_root.root / "mounts"
    assert not mounts.exists() or list(mounts.iterdir()) == []
