"""Makes an image of a root file system's tar (`docker import`)."""

from collections.abc import Mapping
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import names
from moorage_guest.images.compression import Bounded, compression
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.loading import media_type
from moorage_guest.images.platforms import Platform
from moorage_guest.images.store import Images
from moorage_guest.images.streams import BufferedSource
from moorage_guest.images.tarformat import TarError


def import_tar(
    images: Images,
    source: BufferedSource,
    *,
    config: Mapping[str, Any],
    reference: str = "",
    message: str = "",
    platform: Platform | None = None,
) -> Image:
    """Store a tar, plain or compressed, as an image of one layer. Blocks. Raises TarError; leaves nothing then.

    ``config`` is the image's (what --change made of an empty one).
    """
    name = names.parse(reference).with_default_tag() if reference else None
    if platform is not None and platform.os != "linux":
        raise InvalidParameter("operating system is not supported")
    kind = compression(source.peek(8))
    undo = Bounded(kind)
    with images.work("import") as owner:
        with images.content.ingest() as blob:
            while data := source.piece(1 << 20):
                for piece in undo.feed(bytes(data)):
                    blob.write(piece)
            if not blob.size:  # nothing at all is a tar without entries
                for piece in undo.feed(bytes(1024)):
                    blob.write(piece)
            diff_id = undo.finish()
            if blob.size < 1024:
                raise TarError("the archive is empty or cut short")
            images.content.holds.hold(owner, [blob.digest])
            size = blob.size
            digest = blob.commit()
        layer = LayerBlob(diff_id, digest, media_type(""), size)
        images.add_layer("", layer, owner=owner)
        image = images.derive(
            None,
            layer,
            config,
            owner=owner,
            comment=message or "Imported from -",
            tags=[str(name)] if name else [],
            platform=_platform(platform),
        )
    images.publish("import", image, name.familiar if name else image.id)
    return image


def _platform(platform: Platform | None) -> Mapping[str, str]:
    if platform is None:
        return {}
    found = {"os": platform.os, "architecture": platform.architecture}
    return {**found, "variant": platform.variant} if platform.variant else found


def tags_from_query(repository: str, tag: str) -> str:
    """Join the two parameters that clients send a name in."""
    if not repository:
        return ""
    if not tag:
        return repository
    return f"{repository}@{tag}" if tag.startswith("sha256:") else f"{repository}:{tag}"
