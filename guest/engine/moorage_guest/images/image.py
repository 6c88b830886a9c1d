"""One image as the engine remembers it, and the times that images carry."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from moorage_guest.images import names


@dataclass(frozen=True)
class LayerBlob:
    """One layer of an image as it is stored: the tar's blob and the digest of its uncompressed form."""

    diff_id: str
    digest: str
    media_type: str
    size: int


@dataclass(frozen=True)
class Image:
    """One image. ``config`` is what a container inherits, ``document`` the whole configuration it is part of."""

    id: str
    document: Mapping[str, Any]
    layers: tuple[LayerBlob, ...]
    chain: tuple[str, ...]
    manifest: str
    """Digest of the manifest by which the image is saved and pushed."""
    tags: tuple[str, ...] = ()
    """Names with the registry written out."""
    digests: tuple[str, ...] = ()
    """``name@digest`` of manifests at registries."""
    parent: str = ""
    last_tagged: str = ""
    size: int = 0
    hidden: tuple[str, ...] = field(default=())
    """Other content that is kept with it: manifests it was pulled by."""

    @property
    def config(self) -> dict[str, Any]:
        """Env, Cmd and so on; empty when the image has none."""
        return dict(self.document.get("config") or {})

    @property
    def architecture(self) -> str:
        return str(self.document.get("architecture") or "")

    @property
    def os(self) -> str:
        return str(self.document.get("os") or "linux")

    @property
    def created(self) -> str:
        """RFC 3339, or "" when the image does not say."""
        return str(self.document.get("created") or "")

    @property
    def short_id(self) -> str:
        return self.id.partition(":")[2][:12]

    @property
    def repo_tags(self) -> list[str]:
        """Names as people write them."""
        return [names.parse(tag).familiar for tag in self.tags]

    @property
    def repo_digests(self) -> list[str]:
        return [names.parse(name).familiar for name in self.digests]

    def record(self) -> dict[str, Any]:
        """Return what the state database keeps: all but the document, which is a blob."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "document"}
        value["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        return {"version": 1, **value}

    @staticmethod
    def load(record: Mapping[str, Any], document: Mapping[str, Any]) -> "Image":
        """Make an image of its record; raises KeyError or TypeError when that is damaged."""
        values = {name: record[name] for name in Image.__dataclass_fields__ if name != "document"}
        values["layers"] = tuple(LayerBlob(**layer) for layer in record["layers"])
        for name in ("chain", "tags", "digests", "hidden"):
            values[name] = tuple(values[name])
        return Image(document=document, **values)


def now() -> str:
    """Return the time as images carry it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def created_seconds(image: Image) -> float:
    """Return when an image was made, seconds since the epoch; 0 when it does not say."""
    return parse_time(image.created)


def parse_time(text: str) -> float:
    """Return RFC 3339 as seconds since the epoch; 0 when it is none."""
    try:
        head, dot, tail = text.partition(".")
        if dot:
            digits = tail.rstrip("Zz+-:0123456789")
            number = tail[: len(tail) - len(tail.lstrip("0123456789"))]
            text = f"{head}.{number[:6].ljust(6, '0')}{tail[len(number) :]}{digits}"
        value = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
