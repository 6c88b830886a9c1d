"""What builds in BuildKit's way leave for the next: layers by what they were made of, images they were built on, cache folders.

All stay until they are pruned. What goes into a key is for `images.build`. Look-ups read memory; the rest says that it blocks.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moorage_guest.images.image import Image, LayerBlob, now, parse_time
from moorage_guest.images.layers import tree_size
from moorage_guest.images.layerstore import remove_tree
from moorage_guest.images.store import Images
from moorage_guest.store import Store

log = logging.getLogger(__name__)

KIND = "buildcache"
BASE_KIND = "buildbase"
FOLDER_KIND = "buildfolder"

#: What the records are called by `docker buildx du`.
REGULAR, MOUNT = "regular", "exec.cachemount"


@dataclass(frozen=True)
class Cached:
    """A layer and the step that made it. ``key`` says what it was made of, ``chain`` are all layers up to it."""

    id: str
    key: str
    layer: LayerBlob
    chain: tuple[str, ...]
    description: str
    created: str
    used: str = ""
    count: int = 0


@dataclass(frozen=True)
class Base:
    """An image that was fetched to be built on, and is none of the engine's. ``key`` is its configuration's digest."""

    id: str
    key: str
    layers: tuple[LayerBlob, ...]
    chain: tuple[str, ...]
    description: str
    created: str
    used: str = ""
    count: int = 0


@dataclass(frozen=True)
class Folder:
    """A folder that commands of builds share. ``key`` is the id they ask by."""

    id: str
    key: str
    description: str
    created: str
    used: str = ""
    count: int = 0


def key_of(*parts: object) -> str:
    """Return the digest of anything that JSON can say."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


