"""Pulls images: manifest or index, layers side by side, progress as dockerd streams it. One layer's way is in `downloads`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from moorage_guest.errors import EngineError, NotFound, Unauthorized
from moorage_guest.images import content as media
from moorage_guest.images import names
from moorage_guest.images.downloads import Halves, WantedLayer, fetch_layer
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.layerstore import chain_ids
from moorage_guest.images.loading import diff_ids_of
from moorage_guest.images.platforms import Platform, choose, this_platform
from moorage_guest.images.registry import Credentials, Manifest, Registry, RegistryError
from moorage_guest.images.store import Images
from moorage_guest.images.streams import Progress, finished
from moorage_guest.images.tarformat import TarError

log = logging.getLogger(__name__)


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
    async with _pulling(images, reference, credentials) as registry:
        if not everything:
            return [await _pull_one(images, registry, reference.with_default_tag(), progress, platform)]
        found = []
        for tag in await registry.tags():
            one = names.Reference(reference.domain, reference.path, tag)
            found.append(await _pull_one(images, registry, one, progress, platform))
        return found


@asynccontextmanager
async def _pulling(images: Images, reference: names.Reference, credentials: Credentials) -> AsyncIterator[Registry]:
    """Talk to a registry about an image to fetch; what goes wrong is raised one error at a time, in dockerd's words."""
    async with Registry(reference, images.registries, credentials) as registry:
        try:
            yield registry
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        except Unauthorized as error:
            raise NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {error}"
            ) from None


async def take(
    images: Images,
    reference: names.Reference,
    progress: Progress,
    *,
    credentials: Credentials,
    platform: Platform | None,
    owner: str,
) -> Image:
    """Fetch an image for ``owner``, who holds its configuration and layers, without that it becomes one of the engine's.

    What is here already is not fetched again. Raises as `pull`.
    """
    async with _pulling(images, reference, credentials) as registry:
        _, manifest = await find_manifest(registry, reference.with_default_tag(), platform)
        document = _image_manifest(manifest, reference)
        raw, layers = await _contents(images, registry, document, platform, owner, progress, reference)
        await asyncio.to_thread(_forget_halves, images, [layer.digest for layer in layers])
    chain = chain_ids(layer.diff_id for layer in layers)
    return Image(str(document["config"]["digest"]), media.parse_document(raw), tuple(layers), tuple(chain), "")


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
    document = _image_manifest(manifest, reference)
    progress({"status": f"Pulling from {reference.path}", "id": reference.digest or reference.tag})
    top = above[0] if above else manifest
    async with _working(images) as owner:
        for each in (*above, manifest):
            images.content.holds.hold(owner, [each.digest])
            await finished(asyncio.to_thread(images.content.add, each.data))
        raw, layers = await _contents(images, registry, document, platform, owner, progress, reference)
        known = images.find(str(document["config"]["digest"]))
        before = known is not None and (not reference.tag or str(reference) in known.tags)
        bare = f"{reference.name}@{top.digest}"
        work = asyncio.to_thread(
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
        image = await finished(work)
        await asyncio.to_thread(_forget_halves, images, [layer.digest for layer in layers])
    progress({"status": f"Digest: {top.digest}"})
    state = "Image is up to date for" if before else "Downloaded newer image for"
    progress({"status": f"Status: {state} {reference.familiar}"})
    images.publish("pull", image, reference.familiar)
    return image


def _image_manifest(manifest: Manifest, reference: names.Reference) -> dict[str, Any]:
    """Return what a manifest says when it is an image's. Raises RegistryError."""
    document = manifest.document()
    if document.get("schemaVersion") != 2 or not isinstance(document.get("config"), dict):
        raise RegistryError(
            f"manifest of {reference.familiar} is of a kind that is not supported "
            f"({manifest.media_type or 'unknown'}): only Docker schema 2 and OCI images are"
        )
    return document


@asynccontextmanager
async def _working(images: Images) -> AsyncIterator[str]:
    manager = images.work("pull")
    owner = manager.__enter__()
    try:
        yield owner
    finally:
        await finished(asyncio.to_thread(manager.__exit__, None, None, None))


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
    if (known := _held(images, config_digest, owner)) is not None:
        check_platform(known.document, platform, reference)
        return raw, list(known.layers)
    diff_ids = diff_ids_of(media.parse_document(raw))
    if len(diff_ids) != len(descriptors):
        raise TarError(f"invalid manifest, layers length mismatch: expected {len(descriptors)}, got {len(diff_ids)}")
    check_platform(media.parse_document(raw), platform, reference)
    chain = chain_ids(diff_ids)
    layers: list[LayerBlob] = []
    tasks = []
    halves = Halves()
    try:
        async with asyncio.TaskGroup() as group:
            for number, (digest, size, media_type) in enumerate(descriptors):
                parent = chain[number - 1] if number else ""
                wanted = WantedLayer(LayerBlob(diff_ids[number], digest, media_type, size), parent, chain[number])
                progress({"status": "Pulling fs layer", "progressDetail": {}, "id": wanted.short})
                work = _one_layer(images, registry, wanted, owner, progress, halves)
                tasks.append(group.create_task(work, name=f"pull {digest}"))
    except BaseException:
        if not halves.stay and not images.stopping:
            await finished(asyncio.to_thread(_forget_halves, images, [each[0] for each in descriptors]))
        raise
    for task in tasks:
        layers.append(task.result())
    return raw, layers


def _held(images: Images, image_id: str, owner: str) -> Image | None:
    """Return an image that is here already, whatever its layers' packing, and keep it here for ``owner``."""
    image = images.find(image_id)
    if image is None:
        return None
    images.content.holds.hold(owner, [layer.digest for layer in image.layers])
    images.layer_store.holds.hold(owner, image.chain)
    return images.find(image_id)  # it may have been on its way out


def _forget_halves(images: Images, digests: Iterable[str]) -> None:
    for digest in digests:
        images.content.forget_half(digest)


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
    if await finished(asyncio.to_thread(images.content.add, bytes(data))) != digest:
        raise RegistryError(f"image config verification failed for digest {digest}")
    return bytes(data)


async def _one_layer(
    images: Images, registry: Registry, layer: WantedLayer, owner: str, progress: Progress, halves: Halves
) -> LayerBlob:
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
            await finished(asyncio.to_thread(lambda: images.add_layer(layer.parent, blob, owner=owner)))
            progress({"status": "Pull complete", "progressDetail": {}, "id": layer.short})
            return blob
        await asyncio.to_thread(images.layer_store.check_space, blob.size)
        async with transfers.downloads:
            await fetch_layer(images, registry, layer, owner, progress, halves)
    progress({"status": "Pull complete", "progressDetail": {}, "id": layer.short})
    return blob


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
