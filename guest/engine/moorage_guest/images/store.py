"""The images this engine has: the table of them, with removal, pruning and what they take on disk.

Getting images in and out is for `loading`, `saving`, `pulling`, `pushing` and `importing`; running them for `layers`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from moorage_guest.errors import Conflict, InvalidParameter
from moorage_guest.images import names
from moorage_guest.images.image import Image, created_seconds
from moorage_guest.images.table import KIND, ImageTable


class Images(ImageTable):
    """All images. Look-ups only read memory; what touches the disk says so and belongs in a thread. Thread-safe."""

    # -- removal ------------------------------------------------------------------------------------------------------

    async def remove(self, reference: str, *, force: bool = False, prune: bool = True) -> list[dict[str, str]]:
        """Untag or delete, as `docker rmi`; returns what was done. Raises NotFound, Conflict."""
        done = await asyncio.to_thread(self._remove, reference, force, prune)
        await asyncio.to_thread(self.layer_store.empty_trash)
        return done

    def _remove(self, reference: str, force: bool, prune: bool) -> list[dict[str, str]]:
        with self._lock:
            image = self.resolve(reference)
            users = list(self.in_use().get(image.id, []))
            name = self._name_of(image, reference)
            done: list[dict[str, str]] = []
            if name is None:
                repositories = {names.parse(tag).name for tag in (*image.tags, *image.digests)}
                if len(repositories) > 1 and not force:
                    raise Conflict(
                        f"conflict: unable to delete {image.short_id} (must be forced) - "
                        "image is referenced in multiple repositories"
                    )
                self._check_unused(image, users, force)
                with self._all_or_nothing():
                    for each in (*image.tags, *image.digests):
                        image = self._untag_event(image, each, done)
                    self._store.delete(KIND, image.id)
                self._delete(image, prune, done)
                return done
            remaining = [tag for tag in image.tags if tag != name]
            last = not remaining if name in image.tags else not image.tags and len(image.digests) == 1
            if not last:
                self._untag_event(image, name, done)
                repository = names.parse(name).name
                if name in image.tags and not any(names.parse(tag).name == repository for tag in remaining):
                    for digest in [each for each in image.digests if names.parse(each).name == repository]:
                        self._untag_event(self._images[image.id], digest, done)
                self._changed()
                return done
            if users and not force:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{reference}" (must force) - '
                    f"container {users[0][:12]} is using its referenced image {image.short_id}"
                )
            kept = bool(users or self.children(image.id))
            # A daemon killed in between must not leave the image without a name by which to remove it.
            with self._all_or_nothing():
                image = self._untag_event(image, name, done)
                for digest in image.digests:
                    image = self._untag_event(image, digest, done)
                if not kept:
                    self._store.delete(KIND, image.id)
            if kept:
                self._changed()
                return done
            self._delete(image, prune, done)
            return done

    def _name_of(self, image: Image, reference: str) -> str | None:
        """Return which of the image's names a reference is; None when it is an id."""
        if reference.startswith("sha256:"):
            return None
        try:
            wanted = names.parse(reference).with_default_tag()
        except InvalidParameter:
            return None
        text = f"{wanted.name}@{wanted.digest}" if wanted.digest else str(wanted)
        return text if text in image.tags or text in image.digests else None

    def _check_unused(self, image: Image, users: list[str], force: bool) -> None:
        for container_id in users:
            if self.is_running(container_id):
                raise Conflict(
                    f"conflict: unable to delete {image.short_id} (cannot be forced) - "
                    f"image is being used by running container {container_id[:12]}"
                )
        if users and not force:
            raise Conflict(
                f"conflict: unable to delete {image.short_id} (must be forced) - "
                f"image is being used by stopped container {users[0][:12]}"
            )
        if self.children(image.id):
            raise Conflict(
                f"conflict: unable to delete {image.short_id} (cannot be forced) - image has dependent child images"
            )

    def _untag_event(self, image: Image, name: str, done: list[dict[str, str]]) -> Image:
        image = self._untag(image, name)
        familiar = names.parse(name).familiar
        done.append({"Untagged": familiar})
        self.publish("untag", image, familiar)
        return image

    def _delete(self, image: Image, prune: bool, done: list[dict[str, str]]) -> None:
        """Delete an image without names, and parents that only it needed."""
        while True:
            self._store.delete(KIND, image.id)
            del self._images[image.id]
            done.append({"Deleted": image.id})
            self.publish("delete", image)
            held = [chain for chain in reversed(image.chain) if self.layer_store.holds.count(chain) == 1]
            self.layer_store.holds.release(f"image:{image.id}")
            self.content.holds.release(f"image:{image.id}")
            done.extend({"Deleted": chain} for chain in held if self.layer_store.get(chain) is None)
            parent = self._images.get(image.parent)
            if not prune or parent is None or parent.tags or parent.digests or self.children(parent.id):
                break
            if self.in_use().get(parent.id):
                break
            image = parent
        self._changed()

    async def prune(
        self,
        *,
        dangling: bool = True,
        until: float | None = None,
        keep: Callable[[Image], bool] | None = None,
        parents: bool = True,
    ) -> tuple[list[dict[str, str]], int]:
        """Delete unused images: those without a name, or all with ``dangling`` false. ``keep`` saves single ones.

        With an image go the ``parents`` that only it needed, whatever ``keep`` says of them.
        Without ``keep``, downloads that broke off go too. ``until`` is seconds since the epoch. Returns what was deleted
        and the bytes freed.
        """
        done = await asyncio.to_thread(self._prune, dangling, until, keep, parents)
        await asyncio.to_thread(self.layer_store.empty_trash)
        return done

    def _prune(
        self, dangling: bool, until: float | None, keep: Callable[[Image], bool] | None, parents: bool
    ) -> tuple[list[dict[str, str]], int]:
        done: list[dict[str, str]] = []
        with self._lock:
            before = self.stored_bytes()
            users = self.in_use()
            for image in sorted(self.all(), key=lambda each: len(each.document.get("history") or ()), reverse=True):
                if image.id not in self._images or users.get(image.id) or self.children(image.id):
                    continue
                if (dangling and image.tags) or (until is not None and created_seconds(image) > until):
                    continue
                if keep is not None and keep(image):
                    continue
                for name in (*image.tags, *image.digests):
                    image = self._untag_event(image, name, done)
                self._delete(image, parents, done)
            if keep is None:
                self.content.drop_halves(until)
            freed = max(before - self.stored_bytes(), 0)
        return done, freed

    # -- accounting ---------------------------------------------------------------------------------------------------

    def compressed(self, digest: str) -> tuple[str, int] | None:
        """Return digest and size that an uncompressed layer has once it is compressed, if that was ever done."""
        record = self._store.get("compressed", digest)
        return (str(record["digest"]), int(record["size"])) if record else None

    def note_compressed(self, digest: str, compressed: str, size: int) -> None:
        """Remember what compressing a layer gave: the same input gives the same output."""
        self._store.put("compressed", digest, {"version": 1, "digest": compressed, "size": size})

    def stored_bytes(self) -> int:
        """Bytes of unpacked layers and of downloads that broke off."""
        return sum(layer.size for layer in self.layer_store.all()) + self.content.half_bytes()

    def shared_size(self, image: Image) -> int:
        """Bytes of the layers that other images have too."""
        with self._lock:
            others: set[str] = set()
            for other in self._images.values():
                if other.id != image.id:
                    others.update(other.chain)
            return self.layer_store.size(chain for chain in image.chain if chain in others)

    def upper_path(self, image: Image) -> dict[str, str]:
        """Return the folders by which `docker inspect` shows where an image lies."""
        folders = [str(self.data_root.layers / name) for name in self.layer_store.lower_names(image.chain)]
        if not folders:
            return {}
        data = {
            "UpperDir": folders[0],
            "MergedDir": str(Path(folders[0]).with_name("merged")),
            "WorkDir": str(Path(folders[0]).with_name("work")),
        }
        return {"LowerDir": ":".join(folders[1:]), **data} if len(folders) > 1 else data
