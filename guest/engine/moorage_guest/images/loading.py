"""Loads images from archives: docker-archives (old, older and new) and OCI layouts, plain or compressed.

An archive is taken whole or not at all: images are recorded after every digest and every layer of it was good.
"""

import hashlib
import json
import logging
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import content as media
from moorage_guest.images import names, v1archive
from moorage_guest.images.compression import Bounded, check_diff_id, compression
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.layerstore import chain_ids
from moorage_guest.images.platforms import Platform, choose
from moorage_guest.images.store import Images
from moorage_guest.images.streams import BufferedSource, Progress, bar, uncompressed
from moorage_guest.images.tarformat import FOLDER, HARD_LINK, REGULAR, SYMLINK, TarError, read_entries

log = logging.getLogger(__name__)

#: Files that an archive of images may have.
MAX_FILES = 100_000

_PIECE = 1 << 20


@dataclass(frozen=True)
class _File:
    digest: str
    size: int


@dataclass(frozen=True)
class _Plan:
    """One image as the archive describes it, nothing unpacked yet."""

    raw_config: bytes
    layers: tuple[LayerBlob, ...]
    tags: tuple[str, ...]
    manifest: str = ""
    hidden: tuple[str, ...] = ()
    parent: str = ""

    @property
    def image_id(self) -> str:
        """The id that the image will have."""
        return f"sha256:{hashlib.sha256(self.raw_config).hexdigest()}"


def load(
    images: Images, source: BufferedSource, progress: Progress, *, quiet: bool = False, platform: Platform | None = None
) -> list[Image]:
    """Load every image of an archive. Blocks. Raises TarError for a damaged or hostile archive, leaving nothing of it."""
    with images.work("load") as owner:
        files = _take(images, uncompressed(source), owner)
        if "manifest.json" in files:
            plans = _parents_first(images, list(_docker_plans(images, files)))
        elif "index.json" in files:
            plans = list(_oci_plans(images, files, platform))
        elif v1archive.is_old(list(files)):
            plans = _old_plans(images, files)
        else:
            raise TarError(
                "open manifest.json: no such file in the archive; is it an archive of images? (docker import takes root file systems)"
            )
        _unpack(images, plans, owner, progress, quiet)
        return [_record(images, plan, owner, progress) for plan in plans]


def _take(images: Images, source: BufferedSource, owner: str) -> dict[str, _File]:
    """Store every file of the archive as a blob and return them by name, links resolved."""
    files: dict[str, _File] = {}
    links: dict[str, str] = {}
    for entry in read_entries(source.read, source.skip):
        name = _safe_name(entry.name)
        if entry.kind == FOLDER or not name:
            continue
        if name in files or name in links:
            raise TarError(f'duplicate entry "{entry.name}" in the archive')
        if len(files) + len(links) >= MAX_FILES:
            raise TarError(f"an archive with more than {MAX_FILES} files is refused")
        if entry.kind == SYMLINK:
            links[name] = _safe_name(posixpath.join(posixpath.dirname(name), entry.link), entry.link)
        elif entry.kind == HARD_LINK:
            links[name] = _safe_name(entry.link)
        elif entry.kind != REGULAR:
            raise TarError(f'"{entry.name}" is neither a file nor a link: not an archive of images')
        else:
            images.layer_store.check_space(entry.size)
            with images.content.ingest() as blob:
                left = entry.size
                while left:
                    piece = source.piece(min(left, _PIECE))
                    if not piece:
                        raise TarError("unexpected EOF")
                    blob.write(piece)
                    left -= len(piece)
                source.skip(-entry.size % 512)
                entry.size = -1
                _check_blob_name(name, blob.digest)
                files[name] = _File(blob.digest, blob.size)
                images.content.holds.hold(owner, [blob.digest])
                blob.commit()
    _drain(source)
    for name in links:
        target, hops = links[name], 0
        while target in links and hops < 10:
            target, hops = links[target], hops + 1
        if target in files:
            files[name] = files[target]
    return files


def _drain(source: BufferedSource) -> None:
    """Read the padding behind the archive's end, so that a compressed stream is checked to its end."""
    while source.piece(_PIECE):
        pass


