"""Pulls images: manifest or index, layers side by side with resume and digest check, progress as dockerd streams it."""

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from moorage_guest.errors import EngineError, NotFound, Unauthorized
from moorage_guest.images import content as media
from moorage_guest.images import names
from moorage_guest.images.compression import Bounded, check_diff_id, compression, write_all
from moorage_guest.images.content import Ingest
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.layerstore import chain_ids
from moorage_guest.images.loading import diff_ids_of
from moorage_guest.images.platforms import Platform, choose, this_platform
from moorage_guest.images.registry import Credentials, Manifest, Registry, RegistryError
from moorage_guest.images.store import Images
from moorage_guest.images.streams import Progress, bar
from moorage_guest.images.tarformat import TarError

log = logging.getLogger(__name__)

#: Bytes that are gathered before a thread hashes, decompresses and writes them.
_BATCH = 1 << 20

#: Seconds between two progress messages of one layer.
_INTERVAL = 0.1


async def pull(
    images: Images,
    reference: names.Reference,
    progress: Progress,
    *,
    credentials: Credentials,
    platform: Platform | None = None,
    everything: bool = False,
) -> list[Image]:
    """Pull a tag, a digest or every tag. Raises NotFound, Unauthorized, RegistryError, TarError; a failed pull leaves nothing."""
    async with Registry(reference, images.registries, credentials) as registry:
        try:
            if everything:
                found = []
                for tag in await registry.tags():
                    one = names.Reference(reference.domain, reference.path, tag)
                    found.append(await _pull_one(images, registry, one, progress, platform))
                return found
            return [await _pull_one(images, registry, reference.with_default_tag(), progress, platform)]
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        except Unauthorized as error:
            raise NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {error}"
            ) from None


async def find_manifest(
    registry: Registry, reference: names.Reference, platform: Platform | None
) -> tuple[list[Manifest], Manifest]:
    """Return the indexes on the way and the manifest of the image for a platform. Raises NotFound, RegistryError."""
    try:
        found = await registry.manifest(reference.digest or reference.tag)
    except (NotFound, RegistryError) as error:
        if registry.give_up_mirror():
            log.info("mirror has no %s (%s): asking the registry itself", reference.familiar, error)
            return await find_manifest(registry, reference, platform)
        if isinstance(error, NotFound):
            raise NotFound(f"manifest for {reference.familiar} not found: {error}") from None
        raise
    above: list[Manifest] = []
    while "manifests" in (document := found.document()):
        above.append(found)
        entries = document["manifests"]
        if len(above) > 4 or not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise RegistryError(f"invalid index of {reference.familiar}")
        chosen = choose(entries, platform)
        if chosen is None or not names.DIGEST.fullmatch(str(chosen.get("digest"))):
            raise NotFound(f"no matching manifest for {platform or this_platform()} in the manifest list entries")
        found = await registry.manifest(str(chosen["digest"]))
    return above, found


async def _pull_one(
    images: Images, registry: Registry, reference: names.Reference, progress: Progress, platform: Platform | None
) -> Image:
    above, manifest = await find_manifest(registry, reference, platform)
    document = manifest.document()
    if document.get("schemaVersion") != 2 or not isinstance(document.get("config"), dict):
        raise RegistryError(
            f"manifest of {reference.familiar} is of a kind that is not supported "
            f"({manifest.media_type or 'unknown'}): only Docker schema 2 and OCI images are"
        )
    progress({"status": f"Pulling from {reference.path}", "id": reference.digest or reference.tag})
    top = above[0] if above else manifest
    async with _working(images) as owner:
        for each in (*above, manifest):
            images.content.holds.hold(owner, [each.digest])
            await asyncio.to_thread(images.content.add, each.data)
        raw, layers = await _contents(images, registry, document, platform, owner, progress, reference)
        known = images.find(str(document["config"]["digest"]))
        before = known is not None and (not reference.tag or str(reference) in known.tags)
        bare = f"{reference.name}@{top.digest}"
        image = await asyncio.to_thread(
            lambda: images.create(
                raw,
                layers,
                owner=owner,
                manifest=manifest.digest,
                tags=[] if reference.digest else [str(reference)],
                digests=[bare],
                hidden=[each.digest for each in above],
            )
        )
    progress({"status": f"Digest: {top.digest}"})
    state = "Image is up to date for" if before else "Downloaded newer image for"
    progress({"status": f"Status: {state} {reference.familiar}"})
    images.publish("pull", image, reference.familiar)
    return image


@asynccontextmanager
async def _working(images: Images) -> AsyncIterator[str]:
    manager = images.work("pull")
    owner = manager.__enter__()
    try:
        yield owner
    finally:
        await asyncio.shield(asyncio.to_thread(manager.__exit__, None, None, None))


