"""The table of images: records, names, look-up, and what keeps their content alive.

Removal and accounting are for `store`, whose `Images` is this table with them.
"""

import asyncio
import dataclasses
import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from moorage_guest.errors import InvalidParameter, NotFound
from moorage_guest.events import EventBus
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.images import content as media
from moorage_guest.images import kernel, names
from moorage_guest.images.compression import opened_uncompressed
from moorage_guest.images.content import ContentStore
from moorage_guest.images.image import Image, LayerBlob, now
from moorage_guest.images.layerstore import LayerStore, chain_ids
from moorage_guest.images.registry import RegistrySettings
from moorage_guest.images.transfers import Transfers
from moorage_guest.paths import DataRoot
from moorage_guest.store import Store
from moorage_guest.sysinfo import oci_architecture

log = logging.getLogger(__name__)

KIND = "image"

#: Seconds after which new content is forced to disk; until then a power cut makes it be checked again.
DURABLE_AFTER = 30.0


def no_containers() -> Mapping[str, list[str]]:
    """Stand for an engine without containers."""
    return {}


class ImageTable:
    """Images by id and name. Look-ups only read memory and never wait; what blocks for the disk says so. Thread-safe."""

    def __init__(self, data_root: DataRoot, store: Store, events: EventBus, ids: IdMap = SAME) -> None:
        self.data_root = data_root
        self.events = events
        self._store = store
        self.content = ContentStore(data_root.images, data_root.tmp / "images")
        self.layer_store = LayerStore(data_root.layers, data_root.tmp / "images", store, self.content, ids)
        self.in_use: Callable[[], Mapping[str, list[str]]] = no_containers
        """Containers by the image they were made from; the engine puts its own here."""
        self.is_running: Callable[[str], bool] = lambda container_id: False
        self.stopping = False
        """Whether the daemon is about to end: downloads that this breaks off are kept, for the next one goes on with them."""
        self.registries = RegistrySettings()
        self.transfers = self._make_transfers()
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        self._retagged: set[str] = set()
        """Images that were given a name they had: when that was is not worth a write of its own."""
        self._lock = threading.RLock()
        self._index_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._durable: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[None]] = set()

    def configure(self, registries: RegistrySettings) -> None:
        """Put settings of daemon.json in force; transfers that are going on finish under the old ones."""
        self.registries = registries
        self.transfers = self._make_transfers()

    def _make_transfers(self) -> Transfers:
        return Transfers(
            asyncio.Semaphore(max(self.registries.max_concurrent_downloads, 1)),
            asyncio.Semaphore(max(self.registries.max_concurrent_uploads, 1)),
        )

    # -- start and end ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what is there. `sweep` has to follow once everybody who holds layers has said so."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._start)
        self._plan_durable()

    def _start(self) -> None:
        for left in self.content.tmp.iterdir():
            while kernel.is_mount_point(left / "merged"):
                kernel.unmount(left / "merged", lazy=True)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        self.layer_store.start()
        for key, record in self._store.all(KIND).items():
            try:
                document = self.content.read_json(key)
                image = Image.load(record, document)
                self._restore_layers(image)
            except (KeyError, TypeError, ValueError, NotFound, InvalidParameter, OSError) as error:
                log.error("image %s (%s) cannot be used: %s; dropped", key, record.get("tags"), error)
                self._store.delete(KIND, key)
                continue
            self._hold(image)
            self._images[image.id] = image
            for name in (*image.tags, *image.digests):
                self._names[name] = image.id
        self._write_index()

    def _restore_layers(self, image: Image) -> None:
        """Unpack again what a power cut took, from blobs that still have their digest."""
        parent = ""
        for layer, chain_id in zip(image.layers, image.chain, strict=True):
            if self.layer_store.get(chain_id) is None:
                log.warning("unpacking layer %s of image %s again", chain_id, image.id)
                if not self.content.verify(layer.digest):
                    raise InvalidParameter(f"content {layer.digest} is damaged or gone; pull or load the image again")
                self.add_layer(parent, layer, owner=f"image:{image.id}")
            parent = chain_id

    async def sweep(self) -> None:
        """Free everything that nobody holds: half pulls of long ago, layers of a crashed build, blobs without an image."""
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> int:
        self.layer_store.sweep()
        return self.content.sweep()

    async def close(self) -> None:
        """End the threads. What is not on disk yet stays marked, and the next start plans for it."""
        if self._durable is not None:
            self._durable.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.to_thread(self._write_retagged)
        self.layer_store.close()

    def _changed(self) -> None:
        """Write the layout's index, and plan the moment when new content is forced to disk."""
        self._write_index()
        self._plan_soon()

    def _plan_soon(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._plan_durable)

    def _plan_durable(self) -> None:
        assert self._loop is not None
        if self._durable is not None:
            self._durable.cancel()
        self._durable = self._loop.call_later(DURABLE_AFTER, self._start_durable)

    def _start_durable(self) -> None:
        assert self._loop is not None
        task = self._loop.create_task(asyncio.to_thread(self._make_durable), name="images-durable")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _make_durable(self) -> None:
        self._write_retagged()
        self.layer_store.make_durable()

    def _write_retagged(self) -> None:
        with self._lock:
            for image_id in self._retagged & self._images.keys():
                self._put(self._images[image_id])
            self._retagged.clear()

    def _write_index(self) -> None:
        with self._index_lock:  # so that who writes last has seen the most
            self.content.write_index(self._index())

    def _index(self) -> list[dict[str, Any]]:
        manifests: list[dict[str, Any]] = []
        for image in self.all():
            base = {"mediaType": media.MANIFEST, "digest": image.manifest, "size": self.content.size(image.manifest)}
            if not image.tags:
                manifests.append(base)
            for tag in image.tags:
                short = names.parse(tag).tag
                notes = {"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": short}
                manifests.append({**base, "annotations": notes})
        return manifests

    # -- look-up ------------------------------------------------------------------------------------------------------

    def resolve(self, reference: str) -> Image:
        """Return the image that a name, a digest or the beginning of an id means. Raises NotFound, InvalidParameter."""
        found = self.find(reference)
        if found is None:
            raise NotFound(f"No such image: {self._shown(reference)}")
        return found

    def find(self, reference: str) -> Image | None:
        """As `resolve`, None when there is none. Raises InvalidParameter when that is no reference."""
        if image := self._images.get(reference):
            return image
        if len(reference) == 64 and (image := self._images.get(f"sha256:{reference}")):
            return image
        if not reference:
            raise InvalidParameter("invalid reference format")
        parsed: names.Reference | None = None
        if not reference.startswith("sha256:"):
            try:
                parsed = names.parse(reference)
            except InvalidParameter:
                if not names.is_image_id(reference):
                    raise
        if parsed is not None:
            wanted = parsed.with_default_tag()
            name = f"{wanted.name}@{wanted.digest}" if wanted.digest else str(wanted)
            if image_id := self._names.get(name):
                return self._images.get(image_id)
            if wanted.digest and (image := self._images.get(wanted.digest)):
                return image if any(tag.startswith(f"{wanted.name}:") for tag in image.tags) else None
        if names.is_image_id(reference):
            start = f"sha256:{reference.removeprefix('sha256:')}"
            found = [image for image_id, image in list(self._images.items()) if image_id.startswith(start)]
            if len(found) == 1:
                return found[0]
        return None

    def _shown(self, reference: str) -> str:
        try:
            return names.parse(reference).with_default_tag().familiar
        except InvalidParameter:
            return reference

    def get(self, image_id: str) -> Image:
        """Return an image by its full id. Raises NotFound."""
        try:
            return self._images[image_id]
        except KeyError:
            raise NotFound(f"No such image: {image_id}") from None

    def all(self) -> list[Image]:
        """Every image, intermediate ones of builds too."""
        return list(self._images.values())

    def children(self, image_id: str) -> list[Image]:
        """Images that were built on top of this one."""
        return [image for image in self.all() if image.parent == image_id]

    # -- making images ------------------------------------------------------------------------------------------------

    @contextmanager
    def work(self, what: str) -> Iterator[str]:
        """An owner for content and layers until an image holds them; whatever has no image at the end is freed. Blocks."""
        owner = f"{what}:{uuid.uuid4().hex}"
        try:
            yield owner
        finally:
            self.release_work(owner)

    def release_work(self, owner: str) -> None:
        """Free what only this owner held. Blocks for the disk."""
        self.layer_store.holds.release(owner)
        self.content.holds.release(owner)
        self.layer_store.empty_trash()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Change records and memory together: when the database cannot be written, memory is as before too."""
        with self._lock:
            before = dict(self._images), dict(self._names)
            try:
                with self._store.transaction():
                    yield
            except BaseException:
                self._images, self._names = before
                raise

    def add_layer(self, parent: str, layer: LayerBlob, *, owner: str) -> str:
        """Unpack a stored, uncompressed or compressed blob whose digest has been verified; returns the chain id. Blocks."""
        chain_id = chain_ids([parent, layer.diff_id])[-1] if parent else layer.diff_id
        self.content.holds.hold(owner, [layer.digest])
        self.layer_store.holds.hold(owner, [chain_id])
        if self.layer_store.get(chain_id) is not None:
            return chain_id
        with opened_uncompressed(self.content.path(layer.digest), layer.digest, layer.diff_id, self.content.tmp) as tar:
            added = self.layer_store.add(
                parent, layer.diff_id, tar, digest=layer.digest, media_type=layer.media_type, owner=owner
            )
        return added.chain_id

    def create(
        self,
        raw_config: bytes,
        layers: Sequence[LayerBlob],
        *,
        owner: str,
        manifest: str = "",
        tags: Iterable[str] = (),
        digests: Iterable[str] = (),
        hidden: Iterable[str] = (),
        parent: str = "",
    ) -> Image:
        """Record an image whose blobs are stored and layers unpacked, all held by ``owner``; durable when it returns. Blocks.

        An image that exists gets the names. A tag that another image has moves.
        """
        document = json.loads(raw_config)
        image_id = self.content.add(raw_config)
        self.content.holds.hold(owner, [image_id])
        if not manifest:
            manifest = self._make_manifest(image_id, len(raw_config), layers, owner)
        chain = tuple(chain_ids(layer.diff_id for layer in layers))
        with self._lock:
            old = self._images.get(image_id)
            image = old or Image(
                image_id, document, tuple(layers), chain, manifest, parent=parent, size=self.layer_store.size(chain)
            )
            extra = set(hidden) | ({manifest} if manifest != image.manifest else set())
            image = dataclasses.replace(
                image,
                digests=tuple(dict.fromkeys((*image.digests, *digests))),
                hidden=tuple(dict.fromkeys((*image.hidden, *sorted(extra)))),
                parent=image.parent or parent,
            )
            with self._all_or_nothing():
                self._put(image)
                for tag in tags:
                    if self._names.get(tag) != image.id:
                        image = self._tag(image, tag)
            self._hold(image)
            for name in image.digests:
                self._names[name] = image.id
        self._changed()
        return image

    def derive(
        self,
        base: Image | None,
        layer: LayerBlob | None,
        config: Mapping[str, Any],
        *,
        owner: str,
        comment: str = "",
        author: str = "",
        created_by: str = "",
        created: str = "",
        tags: Iterable[str] = (),
        parent: str = "",
        chain_base: Sequence[str] | None = None,
        platform: Mapping[str, str] | None = None,
        intermediate: bool = False,
    ) -> Image:
        """Record an image made of another one, one more layer (or none) and a configuration. Blocks.

        ``chain_base`` are the layers below when ``base`` is gone; they are still held by their container.
        """
        if base is not None:
            layers = list(base.layers)
            document = {**base.document}
        else:
            layers = [self._stored(chain_id) for chain_id in chain_base or ()]
            document = {"history": [{"created": now(), "comment": "image is gone"} for _ in layers]}
        if layer is not None:
            layers.append(layer)
        stamp = created or now()
        step: dict[str, Any] = {"created": stamp}
        for name, value in (("author", author), ("created_by", created_by), ("comment", comment)):
            if value:
                step[name] = value
        if layer is None:
            step["empty_layer"] = True
        for name in ("container", "container_config", "docker_version", "id", "parent", "moby.buildkit.buildinfo.v1"):
            document.pop(name, None)
        document.update(platform or {})
        document.setdefault("architecture", oci_architecture())
        document.setdefault("os", "linux")
        document["created"] = stamp
        for name, value in (("author", author), ("comment", comment)):
            document.pop(name, None)
            if value:
                document[name] = value
        document["config"] = {
            key: value
            for key, value in config.items()
            if value not in (None, "", [], {}) or (key == "Cmd" and value == [])
        }
        document["history"] = [*(document.get("history") or []), step]
        document["rootfs"] = {"type": "layers", "diff_ids": [each.diff_id for each in layers]}
        raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        image = self.create(raw, layers, owner=owner, tags=tags, parent=parent)
        if not intermediate:
            self.publish("create", image)
        return image

    def _stored(self, chain_id: str) -> LayerBlob:
        layer = self.layer_store.get(chain_id)
        if layer is None or not self.content.has(layer.digest):
            raise NotFound(f"layer {chain_id} has no content any more: its image was removed; use docker export")
        return LayerBlob(layer.diff_id, layer.digest, layer.media_type, layer.blob_size)

    def hold_for(self, owner: str, image: Image) -> None:
        """Keep an image's content and layers for as long as ``owner`` works with it."""
        self.content.holds.hold(owner, [image.id, image.manifest, *(layer.digest for layer in image.layers)])
        self.layer_store.holds.hold(owner, image.chain)

    def add_digest(self, image: Image, name: str, manifest: str) -> None:
        """Note that a registry has the image under ``name@digest``, and keep that manifest. Blocks for the disk."""
        with self._lock:
            image = self.get(image.id)
            image = dataclasses.replace(
                image,
                digests=tuple(dict.fromkeys((*image.digests, name))),
                hidden=tuple(dict.fromkeys((*image.hidden, manifest))) if manifest != image.manifest else image.hidden,
            )
            self._put(image)
            self._hold(image)
            self._names[name] = image.id

    def _make_manifest(self, config: str, config_size: int, layers: Sequence[LayerBlob], owner: str) -> str:
        digest, _size = self.content.add_json(
            {
                "schemaVersion": 2,
                "mediaType": media.MANIFEST,
                "config": {"mediaType": media.CONFIG, "digest": config, "size": config_size},
                "layers": [
                    {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers
                ],
            }
        )
        self.content.holds.hold(owner, [digest])
        return digest

    def _hold(self, image: Image) -> None:
        owner = f"image:{image.id}"
        self.content.holds.hold(
            owner, [image.id, image.manifest, *image.hidden, *(layer.digest for layer in image.layers)]
        )
        self.layer_store.holds.hold(owner, image.chain)

    def _put(self, image: Image) -> None:
        self._store.put(KIND, image.id, image.record())
        self._images[image.id] = image

    # -- names --------------------------------------------------------------------------------------------------------

    def tag(self, image: Image, name: names.Reference) -> None:
        """Give an image a name; another image loses it. Blocks for the disk, unless the image has the name."""
        if name.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        wanted = name.with_default_tag()
        with self._lock:
            image = self.get(image.id)
            same = self._names.get(str(wanted)) == image.id
            if same:
                self._images[image.id] = dataclasses.replace(image, last_tagged=now())
                self._retagged.add(image.id)
            else:
                with self._all_or_nothing():
                    self._tag(image, str(wanted))
        if same:
            self._plan_soon()
        else:
            self._changed()
        self.publish("tag", image, wanted.familiar)

    def _tag(self, image: Image, tag: str) -> Image:
        previous = self._names.get(tag)
        if previous is not None and previous != image.id:
            other = self._images[previous]
            self._put(dataclasses.replace(other, tags=tuple(name for name in other.tags if name != tag)))
        image = dataclasses.replace(image, tags=tuple(dict.fromkeys((*image.tags, tag))), last_tagged=now())
        self._put(image)
        self._names[tag] = image.id
        return image

    def _untag(self, image: Image, name: str) -> Image:
        image = dataclasses.replace(
            image,
            tags=tuple(tag for tag in image.tags if tag != name),
            digests=tuple(digest for digest in image.digests if digest != name),
        )
        self._put(image)
        self._names.pop(name, None)
        return image

    def publish(self, action: str, image: Image, name: str = "") -> None:
        """Tell the event bus what happened to an image; callable from any thread."""
        labels = image.config.get("Labels") or {}
        attributes = {**{str(key): str(value) for key, value in labels.items()}, "name": name or image.id}
        if self._loop is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self.events.publish, "image", action, image.id, attributes)
