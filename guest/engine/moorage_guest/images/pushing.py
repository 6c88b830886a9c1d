"""Pushes images: layers that the registry lacks, side by side, then configuration and manifest.

Layers are kept uncompressed when they were made here; for the wire they are compressed with gzip, always to the same bytes.
"""

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from moorage_guest.errors import NotFound, Unauthorized
from moorage_guest.images import content as media
from moorage_guest.images import gzipping, names
from moorage_guest.images.content import Ingest
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.pulling import first_error
from moorage_guest.images.registry import Credentials, Registry, RegistryError
from moorage_guest.images.store import Images
from moorage_guest.images.streams import Progress, bar, finished

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_INTERVAL = 0.1

_DOCKER_LAYER_GZIP = f"{media.DOCKER_LAYER}.gzip"


async def push(
    images: Images,
    reference: names.Reference,
    progress: Progress,
    *,
    credentials: Credentials,
    everything: bool = False,
) -> None:
    """Push one tag, or every tag of the repository. Raises NotFound, Unauthorized, RegistryError."""
    if reference.digest:
        raise NotFound("cannot push a digest reference")
    wanted = [reference.with_default_tag()]
    if everything:
        tags = (names.parse(tag) for image in images.all() for tag in image.tags)
        wanted = sorted((tag for tag in tags if tag.name == reference.name), key=str)
    chosen = [(tag, image) for tag in wanted if (image := images.find(str(tag))) is not None]
    if not chosen:
        raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
    progress({"status": f"The push refers to repository [{reference.name}]"})
    async with Registry(reference, images.registries, credentials, push=True) as registry:
        for tag, image in chosen:
            try:
                await _push_one(images, registry, tag, image, progress)
            except BaseExceptionGroup as group:
                raise first_error(group) from None
            images.publish("push", image, tag.familiar)


@dataclass(frozen=True)
class _Descriptor:
    media_type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "size": self.size, "digest": self.digest}


async def _push_one(images: Images, registry: Registry, tag: names.Reference, image: Image, progress: Progress) -> None:
    for layer in image.layers:
        progress({"status": "Preparing", "progressDetail": {}, "id": layer.diff_id[7:19]})
    owner = f"push:{id(progress)}:{image.id}"
    images.content.holds.hold(owner, [image.id, image.manifest, *(layer.digest for layer in image.layers)])
    try:
        unique = {layer.digest: layer for layer in image.layers}
        async with asyncio.TaskGroup() as group:
            tasks = {
                digest: group.create_task(_push_layer(images, registry, layer, image, progress), name=f"push {digest}")
                for digest, layer in unique.items()
            }
        pushed = [tasks[layer.digest].result() for layer in image.layers]
        config = _Descriptor(media.DOCKER_CONFIG, image.id, images.content.size(image.id))
        if not await _exists(registry, image.id):
            raw = await asyncio.to_thread(images.content.read, image.id)
            await _upload_bytes(registry, image.id, raw)
        data, kind = await asyncio.to_thread(_manifest, images, image, config, pushed)
        digest = await finished(asyncio.to_thread(images.content.add, data))
        images.content.holds.hold(owner, [digest])
        headers = {"Content-Type": kind}
        async with registry.request("PUT", f"manifests/{tag.tag}", headers=headers, data=data, expect=(200, 201, 202)):
            pass
        await finished(asyncio.to_thread(images.add_digest, image, f"{tag.name}@{digest}", digest))
    finally:
        await finished(asyncio.to_thread(images.content.holds.release, owner))
    progress({"status": f"{tag.tag}: digest: {digest} size: {len(data)}"})
    progress({"progressDetail": {}, "aux": {"Tag": tag.tag, "Digest": digest, "Size": len(data)}})


def _manifest(images: Images, image: Image, config: _Descriptor, pushed: list[_Descriptor]) -> tuple[bytes, str]:
    """Return the manifest as it came when its layers go as they came, else one in Docker's format."""
    own = images.content.read(image.manifest)
    document = json.loads(own)
    if [each.get("digest") for each in document.get("layers", [])] == [each.digest for each in pushed] and any(
        "gzip" in str(each.get("mediaType")) or "zstd" in str(each.get("mediaType")) for each in document["layers"]
    ):
        return own, str(document.get("mediaType") or media.MANIFEST)
    made = {
        "schemaVersion": 2,
        "mediaType": media.DOCKER_MANIFEST,
        "config": config.to_json(),
        "layers": [each.to_json() for each in pushed],
    }
    return json.dumps(made, indent=3).encode(), media.DOCKER_MANIFEST


async def _exists(registry: Registry, digest: str) -> bool:
    try:
        async with registry.request("HEAD", f"blobs/{digest}"):
            return True
    except NotFound:
        return False


async def _push_layer(
    images: Images, registry: Registry, layer: LayerBlob, image: Image, progress: Progress
) -> _Descriptor:
    short = layer.diff_id[7:19]
    plain = layer.digest == layer.diff_id
    known: tuple[str, int] | None = images.compressed(layer.digest) if plain else (layer.digest, layer.size)
    if known is not None and await _exists(registry, known[0]):
        progress({"status": "Layer already exists", "progressDetail": {}, "id": short})
        return _described(layer, *known)
    if images.transfers.uploads.locked():
        progress({"status": "Waiting", "progressDetail": {}, "id": short})
    async with images.transfers.uploads:
        if known is not None and (origin := _origin(image, registry)) and await _mounted(registry, known[0], origin):
            progress({"status": f"Mounted from {origin}", "progressDetail": {}, "id": short})
            return _described(layer, *known)
        if not plain:
            await _upload_file(registry, images.content.path(layer.digest), layer.digest, layer.size, short, progress)
            result = (layer.digest, layer.size)
        else:
            with closing(_Compressed(images)) as packed:
                async with images.transfers.packing:
                    await finished(asyncio.to_thread(packed.fill, images.content.path(layer.digest)))
                result = (packed.ingest.digest, packed.ingest.size)
                await asyncio.to_thread(images.note_compressed, layer.digest, *result)
                if not await _exists(registry, result[0]):
                    await _upload_file(registry, packed.ingest.path, *result, short, progress)
    progress({"status": "Pushed", "progressDetail": {}, "id": short})
    return _described(layer, *result)