async def _contents(
    images: Images,
    registry: Registry,
    document: Mapping[str, Any],
    platform: Platform | None,
    owner: str,
    progress: Progress,
    reference: names.Reference,
) -> tuple[bytes, list[LayerBlob]]:
    """Fetch configuration and layers, unpacked and held by ``owner``."""
    try:
        config_digest = str(document["config"]["digest"])
        descriptors = [(str(each["digest"]), int(each["size"]), str(each["mediaType"])) for each in document["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryError(f"invalid manifest of {reference.familiar}: {error!r}") from None
    for digest in (config_digest, *(each[0] for each in descriptors)):
        if not names.DIGEST.fullmatch(digest):
            raise RegistryError(f"invalid digest {digest!r} in the manifest of {reference.familiar}")
    kind = str(document["config"].get("mediaType"))
    if kind not in (media.CONFIG, media.DOCKER_CONFIG):
        raise RegistryError(f'Encountered remote "{kind}"(unknown) when fetching {reference.familiar}: it is no image')
    raw = await _config(images, registry, config_digest, owner)
    diff_ids = diff_ids_of(media.parse_document(raw))
    if len(diff_ids) != len(descriptors):
        raise TarError(f"invalid manifest, layers length mismatch: expected {len(descriptors)}, got {len(diff_ids)}")
    check_platform(media.parse_document(raw), platform, reference)
    chain = chain_ids(diff_ids)
    layers: list[LayerBlob] = []
    tasks = []
    async with asyncio.TaskGroup() as group:
        for number, (digest, size, media_type) in enumerate(descriptors):
            parent = chain[number - 1] if number else ""
            wanted = _Layer(LayerBlob(diff_ids[number], digest, media_type, size), parent, chain[number])
            progress({"status": "Pulling fs layer", "progressDetail": {}, "id": wanted.short})
            tasks.append(
                group.create_task(_one_layer(images, registry, wanted, owner, progress), name=f"pull {digest}")
            )
    for task in tasks:
        layers.append(task.result())
    return raw, layers


def check_platform(document: Mapping[str, Any], platform: Platform | None, reference: names.Reference) -> None:
    """Raise NotFound when somebody asked for another platform than the image is for."""
    if platform is None:
        return
    offered = {name: document.get(name) or "" for name in ("os", "architecture", "variant")}
    if not platform.matches(offered):
        raise NotFound(
            f"image with reference {reference.familiar} was found but does not match the specified platform: "
            f"wanted {platform}, actual: {offered['os']}/{offered['architecture']}"
        )


async def _config(images: Images, registry: Registry, digest: str, owner: str) -> bytes:
    images.content.holds.hold(owner, [digest])
    if await asyncio.to_thread(images.content.has, digest):
        return await asyncio.to_thread(images.content.read, digest)
    async with registry.request("GET", f"blobs/{digest}") as response:
        data = bytearray()
        async for piece in response.content.iter_any():
            data += piece
            if len(data) > media.MAX_DOCUMENT:
                raise RegistryError(f"image configuration {digest} is too large: refused")
    if await asyncio.to_thread(images.content.add, bytes(data)) != digest:
        raise RegistryError(f"image config verification failed for digest {digest}")
    return bytes(data)


@dataclass(frozen=True)
class _Layer:
    blob: LayerBlob
    parent: str
    chain_id: str

    @property
    def short(self) -> str:
        return self.blob.digest[7:19]


async def _one_layer(images: Images, registry: Registry, layer: _Layer, owner: str, progress: Progress) -> LayerBlob:
    blob = layer.blob
    images.content.holds.hold(owner, [blob.digest])
    images.layer_store.holds.hold(owner, [layer.chain_id])
    transfers = images.transfers
    lock = transfers.lock(blob.digest)
    if lock.locked() or transfers.downloads.locked():
        progress({"status": "Waiting", "progressDetail": {}, "id": layer.short})
    async with lock:
        unpacked = images.layer_store.get(layer.chain_id)
        stored = await asyncio.to_thread(images.content.has, blob.digest)
        if unpacked is not None and stored:
            progress({"status": "Already exists", "progressDetail": {}, "id": layer.short})
            return blob
        if stored:
            await asyncio.to_thread(lambda: images.add_layer(layer.parent, blob, owner=owner))
            progress({"status": "Pull complete", "progressDetail": {}, "id": layer.short})
            return blob
        await asyncio.to_thread(images.layer_store.check_space, blob.size)
        download = _Download(images, registry, layer, progress)
        try:
            async with transfers.downloads:
                await download.run()
            progress({"status": "Download complete", "progressDetail": {}, "id": layer.short})
            detail = {"current": blob.size, "total": blob.size}
            progress(
                {
                    "status": "Extracting",
                    "progressDetail": detail,
                    "progress": bar(blob.size, blob.size),
                    "id": layer.short,
                }
            )
            await asyncio.to_thread(download.unpack, owner)
        finally:
            await asyncio.shield(asyncio.to_thread(download.close))
    progress({"status": "Pull complete", "progressDetail": {}, "id": layer.short})
    return blob


class _Download:
    """One blob on its way: hashed and decompressed while it comes, taken up where it broke off."""

    def __init__(self, images: Images, registry: Registry, layer: _Layer, progress: Progress) -> None:
        self._images = images
        self._registry = registry
        self._layer = layer
        self._progress = progress
        self._ingest: Ingest = images.content.ingest()
        self._undo: Bounded | None = None
        self._plain: Any = None
        self._told = 0.0

    async def run(self) -> None:
        """Fetch everything; tries again from where it stands. Raises RegistryError, TarError."""
        blob = self._layer.blob
        attempts = max(self._images.registries.max_download_attempts, 1)
        for attempt in range(1, attempts + 1):
            before = self._ingest.size
            try:
                await self._fetch()
                break
            except (RegistryError, OSError) as error:
                if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                    raise
                if attempt == attempts:
                    raise
                log.info("layer %s broke off at %d bytes (%s): trying again", blob.digest, self._ingest.size, error)
                seconds = 0.1 if self._ingest.size > before else float(min(5 * attempt, 30))
                if self._ingest.size == before:
                    status = f"Retrying in {seconds:.0f} second{'s' if seconds != 1 else ''}"
                    self._progress({"status": status, "progressDetail": {}, "id": self._layer.short})
                await asyncio.sleep(seconds)
        self._progress({"status": "Verifying Checksum", "progressDetail": {}, "id": self._layer.short})
        if self._ingest.digest != blob.digest:
            raise RegistryError(f"filesystem layer verification failed for digest {blob.digest}")

    async def _fetch(self) -> None:
        size = self._layer.blob.size
        have = self._ingest.size
        if have >= size > 0:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        path = f"blobs/{self._layer.blob.digest}"
        async with self._registry.request("GET", path, headers=headers, expect=(200, 206)) as response:
            skip = have if response.status == 200 else 0
            pending: asyncio.Future[Any] | None = None
            batch: list[bytes] = []
            gathered = 0
            try:
                async for piece in response.content.iter_any():
                    if skip:
                        piece, skip = piece[skip:], max(skip - len(piece), 0)
                        if not piece:
                            continue
                    batch.append(piece)
                    gathered += len(piece)
                    if gathered < _BATCH:
                        continue
                    if pending is not None:
                        await pending
                    pending = self._store(b"".join(batch))
                    batch, gathered = [], 0
            finally:
                if pending is not None:
                    await pending
                if batch:
                    await self._store(b"".join(batch))
        if self._ingest.size < size:
            raise RegistryError("unexpected EOF")

    def _store(self, data: bytes) -> "asyncio.Future[Any]":
        size = self._layer.blob.size
        if self._ingest.size + len(data) > size:
            raise TarError(
                f"layer {self._layer.blob.digest} is longer than the {size} bytes its manifest says: refused"
            )
        self._tell(self._ingest.size + len(data))
        if self._undo is None:
            kind = compression(data[:8])
            self._undo = Bounded(kind)
            if kind:
                self._plain = tempfile.TemporaryFile(dir=self._images.content.tmp, prefix="plain-", buffering=0)  # noqa: SIM115
        work = [asyncio.to_thread(self._ingest.write, data)]
        if self._plain is not None:
            work.append(asyncio.to_thread(self._decompress, data))
        return asyncio.gather(*work)

    def _decompress(self, data: bytes) -> None:
        assert self._undo is not None
        for piece in self._undo.feed(data):
            write_all(self._plain.fileno(), piece)

    def _tell(self, current: int) -> None:
        now = asyncio.get_running_loop().time()
        total = self._layer.blob.size
        if now - self._told < _INTERVAL and current < total:
            return
        self._told = now
        detail = {"current": current, "total": total}
        self._progress(
            {
                "status": "Downloading",
                "progressDetail": detail,
                "progress": bar(current, total),
                "id": self._layer.short,
            }
        )

    def unpack(self, owner: str) -> None:
        """Check the uncompressed content, unpack it and store the blob. Blocks. Raises TarError, OSError."""
        blob = self._layer.blob
        if self._plain is not None:
            assert self._undo is not None
            check_diff_id(self._undo.finish(), blob.diff_id)
            tar = self._plain.fileno()
        else:
            check_diff_id(self._ingest.digest, blob.diff_id)
            tar = os.open(self._ingest.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._ingest.commit()
            self._images.layer_store.add(
                self._layer.parent, blob.diff_id, tar, digest=blob.digest, media_type=blob.media_type, owner=owner
            )
        finally:
            if self._plain is None:
                os.close(tar)

    def close(self) -> None:
        """Throw away what is unfinished."""
        self._ingest.discard()
        if self._plain is not None:
            self._plain.close()


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error of a task group that says most: the engine's own before any other."""
    flat: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        each = todo.pop()
        if isinstance(each, BaseExceptionGroup):
            todo.extend(each.exceptions)
        else:
            flat.append(each)
    return next((each for each in flat if isinstance(each, EngineError)), flat[0])