def _safe_name(name: str, shown: str = "") -> str:
    if name.startswith("/"):
        raise TarError(f'absolute path "{shown or name}" in the archive')
    clean = posixpath.normpath(name)
    if clean == ".." or clean.startswith("../") or (".." in name.split("/") and not shown):
        raise TarError(f'path "{shown or name}" leads out of the archive')
    return "" if clean == "." else clean


def _check_blob_name(name: str, digest: str) -> None:
    if name.startswith("blobs/"):
        algorithm, _, value = name.removeprefix("blobs/").partition("/")
        if algorithm != "sha256":
            raise TarError(f"{name}: unsupported digest algorithm")
        if digest != f"sha256:{value}":
            raise TarError(f"{name} has digest {digest}: refused")


def _json(images: Images, files: Mapping[str, _File], name: str) -> Any:
    if name not in files:
        raise TarError(f'"{name}" is missing from the archive')
    if files[name].size > media.MAX_DOCUMENT:
        raise TarError(f'"{name}" in the archive is too large ({files[name].size} bytes)')
    try:
        return json.loads(images.content.read(files[name].digest))
    except (ValueError, RecursionError) as error:
        raise TarError(f'invalid "{name}" in the archive: {error}') from None


# -- docker-archive -----------------------------------------------------------------------------------------------------


def _docker_plans(images: Images, files: Mapping[str, _File]) -> Iterator[_Plan]:
    manifest = _json(images, files, "manifest.json")
    if not isinstance(manifest, list) or not manifest:
        raise TarError('invalid "manifest.json" in the archive: a list of images is expected')
    for item in manifest:
        try:
            config_name, layer_names = (
                _safe_name(str(item["Config"])),
                [_safe_name(str(n)) for n in item["Layers"] or []],
            )
            tags = [str(tag) for tag in item.get("RepoTags") or []]
        except (TypeError, KeyError, AttributeError) as error:
            raise TarError(f'invalid "manifest.json" in the archive: {error!r}') from None
        document = _json(images, files, config_name)
        raw = images.content.read(files[config_name].digest)
        stem = posixpath.basename(config_name).removesuffix(".json")
        if len(stem) == 64 and f"sha256:{stem}" != files[config_name].digest:
            raise TarError(f"{config_name} has digest {files[config_name].digest}: refused")
        diff_ids = diff_ids_of(document)
        if len(diff_ids) != len(layer_names):
            raise TarError(
                f"invalid manifest, layers length mismatch: expected {len(layer_names)}, got {len(diff_ids)}"
            )
        layers = []
        for diff_id, name in zip(diff_ids, layer_names, strict=True):
            if name in files:
                layers.append(_layer(images, files[name], diff_id))
            elif (known := images.layer_store.with_diff(diff_id)) is not None:
                layers.append(LayerBlob(diff_id, known.digest, known.media_type, known.blob_size))
            else:
                raise TarError(f'"{name}" is missing from the archive')
        parent = str(item.get("Parent") or "")
        yield _Plan(raw, tuple(layers), tuple(str(names.parse(tag).with_default_tag()) for tag in tags), parent=parent)


def _parents_first(images: Images, plans: Sequence[_Plan]) -> list[_Plan]:
    """Return plans so that parents come before their children, and without parents that they are not built on."""
    by_id = {plan.image_id: plan for plan in plans}
    found: list[_Plan] = []
    for plan in plans:
        layers: tuple[LayerBlob, ...] | None = None
        if plan.parent in by_id:
            layers = by_id[plan.parent].layers
        elif plan.parent and (known := images.find(plan.parent)) is not None:
            layers = known.layers
        below = [layer.diff_id for layer in layers or ()]
        good = layers is not None and [layer.diff_id for layer in plan.layers[: len(below)]] == below
        found.append(plan if good else replace(plan, parent=""))
    return sorted(found, key=lambda plan: len(json.loads(plan.raw_config).get("history") or ()))