@dataclass
class _Lock:
    """Who is in a folder: any number at once, or one alone."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class BuildCache:
    """All of it. `start` comes before `Images.sweep`."""

    def __init__(self, root: Path, store: Store, images: Images) -> None:
        self._root = root
        self._store = store
        self._images = images
        self._by_key: dict[str, Cached] = {}
        self._bases: dict[str, Base] = {}
        self._folders: dict[str, Folder] = {}
        self._busy: dict[str, _Lock] = {}
        self._began: set[tuple[str, ...]] = set()
        self._lock = threading.RLock()

    # -- start --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take back what is there and remove folders that belong to no record."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        for record_id, record in self._store.all(KIND).items():
            try:
                layer = LayerBlob(**record["layer"])
                known = Cached(**{**_without_version(record), "layer": layer, "chain": tuple(record["chain"])})
            except (KeyError, TypeError) as error:
                log.error("record %s of the build cache is damaged (%s): dropped", record_id, error)
                self._store.delete(KIND, record_id)
                continue
            if not self._is_whole(known):
                log.info("step %s of the build cache has lost its layers: dropped", known.description)
                self._store.delete(KIND, record_id)
                continue
            self._hold(known)
            self._by_key[known.key] = known
        for record_id, record in self._store.all(BASE_KIND).items():
            try:
                layers = tuple(LayerBlob(**each) for each in record["layers"])
                base = Base(**{**_without_version(record), "layers": layers, "chain": tuple(record["chain"])})
            except (KeyError, TypeError) as error:
                log.error("record %s of a base is damaged (%s): dropped", record_id, error)
                self._store.delete(BASE_KIND, record_id)
                continue
            if not self._is_whole(base):
                self._store.delete(BASE_KIND, record_id)
                continue
            self._hold(base)
            self._bases[base.key] = base
        for record_id, record in self._store.all(FOLDER_KIND).items():
            try:
                folder = Folder(**_without_version(record))
            except TypeError as error:
                log.error("record %s of a cache folder is damaged (%s): dropped", record_id, error)
                self._store.delete(FOLDER_KIND, record_id)
                continue
            self._folders[folder.id] = folder
        if self._root.is_dir() and self._store.recovered is None:
            for entry in self._root.iterdir():
                if entry.name not in self._folders:
                    log.info("removing %s, which belongs to no record of the build cache", entry)
                    remove_tree(entry)

    def _is_whole(self, known: Cached | Base) -> bool:
        """Whether everything of it is still on the disk."""
        unpacked = all(self._images.layer_store.get(chain_id) is not None for chain_id in known.chain)
        return unpacked and all(self._images.content.has(digest) for digest in _content(known))

    def _hold(self, known: Cached | Base) -> None:
        owner = f"cache:{known.id}"
        self._images.layer_store.holds.hold(owner, known.chain)
        self._images.content.holds.hold(owner, _content(known))

    # -- layers -------------------------------------------------------------------------------------------------------

    def find(self, key: str, owner: str) -> Cached | None:
        """Return the layer of a step, held by ``owner``, too, before anybody can prune it. Blocks for the disk."""
        with self._lock:
            known = self._by_key.get(key)
            if known is None:
                return None
            self._images.layer_store.holds.hold(owner, known.chain)
            self._images.content.holds.hold(owner, [known.layer.digest])
            self._by_key[key] = used = replace(known, used=now(), count=known.count + 1)
            self._put(used)
            return used

    def add(self, key: str, layer: LayerBlob, chain: Sequence[str], description: str) -> Cached:
        """Remember what a step made; its owner holds it. One of the same key is replaced. Blocks for the disk."""
        with self._lock:
            if (old := self._by_key.pop(key, None)) is not None:
                self._forget(old)
            stamp = now()
            known = Cached(secrets.token_hex(13), key, layer, tuple(chain), description, stamp, stamp, 1)
            self._hold(known)
            self._by_key[key] = known
            self._put(known)
            return known

    def began_with(self, chain: Sequence[str]) -> bool:
        """Whether a build of this daemon began with an image of these layers before; the next time it did."""
        known = tuple(chain) in self._began
        self._began.add(tuple(chain))
        return known

    def _put(self, known: Cached) -> None:
        self._store.put(KIND, known.id, {"version": 1, **asdict(known)})

    def keep_base(self, image: Image, description: str) -> None:
        """Keep an image that was fetched for a build, which holds it. Blocks for the disk."""
        with self._lock:
            stamp = now()
            base = self._bases.get(image.id)
            if base is None:
                base = Base(secrets.token_hex(13), image.id, image.layers, image.chain, description, stamp)
                self._hold(base)
            base = replace(base, used=stamp, count=base.count + 1)
            self._bases[image.id] = base
            self._store.put(BASE_KIND, base.id, {"version": 1, **asdict(base)})

    def _forget(self, known: Cached | Base) -> None:
        self._store.delete(KIND if isinstance(known, Cached) else BASE_KIND, known.id)
        self._images.layer_store.holds.release(f"cache:{known.id}")
        self._images.content.holds.release(f"cache:{known.id}")

    # -- folders ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def folder(
        self, key: str, sharing: str, description: str, fill: Callable[[Path], None]
    ) -> AsyncIterator[Path]:
        """Give the folder of a key for the time of the block, made with ``fill`` (in a thread) if there is none.

        ``shared`` gives it to everybody at once, ``locked`` to one after the other, ``private`` another one to each at a time.
        """
        folder = self._pick(key, sharing, description)
        busy = self._busy.setdefault(folder.id, _Lock())
        busy.users += 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                if sharing == "locked":
                    await stack.enter_async_context(busy.lock)
                path = self._root / folder.id
                await asyncio.to_thread(self._make, path, folder, fill)
                yield path
        finally:
            busy.users -= 1
            if not busy.users:
                self._busy.pop(folder.id, None)

    def _pick(self, key: str, sharing: str, description: str) -> Folder:
        with self._lock:
            mine = [each for each in self._folders.values() if each.key == key]
            if sharing == "private":
                mine = [each for each in mine if each.id not in self._busy]
            stamp = now()
            if mine:
                found = max(mine, key=lambda each: each.used)
                folder = replace(found, used=stamp, count=found.count + 1)
            else:
                folder = Folder(secrets.token_hex(13), key, description, stamp, stamp, 1)
            self._folders[folder.id] = folder
            return folder

    def _make(self, path: Path, folder: Folder, fill: Callable[[Path], None]) -> None:
        with self._lock:
            self._store.put(FOLDER_KIND, folder.id, {"version": 1, **asdict(folder)})
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                return
            half = path.with_name(f"{path.name}.half")
            remove_tree(half)
            half.mkdir(mode=0o700)
            try:
                fill(half)
                half.rename(path)
            except BaseException:
                remove_tree(half)
                raise

    # -- accounting ---------------------------------------------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        """Return what there is as GET /system/df shows it. Blocks for the disk."""
        with self._lock:
            layers, folders = list(self._by_key.values()), list(self._folders.values())
            bases = list(self._bases.values())
        parents = {known.chain[-1]: known.id for known in layers}
        found = []
        for known in layers:
            parent = parents.get(known.chain[-2]) if len(known.chain) > 1 else None
            size = self._images.layer_store.size(known.chain[-1:])
            found.append(
                _shown(known, REGULAR, size, shared=self._is_shared(known), parents=[parent] if parent else None)
            )
        for base in bases:
            found.append(_shown(base, REGULAR, self._images.layer_store.size(base.chain), shared=self._is_shared(base)))
        for folder in folders:
            path = self._root / folder.id
            size = tree_size(path) if path.is_dir() else 0
            found.append(_shown(folder, MOUNT, size, in_use=folder.id in self._busy))
        return found

    def _is_shared(self, known: Cached | Base) -> bool:
        owners = self._images.layer_store.holds.owners(known.chain[-1]) if known.chain else []
        return any(owner.startswith("image:") for owner in owners)

    def prune(self, chosen: Iterable[str]) -> tuple[list[str], int]:
        """Remove records by id unless they are in use; returns the ids and the bytes freed. Blocks for the disk."""
        wanted = set(chosen)
        done: list[str] = []
        freed = 0
        before = self._images.stored_bytes()
        with self._lock:
            for known in [each for each in self._by_key.values() if each.id in wanted]:
                del self._by_key[known.key]
                self._forget(known)
                done.append(known.id)
            for base in [each for each in self._bases.values() if each.id in wanted]:
                del self._bases[base.key]
                self._forget(base)
                done.append(base.id)
            doomed = [each for each in self._folders.values() if each.id in wanted and each.id not in self._busy]
            for folder in doomed:
                del self._folders[folder.id]
                self._store.delete(FOLDER_KIND, folder.id)
        for folder in doomed:
            path = self._root / folder.id
            if path.is_dir():
                freed += tree_size(path)
                remove_tree(path)
            done.append(folder.id)
        self._images.layer_store.empty_trash()
        return done, freed + max(before - self._images.stored_bytes(), 0)

    def unused_since(self, entry: Mapping[str, Any], seconds: float) -> bool:
        """Whether an entry of `records` was last used before a time, seconds since the epoch."""
        return parse_time(str(entry["LastUsedAt"] or entry["CreatedAt"])) < seconds


def _shown(
    known: Cached | Base | Folder,
    kind: str,
    size: int,
    *,
    shared: bool = False,
    in_use: bool = False,
    parents: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "ID": known.id, "Parents": parents, "Type": kind, "Description": known.description, "InUse": in_use,
        "Shared": shared, "Size": size, "CreatedAt": known.created, "LastUsedAt": known.used or None,
        "UsageCount": known.count,
    }  # fmt: skip


def _content(known: Cached | Base) -> list[str]:
    """Return the digests of the blobs that it needs."""
    return [known.layer.digest] if isinstance(known, Cached) else [known.key, *(layer.digest for layer in known.layers)]


def _without_version(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "version"}


def fill_folder(path: Path, *, mode: int, uid: int, gid: int) -> None:
    """Give a new folder its owner and mode. Blocks."""
    os.chown(path, uid, gid)
    path.chmod(mode)