def _described(layer: LayerBlob, digest: str, size: int) -> _Descriptor:
    kind = _DOCKER_LAYER_GZIP if layer.digest == layer.diff_id else _docker_type(layer.media_type)
    return _Descriptor(kind, digest, size)


def _docker_type(kind: str) -> str:
    return _DOCKER_LAYER_GZIP if kind == f"{media.LAYER}+gzip" else kind


def _origin(image: Image, registry: Registry) -> str:
    """Return another repository of the same registry that has the image."""
    for each in image.digests:
        name = names.parse(each)
        if name.domain == registry.name.domain and name.path != registry.name.path:
            return name.path
    return ""


async def _mounted(registry: Registry, digest: str, origin: str) -> bool:
    """Ask the registry to take a blob from another of its repositories; ends the upload it may begin instead."""
    params = {"mount": digest, "from": origin}
    try:
        async with registry.request("POST", "blobs/uploads/", params=params, data=b"", expect=(201, 202)) as response:
            if response.status == 201:
                return True
            location = urljoin(str(response.url), response.headers.get("Location", ""))
        async with registry.request("DELETE", location, expect=(200, 202, 204)):
            return False
    except (RegistryError, NotFound, Unauthorized):
        return False


class _Compressed:
    """A gzip file of a layer, thrown away at the end."""

    def __init__(self, images: Images) -> None:
        self.ingest: Ingest = images.content.ingest()

    def fill(self, path: Path) -> None:
        """Compress a file. Blocks."""
        with path.open("rb") as file:
            for piece in gzipping.compressed(iter(lambda: file.read(gzipping.PIECE), b"")):
                self.ingest.write(piece)

    def close(self) -> None:
        self.ingest.discard()


async def _start_upload(registry: Registry) -> str:
    async with registry.request("POST", "blobs/uploads/", data=b"", expect=(202,)) as response:
        location = response.headers.get("Location", "")
        if not location:
            raise RegistryError("the registry gave no place to upload to")
        return urljoin(str(response.url), location)


def _with_digest(location: str, digest: str) -> str:
    parts = urlsplit(location)
    query = f"{parts.query}&digest={digest}" if parts.query else f"digest={digest}"
    return urlunsplit(parts._replace(query=query))


async def _upload_bytes(registry: Registry, digest: str, data: bytes) -> None:
    location = await _start_upload(registry)
    headers = {"Content-Type": "application/octet-stream"}
    async with registry.request("PUT", _with_digest(location, digest), headers=headers, data=data, expect=(201, 204)):
        pass


async def _upload_file(registry: Registry, path: Path, digest: str, size: int, short: str, progress: Progress) -> None:
    """Upload in one piece; when that breaks off, ask how far it came and go on from there."""
    location = await _start_upload(registry)
    sent = 0
    attempts = max(registry.settings.max_download_attempts, 1)
    for attempt in range(1, attempts + 1):
        start = sent

        def body(start: int = start) -> AsyncIterator[bytes]:
            return _read(path, start, size, short, progress)

        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size - start),
            "Content-Range": f"{start}-{max(size - 1, 0)}",
        }
        try:
            async with registry.request(
                "PATCH", location, headers=headers, data=body, expect=(201, 202, 204)
            ) as response:
                location = urljoin(str(response.url), response.headers.get("Location", location))
            break
        except RegistryError as error:
            if attempt == attempts or not isinstance(error.__cause__, Exception):
                raise
            log.info("upload of %s broke off (%s): trying again", digest, error)
            await asyncio.sleep(min(attempt, 10))
            location, sent = await _where(registry, location)
    async with registry.request("PUT", _with_digest(location, digest), data=b"", expect=(201, 204)):
        pass


async def _where(registry: Registry, location: str) -> tuple[str, int]:
    """Return where an upload goes on; a new one when the registry has forgotten it."""
    try:
        async with registry.request("GET", location, expect=(204,)) as response:
            match = re.fullmatch(r"0-(\d+)", response.headers.get("Range", ""))
            done = int(match[1]) + 1 if match and int(match[1]) else 0
            return urljoin(str(response.url), response.headers.get("Location", location)), done
    except (NotFound, RegistryError):
        return await _start_upload(registry), 0


async def _read(path: Path, start: int, size: int, short: str, progress: Progress) -> AsyncIterator[bytes]:
    def pieces() -> Iterator[bytes]:
        with path.open("rb", buffering=0) as file:
            file.seek(start, os.SEEK_SET)
            while data := file.read(_CHUNK):
                yield data

    source = pieces()
    loop = asyncio.get_running_loop()
    told, current = 0.0, start
    while (data := await asyncio.to_thread(next, source, b"")) != b"":
        yield data
        current += len(data)
        if loop.time() - told >= _INTERVAL or current == size:
            told = loop.time()
            detail = {"current": current, "total": size}
            progress({"status": "Pushing", "progressDetail": detail, "progress": bar(current, size), "id": short})