def diff_ids_of(document: Any) -> list[str]:
    """Return the digests of an image's uncompressed layers. Raises TarError for what is no image configuration."""
    try:
        found = document["rootfs"].get("diff_ids") or []
        if document["rootfs"].get("type", "layers") != "layers":
            raise TarError(f"invalid image configuration: root file system of type {document['rootfs']['type']!r}")
    except (TypeError, KeyError, AttributeError):
        raise TarError("invalid image configuration: it has no rootfs") from None
    if not isinstance(found, list) or not all(isinstance(each, str) and names.DIGEST.fullmatch(each) for each in found):
        raise TarError("invalid image configuration: diff_ids have to be sha256 digests")
    if document.get("os") not in (None, "", "linux"):
        raise TarError(f"cannot load {document['os']} image on linux")
    config = document.get("config")
    if config is not None and not isinstance(config, dict):
        raise TarError("invalid image configuration: config has to be an object")
    return found


def _layer(images: Images, file: _File, diff_id: str) -> LayerBlob:
    kind = ""
    if file.digest != diff_id:
        with images.content.path(file.digest).open("rb") as opened:
            kind = compression(opened.read(8))
        if not kind:
            check_diff_id(file.digest, diff_id)
    return LayerBlob(diff_id, file.digest, media_type(kind), file.size)


def media_type(kind: str) -> str:
    """Return the media type of a layer compressed that way."""
    return media.LAYER + {"": "", "gzip": "+gzip", "zstd": "+zstd"}.get(kind, f"+{kind}")


# -- OCI layout ---------------------------------------------------------------------------------------------------------


def _oci_plans(images: Images, files: Mapping[str, _File], platform: Platform | None) -> Iterator[_Plan]:
    if "oci-layout" not in files:
        raise TarError('"oci-layout" is missing from the archive')
    index = _json(images, files, "index.json")
    found = 0
    for descriptor in _descriptors(index):
        tags = _tags(descriptor)
        plan = _oci_plan(images, files, descriptor, platform, (), 0)
        if plan is not None:
            found += 1
            yield _Plan(plan.raw_config, plan.layers, tags, plan.manifest, plan.hidden)
    if not found:
        raise TarError("the archive has no image for this machine's platform")


def _descriptors(index: Any) -> list[dict[str, Any]]:
    manifests = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(manifests, list) or not all(isinstance(each, dict) and "digest" in each for each in manifests):
        raise TarError("invalid index in the archive: manifests are expected")
    return manifests


def _oci_plan(
    images: Images,
    files: Mapping[str, _File],
    descriptor: Mapping[str, Any],
    platform: Platform | None,
    above: tuple[str, ...],
    depth: int,
) -> _Plan | None:
    if depth > 4:
        raise TarError("indexes in the archive are nested too deeply")
    name = _blob_name(descriptor)
    document = _json(images, files, name)
    digest = files[name].digest
    if not isinstance(document, dict):
        raise TarError(f"{name}: no manifest")
    if "manifests" in document:
        chosen = choose(_descriptors(document), platform)
        if chosen is None or _blob_name(chosen) not in files:
            return None
        return _oci_plan(images, files, chosen, platform, (*above, digest), depth + 1)
    try:
        config, layers = document["config"], document["layers"]
        config_name = _blob_name(config)
        if config.get("mediaType") not in (media.CONFIG, media.DOCKER_CONFIG):
            return None  # an attestation or another artefact
        raw = images.content.read(files[config_name].digest) if config_name in files else b""
        diff_ids = diff_ids_of(_json(images, files, config_name))
        blobs = [files[_blob_name(layer)] for layer in layers]
    except (KeyError, TypeError, AttributeError) as error:
        raise TarError(f"{name}: content is missing from the archive or the manifest is invalid ({error})") from None
    if len(blobs) != len(diff_ids):
        raise TarError(f"invalid manifest, layers length mismatch: expected {len(blobs)}, got {len(diff_ids)}")
    made = tuple(
        LayerBlob(diff_id, blob.digest, str(layer.get("mediaType") or media.LAYER), blob.size)
        for diff_id, blob, layer in zip(diff_ids, blobs, layers, strict=True)
    )
    return _Plan(raw, made, (), digest, above)


def _blob_name(descriptor: Mapping[str, Any]) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not names.DIGEST.fullmatch(digest):
        raise TarError(f"invalid digest {digest!r} in the archive")
    return f"blobs/sha256/{digest.partition(':')[2]}"


