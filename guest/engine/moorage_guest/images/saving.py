"""Writes images as an archive that `docker load`, skopeo, buildah and umoci read: an OCI layout with a manifest.json."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage_guest.errors import InvalidParameter, NotFound
from moorage_guest.images import content as media
from moorage_guest.images import names
from moorage_guest.images.image import Image, created_seconds
from moorage_guest.images.platforms import Platform
from moorage_guest.images.store import Images
from moorage_guest.images.tarformat import END, FOLDER, REGULAR, Entry, header, padding

_EPOCH = 0


@dataclass(frozen=True)
class FilePart:
    """A part of the archive that is a file's content, all of it."""

    path: Path
    size: int


Part = bytes | FilePart


def select(
    images: Images, references: Sequence[str], platform: Platform | None = None
) -> list[tuple[Image, list[str]]]:
    """Return the images to save with the names to save them under. A bare repository means all its tags. Raises NotFound."""
    chosen: dict[str, tuple[Image, list[str]]] = {}
    for reference in references:
        found: list[tuple[Image, list[str]]] = []
        if not reference.startswith("sha256:") and not names.is_image_id(reference):
            parsed = names.parse(reference)
            if not parsed.tag and not parsed.digest:
                for image in images.all():
                    tags = [tag for tag in image.tags if names.parse(tag).name == parsed.name]
                    if tags:
                        found.append((image, tags))
        if not found:
            image = images.resolve(reference)
            wanted = "" if reference.startswith("sha256:") else _tag_of(image, reference)
            found.append((image, [wanted] if wanted else []))
        for image, tags in found:
            if platform is not None and not platform.matches(
                {"os": image.os, "architecture": image.architecture, "variant": image.document.get("variant", "")}
            ):
                raise NotFound(
                    f"image with reference {reference} was found but does not provide the specified platform ({platform})"
                )
            known = chosen.setdefault(image.id, (image, []))[1]
            known.extend(tag for tag in tags if tag not in known)
    return list(chosen.values())


def _tag_of(image: Image, reference: str) -> str:
    try:
        wanted = str(names.parse(reference).with_default_tag())
    except InvalidParameter:
        return ""
    return wanted if wanted in image.tags else ""


def save(images: Images, chosen: Sequence[tuple[Image, list[str]]]) -> Iterator[Part]:
    """Yield the archive. Blocking; blobs come as `FilePart` so that the kernel can send them."""
    written: set[str] = set()
    index: list[dict[str, object]] = []
    manifest: list[dict[str, object]] = []
    yield _folder("blobs/") + _folder("blobs/sha256/")
    for image, tags in chosen:
        for digest in (image.id, image.manifest, *(layer.digest for layer in image.layers)):
            if digest not in written:
                written.add(digest)
                size = images.content.size(digest)
                yield _head(_blob(digest), size, max(int(created_seconds(image)), 0) if digest == image.id else 0)
                yield FilePart(images.content.path(digest), size)
                yield padding(size)
        kind = images.content.read_json(image.manifest).get("mediaType", media.MANIFEST)
        base = {
            "mediaType": kind,
            "digest": image.manifest,
            "size": images.content.size(image.manifest),
            "platform": {"architecture": image.architecture, "os": image.os},
        }
        for tag in tags:
            notes = {"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": names.parse(tag).tag}
            index.append({**base, "annotations": notes})
        if not tags:
            index.append(base)
        item: dict[str, object] = {
            "Config": _blob(image.id),
            "RepoTags": [names.parse(tag).familiar for tag in tags] or None,
            "Layers": [_blob(layer.digest) for layer in image.layers],
        }
        if any(image.parent == other.id for other, _ in chosen):
            item["Parent"] = image.parent
        manifest.append(item)
    yield _document("index.json", {"schemaVersion": 2, "mediaType": media.INDEX, "manifests": index})
    yield _document("manifest.json", manifest)
    yield _head("oci-layout", len(media.LAYOUT)) + media.LAYOUT + padding(len(media.LAYOUT))
    yield END * 2


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.partition(':')[2]}"


def _folder(name: str) -> bytes:
    return header(Entry(name, FOLDER, 0, 0o755, 0, 0, _EPOCH, "", 0, 0, 0))


def _head(name: str, size: int, mtime: int = 0) -> bytes:
    return header(Entry(name, REGULAR, size, 0o644, 0, 0, _EPOCH + mtime * 1_000_000_000, "", 0, 0, 0))


def _document(name: str, value: object) -> bytes:
    data = json.dumps(value, separators=(",", ":")).encode()
    return _head(name, len(data)) + data + padding(len(data))
