"""Archives of images as they were before manifests: one folder an image, named by its old id, and a file with the names.

dockerd still loads them; what they say becomes a configuration of today, byte for byte the one that dockerd makes, so that ids
are equal too. Whether an archive is one, and what is done with the plans, is for `loading`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage_guest.images.tarformat import TarError

#: What an old configuration carries that no new one has.
_OLD = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")

#: Images that may lie on top of each other, as dockerd has it.
_MAX_DEPTH = 125


@dataclass(frozen=True)
class OldImage:
    """One image: ``layers`` are names of files in the archive, bottom first; ``parent`` is an old id or ""."""

    old_id: str
    parent: str
    document: Mapping[str, Any]
    layers: tuple[str, ...]


def is_old(names: Sequence[str]) -> bool:
    """Whether an archive of these files, without a manifest, is of the old kind."""
    return any(name.count("/") == 1 and name.endswith("/json") for name in names)


def images(names: Sequence[str], read: Callable[[str], Any]) -> list[OldImage]:
    """Return the images of an archive, parents first. ``read`` gives a file's JSON. Raises TarError."""
    documents: dict[str, Mapping[str, Any]] = {}
    for name in sorted(names):
        folder, _, leaf = name.partition("/")
        if leaf == "json":
            document = read(name)
            if not isinstance(document, dict) or not isinstance(document.get("parent") or "", str):
                raise TarError(f'invalid "{name}" in the archive: an object is expected')
            documents[folder] = document
    chains = {old_id: _chain(documents, old_id) for old_id in documents}
    found = sorted(documents, key=lambda old_id: (len(chains[old_id]), old_id))
    return [
        OldImage(
            old_id, str(documents[old_id].get("parent") or ""), documents[old_id],
            tuple(f"{each}/layer.tar" for each in chains[old_id]),
        )
        for old_id in found
    ]  # fmt: skip


def _chain(documents: Mapping[str, Mapping[str, Any]], old_id: str) -> list[str]:
    chain: list[str] = []
    while old_id:
        if old_id not in documents:
            raise TarError(f'"{old_id}/json" is missing from the archive')
        if len(chain) >= _MAX_DEPTH:
            raise TarError("too many images lie on top of each other in the archive")
        chain.append(old_id)
        old_id = str(documents[old_id].get("parent") or "")
    return chain[::-1]


def tags(repositories: Any) -> list[tuple[str, str]]:
    """Return names and old ids of the file ``repositories``. Raises TarError."""
    if not isinstance(repositories, dict) or not all(isinstance(each, dict) for each in repositories.values()):
        raise TarError('invalid "repositories" in the archive: names with tags are expected')
    return [(f"{name}:{tag}", str(old_id)) for name, found in repositories.items() for tag, old_id in found.items()]


def configuration(image: OldImage, diff_ids: Sequence[str], history: Sequence[Mapping[str, Any]]) -> bytes:
    """Return an image's configuration of today, as Go writes it."""
    document = {key: value for key, value in image.document.items() if key not in _OLD}
    document["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    document["history"] = list(history)
    text = json.dumps({key: document[key] for key in sorted(document)}, separators=(",", ":"), ensure_ascii=False)
    for character in "&<>\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "surrogatepass")


def step(image: OldImage) -> dict[str, Any]:
    """Return what the history says of an image's layer."""
    made_in = image.document.get("container_config") or {}
    command = made_in.get("Cmd") if isinstance(made_in, dict) else None
    words = " ".join(map(str, command)) if isinstance(command, list) else ""
    said = {
        "created": image.document.get("created"), "author": image.document.get("author"), "created_by": words,
        "comment": image.document.get("comment"),
    }  # fmt: skip
    return {key: value for key, value in said.items() if value}