def _tags(descriptor: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the name an entry of index.json carries; a bare tag without a repository is none."""
    notes = descriptor.get("annotations") or {}
    for key in ("io.containerd.image.name", "org.opencontainers.image.ref.name"):
        text = notes.get(key)
        if isinstance(text, str) and (key.startswith("io.") or ":" in text or "/" in text):
            try:
                return (str(names.parse(text).with_default_tag()),)
            except InvalidParameter as error:
                log.info("archive names an image %r: %s", text, error)
    return ()


# -- archives without a manifest ----------------------------------------------------------------------------------------


def _old_plans(images: Images, files: Mapping[str, _File]) -> list[_Plan]:
    names_ = v1archive.tags(_json(images, files, "repositories"))
    tags: dict[str, list[str]] = {}
    for name, old_id in names_:
        tags.setdefault(old_id, []).append(str(names.parse(name).with_default_tag()))
    plans: dict[str, _Plan] = {}
    steps: dict[str, tuple[dict[str, Any], ...]] = {"": ()}
    for image in v1archive.images(list(files), lambda name: _json(images, files, name)):
        layers = []
        for name in image.layers:
            if name not in files:
                raise TarError(f'"{name}" is missing from the archive')
            layers.append(_layer(images, files[name], _diff_id(images, files[name])))
        steps[image.old_id] = (*steps[image.parent], v1archive.step(image))
        raw = v1archive.configuration(image, [layer.diff_id for layer in layers], steps[image.old_id])
        diff_ids_of(json.loads(raw))
        parent = plans[image.parent].image_id if image.parent else ""
        plans[image.old_id] = _Plan(raw, tuple(layers), tuple(tags.pop(image.old_id, ())), parent=parent)
    if tags:
        raise TarError(f'invalid "repositories" in the archive: no image has the id {next(iter(tags))}')
    return list(plans.values())


def _diff_id(images: Images, file: _File) -> str:
    """Return the digest of a layer without its compression."""
    with images.content.path(file.digest).open("rb") as opened:
        head = opened.read(8)
        if not (kind := compression(head)):
            return file.digest
        undo = Bounded(kind)
        data = head
        while data:
            for _ in undo.feed(data):
                pass
            data = opened.read(_PIECE)
        return undo.finish()


# -- all of them ---------------------------------------------------------------------------------------------------------------


def _unpack(images: Images, plans: list[_Plan], owner: str, progress: Progress, quiet: bool) -> None:
    """Unpack the layers of all images, two at a time: their folders do not depend on each other."""
    todo: dict[str, tuple[str, LayerBlob]] = {}
    for plan in plans:
        chain = chain_ids(layer.diff_id for layer in plan.layers)
        for number, (chain_id, layer) in enumerate(zip(chain, plan.layers, strict=True)):
            todo.setdefault(chain_id, (chain[number - 1] if number else "", layer))

    def one(chain_id: str, parent: str, layer: LayerBlob) -> None:
        known = images.layer_store.get(chain_id) is not None
        images.add_layer(parent, layer, owner=owner)
        if not quiet and not known:
            detail = {"current": layer.size, "total": layer.size}
            progress(
                {
                    "status": "Loading layer",
                    "progressDetail": detail,
                    "progress": bar(layer.size, layer.size),
                    "id": layer.diff_id[7:19],
                }
            )

    with ThreadPoolExecutor(2, "load") as pool:
        for future in [pool.submit(one, chain_id, *what) for chain_id, what in todo.items()]:
            future.result()


def _record(images: Images, plan: _Plan, owner: str, progress: Progress) -> Image:
    for tag in plan.tags:
        before = images.find(tag)
        if before is not None and before.id != plan.image_id:
            shown = names.parse(tag).familiar
            text = f"The image {shown} already exists, renaming the old one with ID {before.id} to empty string\n"
            progress({"stream": text})
    image = images.create(
        plan.raw_config, plan.layers, owner=owner, manifest=plan.manifest, tags=plan.tags, hidden=plan.hidden,
        parent=plan.parent,
    )  # fmt: skip
    familiar = [names.parse(tag).familiar for tag in plan.tags]
    for name in familiar:
        progress({"stream": f"Loaded image: {name}\n"})
    if not familiar:
        progress({"stream": f"Loaded image ID: {image.id}\n"})
    images.publish("load", image, familiar[0] if familiar else image.id)
    return image
