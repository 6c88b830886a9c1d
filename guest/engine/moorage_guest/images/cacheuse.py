"""The build cache as users see it, listed and pruned: what builds in BuildKit's way left, and the images between a base and what
the classic builder made of it.
"""

import asyncio
import heapq
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import listing
from moorage_guest.images.buildcache import MOUNT, BuildCache
from moorage_guest.images.image import Image, parse_time
from moorage_guest.images.store import Images

Entry = Mapping[str, Any]

_TERM = re.compile(r"\s*([A-Za-z]+)\s*(?:(==|!=|~=)\s*(.*?)\s*)?")


@dataclass(frozen=True)
class Prune:
    """What to prune. Of what passes ``chosen`` the least recently used goes first."""

    everything: bool = False
    """Also what images still share, and of the classic builder's what has no parent."""
    until: float | None = None
    """Only what was not used after this moment, seconds since the epoch."""
    chosen: Callable[[Entry], bool] | None = None
    reserved: int = 0
    """Bytes that are kept in any case; then also ``max_used`` and ``min_free`` bytes of the disk are limits, 0 is none."""
    max_used: int = 0
    min_free: int = 0


@dataclass(frozen=True)
class CacheUse:
    """Both kinds of cache."""

    images: Images
    cache: BuildCache

    def records(self) -> list[dict[str, Any]]:
        """Return what there is, as GET /system/df shows it. Blocks for the disk."""
        return [*listing.build_cache(self.images), *self.cache.records()]

    async def prune(self, wanted: Prune) -> tuple[list[str], list[Entry], int]:
        """Remove what is wanted and in nobody's use; returns what is gone, by id and as `records` had it, and the bytes freed."""
        entries = await asyncio.to_thread(self.records)
        doomed = {str(entry["ID"]) for entry in await asyncio.to_thread(self._doomed, wanted, entries)}
        narrowed = wanted.chosen is not None or self._limited(wanted)

        def keep(image: Image) -> bool:
            if image.tags or image.digests or (not image.parent and not wanted.everything):
                return True
            return narrowed and image.id.removeprefix("sha256:") not in doomed

        done, freed = await self.images.prune(dangling=True, until=wanted.until, keep=keep, parents=not narrowed)
        images = [each["Deleted"] for each in done if "Deleted" in each]
        others, more = await asyncio.to_thread(self.cache.prune, doomed)
        gone = {*(each.removeprefix("sha256:") for each in images), *others}
        return [*images, *others], [entry for entry in entries if entry["ID"] in gone], freed + more

    def _doomed(self, wanted: Prune, entries: Sequence[Entry]) -> list[Entry]:
        """Return what is to go, the least recently used first. Blocks for the disk."""
        total = sum(entry["Size"] for entry in entries)
        keep = self._room(wanted, total)
        found: list[Entry] = []
        for entry in _leaves_first(entries):
            if keep and total <= keep:
                break
            if entry["InUse"] or (entry["Shared"] and not wanted.everything):
                continue
            if wanted.until is not None and _last_used(entry) > wanted.until:
                continue
            if wanted.chosen is None or wanted.chosen(entry):
                found.append(entry)
                total -= entry["Size"]
        return found

    def _limited(self, wanted: Prune) -> bool:
        return bool(wanted.reserved or wanted.max_used or wanted.min_free)

    def _room(self, wanted: Prune, total: int) -> int:
        """Return to how many bytes the cache is to shrink; 0 is no such limit. Blocks for the disk."""
        if not self._limited(wanted):
            return 0
        keep = wanted.max_used
        missing = wanted.min_free - shutil.disk_usage(self.images.data_root.root).free
        if missing > 0:
            keep = min(keep, total - missing) if keep else total - missing
        return max(keep, wanted.reserved)


def _leaves_first(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield entries so that none comes before what was built on it, which holds its layer; else the least recently used first."""
    known = {str(entry["ID"]): entry for entry in entries}
    children = dict.fromkeys(known, 0)
    for entry in entries:
        for parent in entry["Parents"] or ():
            if parent in children:
                children[parent] += 1
    leaves = [(_last_used(known[name]), name) for name, count in children.items() if not count]
    heapq.heapify(leaves)
    while leaves:
        _, name = heapq.heappop(leaves)
        yield known[name]
        for parent in known[name]["Parents"] or ():
            if parent in children:
                children[parent] -= 1
                if not children[parent]:
                    heapq.heappush(leaves, (_last_used(known[parent]), parent))


def _last_used(entry: Entry) -> float:
    return parse_time(str(entry["LastUsedAt"] or entry["CreatedAt"]))


def expression(texts: Iterable[str]) -> Callable[[Entry], bool] | None:
    """Read filters as BuildKit's clients write them: one of the texts has to hold, all of its parts (`id==x,shared`) together.

    None when there are none. Raises InvalidParameter.
    """
    either = [[_term(part) for part in text.split(",") if part.strip()] for text in texts]
    wanted = [terms for terms in either if terms]
    if not wanted:
        return None
    return lambda entry: any(all(term(entry) for term in terms) for terms in wanted)


def _term(text: str) -> Callable[[Entry], bool]:
    match = _TERM.fullmatch(text)
    name = match[1].lower() if match is not None else ""
    if match is None or name not in _FIELDS:
        raise InvalidParameter(f"filter {text.strip()!r} is not known: the build cache has {', '.join(_FIELDS)}")
    values, operator, wanted = _FIELDS[name], match[2], (match[3] or "").strip('"')
    if operator is None:
        return lambda entry: any(values(entry))
    if operator == "~=":
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise InvalidParameter(f"filter {text.strip()!r}: {error}") from None
        return lambda entry: any(pattern.search(each) for each in values(entry))
    return lambda entry: (wanted in values(entry)) == (operator == "==")


def _flag(name: str, true: bool = True) -> Callable[[Entry], list[str]]:
    return lambda entry: ["true"] if bool(entry[name]) is true else []


_FIELDS: Mapping[str, Callable[[Entry], list[str]]] = {
    "id": lambda entry: [str(entry["ID"])],
    "parent": lambda entry: [str(each) for each in entry["Parents"] or ()],
    "parents": lambda entry: [str(each) for each in entry["Parents"] or ()],
    "description": lambda entry: [str(entry["Description"])],
    "type": lambda entry: [str(entry["Type"])],
    "inuse": _flag("InUse"),
    "shared": _flag("Shared"),
    "private": _flag("Shared", False),
    "mutable": lambda entry: ["true"] if entry["Type"] == MOUNT else [],
    "immutable": lambda entry: ["true"] if entry["Type"] != MOUNT else [],
}
