"""Named volumes, of the local driver and of plugins: made, listed, mounted while containers run, filled from images, removed.

A container *refers* to a volume from its creation to its removal, which keeps the volume from being removed; it *uses* it
while it runs, which keeps the volume's mount. References and uses are told again at every start (`restore`). Of a plugin's
volume the record also says for whom it is mounted, since the plugin counts that, and nobody tells it of the daemon's death.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moorage_guest import mountcalls
from moorage_guest.copyup import copy_up, has_content
from moorage_guest.errors import Conflict, EngineError, NotFound, SystemError_
from moorage_guest.events import EventBus
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.net.selection import Selection, created_before
from moorage_guest.paths import DataRoot
from moorage_guest.plugins.client import PROBE, CallError, Plugins
from moorage_guest.plugins.discovery import Folders
from moorage_guest.plugins.volumedriver import Found, VolumeDriver, VolumeDrivers
from moorage_guest.store import Store
from moorage_guest.volumerecord import LOCAL, Volume, check_name, check_options, is_name

log = logging.getLogger(__name__)

KIND = "volume"
VERSION = 1
ANONYMOUS = "com.docker.volume.anonymous"
FILTERS = ("dangling", "driver", "label", "name")
PRUNE_FILTERS = ("label", "label!", "all", "until")


class Volumes:
    """All volumes of one daemon. Everything but disk work is done in the event loop's thread."""

    def __init__(
        self,
        store: Store,
        events: EventBus,
        data: DataRoot,
        plugins: Plugins | None = None,
        ids: IdMap = SAME,
    ) -> None:
        self._ids = ids
        self._drivers = VolumeDrivers(plugins or Plugins(Folders((), ())))
        self._store = store
        self._events = events
        self._folder = data.volumes
        self._volumes: dict[str, Volume] = {}
        self._references: dict[str, set[str]] = {}
        self._uses: dict[str, set[str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._stale: dict[str, dict[str, str]] = {}
        self._load()

    def _load(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o701)
        for name, value in self._store.all(KIND).items():
            try:
                self._volumes[name] = self._read(name, value)
            except (KeyError, TypeError, ValueError) as error:
                log.error("record of volume %s is damaged (%s): its files stay in %s", name, error, self._folder / name)
        for path in self._folder.iterdir():
            # A volume whose record is lost still has its content: it comes back, without labels and options.
            if path.name not in self._volumes and is_name(path.name) and (path / "_data").is_dir():
                log.warning("volume %s had no record: taken back", path.name)
                self._volumes[path.name] = Volume(path.name, "local", path / "_data", _stamp(path))
                self._keep(self._volumes[path.name])

    def _read(self, name: str, value: Mapping[str, Any]) -> Volume:
        """Make a volume of its record, or of the record's copy. Raises KeyError, TypeError or ValueError."""
        try:
            return self._volume(name, value)
        except (KeyError, TypeError, ValueError):
            spare = self._store.spare(KIND, name)
            if spare is None:
                raise
            volume = self._volume(name, spare)
            self._keep(volume)
            return volume

    def _volume(self, name: str, value: Mapping[str, Any]) -> Volume:
        local = value["driver"] == LOCAL
        return Volume(
            name, value["driver"], self._folder / name / "_data" if local else Path(value["mountpoint"]),
            value["created"], dict(value["options"]), dict(value["labels"]),
            LOCAL if local else value["scope"], {} if local else dict(value["mounted"]),
        )  # fmt: skip

    async def restore(self, references: Mapping[str, Iterable[str]], live: Mapping[str, Iterable[str]]) -> None:
        """Learn which containers refer to which volumes, and which of them run; drop mounts that nobody uses."""
        for container, names in references.items():
            for name in names:
                self._references.setdefault(name, set()).add(container)
        for container, names in live.items():
            for name in names:
                self._uses.setdefault(name, set()).add(container)
        for volume in list(self._volumes.values()):
            if volume.mounts and not self._uses.get(volume.name):
                await asyncio.to_thread(_unmount_if_mounted, volume.mountpoint)
            stale = {key: each for key, each in volume.mounted.items() if key not in self._uses.get(volume.name, ())}
            if stale:
                self._stale[volume.name] = stale

    async def release_stale(self) -> None:
        """Tell plugins of the uses that ended while no daemon ran; after `restore`. What they say to it is only logged."""
        stale, self._stale = self._stale, {}
        await asyncio.gather(*(self._release_stale(name, uses) for name, uses in stale.items()))

    async def _release_stale(self, name: str, uses: Mapping[str, str]) -> None:
        async with self._lock(name):
            for container_id, mount_id in uses.items():
                volume = self._volumes.get(name)
                if volume is not None:
                    await self._unmount_plugins(volume, container_id, mount_id)

    # -- volumes

    async def create(
        self, name: str | None, driver: str, options: Mapping[str, str], labels: Mapping[str, str], *, token: str = ""
    ) -> Volume:
        """Create a volume, or return the one of that name. No name makes an anonymous one, one for each ``token`` given."""
        if not name:
            name = hashlib.sha256(token.encode()).hexdigest() if token else secrets.token_hex(32)
            labels = {ANONYMOUS: "", **labels}
        anonymous = ANONYMOUS in labels
        async with self._lock(name):
            plugin = await self._driver("create", name, driver) if driver not in ("", LOCAL) else None
            if plugin is None:
                check_name(name)
            found = await self._same(name, driver)
            if found is None and not driver and not anonymous:
                found = await self._probe(name)
            if found is not None:
                return found
            if plugin is None:
                check_options(name, options)
                volume = Volume(name, LOCAL, self._folder / name / "_data", _now(), dict(options), dict(labels))
                await asyncio.to_thread(self._make, volume)
            else:
                volume = await self._make_plugins(plugin, name, options, labels)
            self._volumes[name] = volume
        self._events.publish("volume", "create", name, {"driver": volume.driver})
        return volume

    async def _driver(self, action: str, name: str, driver: str) -> VolumeDriver:
        try:
            return await self._drivers.get(driver)
        except EngineError as error:
            raise type(error)(f"{action} {name}: {error}") from error

    async def _same(self, name: str, driver: str) -> Volume | None:
        """Return the volume that has the name already. Raises Conflict for another driver's, unless that one has lost it."""
        volume = self._volumes.get(name)
        if volume is None:
            return None
        conflict = driver not in ("", volume.driver)
        if not volume.local:
            try:
                found = await (await self._drivers.get(volume.driver)).get(name)
            except EngineError as error:
                raise Conflict(
                    f"create {name}: found reference to volume '{name}' in driver '{volume.driver}', but got an error while "
                    f"checking the driver: {error}: volume name must be unique"
                ) from error
            if found is None and self._references.get(name):
                raise Conflict(
                    f"create {name}: found references to volume '{name}' in driver '{volume.driver}' but the volume was not "
                    "found in the driver -- you may need to remove containers referencing this volume or force remove the "
                    "volume to re-create it: volume name must be unique"
                )
            if found is None:
                self._forget(name)
                return None
        if conflict:
            raise Conflict(
                f"create {name}: driver '{volume.driver}' already has volume '{name}': volume name must be unique"
            )
        return volume

    async def _probe(self, name: str) -> Volume | None:
        """Return, and remember, the volume of that name that some plugin has; None when none has."""
        for driver in await self._drivers.all():
            try:
                found = await driver.get(name, PROBE)
            except CallError as error:
                log.warning("get %s: %s", name, error)
                continue
            if found is not None:
                self._volumes[name] = await self._take(driver, found, {}, {})
                return self._volumes[name]
        return None

    async def _make_plugins(
        self, driver: VolumeDriver, name: str, options: Mapping[str, str], labels: Mapping[str, str]
    ) -> Volume:
        """Have a plugin make a volume, or take the one that it has; the record is made."""
        try:
            found = await driver.get(name)
            if found is None:
                await driver.create(name, options)
        except CallError as error:
            raise SystemError_(f"create {name}: {error}") from error
        return await self._take(driver, found or Found(name), options, labels)

    async def _take(
        self, driver: VolumeDriver, found: Found, options: Mapping[str, str], labels: Mapping[str, str]
    ) -> Volume:
        volume = Volume(
            found.name, driver.name, Path(found.mountpoint), found.created, dict(options), dict(labels),
            await driver.scope(),
        )  # fmt: skip
        self._keep(volume)
        return volume

    async def look_for(self, name: str, driver: str) -> None:
        """Learn of a volume that a plugin has and nobody here has asked for yet: it must not pass for a new one."""
        if name in self._volumes or driver == LOCAL:
            return
        async with self._lock(name):
            if not driver:
                await self._probe(name)
                return
            plugin = await self._driver("create", name, driver)
            try:
                found = await plugin.get(name)
            except CallError as error:
                raise SystemError_(f"create {name}: {error}") from error
            if found is not None and name not in self._volumes:
                self._volumes[name] = await self._take(plugin, found, {}, {})

    def _make(self, volume: Volume) -> None:
        try:
            volume.mountpoint.parent.mkdir(mode=0o701, exist_ok=True)
            volume.mountpoint.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise SystemError_(f"create {volume.name}: cannot make {volume.mountpoint}: {error.strerror}") from error
        volume.mountpoint.chmod(0o755)
        self._ids.give(volume.mountpoint)
        self._keep(volume)

    def _keep(self, volume: Volume) -> None:
        self._store.put(KIND, volume.name, {"version": VERSION, **volume.to_record()})

    def _forget(self, name: str) -> None:
        """Drop what is known of a volume that is no more."""
        self._store.delete(KIND, name)
        self._volumes.pop(name, None)
        self._references.pop(name, None)
        self._uses.pop(name, None)

    async def look(self, name: str) -> Volume:
        """Return a volume as its driver describes it now, one that only a plugin knew included. Raises NotFound or SystemError_."""
        volume = self._volumes.get(name)
        if volume is not None and volume.local:
            return volume
        async with self._lock(name):
            volume = self._volumes.get(name) or await self._probe(name)
            if volume is None:
                return self.get(name)
            try:
                driver = await self._drivers.get(volume.driver)
                found = await driver.get(name)
            except EngineError as error:
                raise SystemError_(
                    f'get {name}: error while checking if volume "{name}" exists in driver "{volume.driver}": {error}'
                ) from error
            if found is None:
                self._forget(name)
                return self.get(name)
            place = Path(found.mountpoint) if found.mountpoint else volume.mountpoint
            return replace(volume, mountpoint=place, created=found.created, status=found.status)

    async def listed(self, filters: Mapping[str, list[str]]) -> tuple[list[Volume], list[str]]:
        """Return the volumes that match, those that plugins tell of included, and what cannot be told of which plugin."""
        drivers = await self._drivers.all()
        answers = await asyncio.gather(*(driver.listed() for driver in drivers), return_exceptions=True)
        told: dict[str, Volume] = {}
        warnings, silent = [], {v.driver for v in self._volumes.values()} - {LOCAL} - {each.name for each in drivers}
        for driver, answer in zip(drivers, answers, strict=True):
            if isinstance(answer, CallError):
                warnings.append(f"list {driver.name}: {answer}")
                silent.add(driver.name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                scope = await driver.scope()
                for each in answer:
                    known = self._volumes.get(each.name) or Volume(each.name, driver.name, Path(), "", scope=scope)
                    if known.driver == driver.name:
                        told[each.name] = replace(known, mountpoint=Path(each.mountpoint), created=each.created)
        kept = {v.name: v for v in self._volumes.values() if v.local or v.driver in silent}
        return self._matching({**told, **kept}.values(), filters), warnings

    def get(self, name: str) -> Volume:
        """Return a volume; raises NotFound."""
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def has(self, name: str) -> bool:
        """Whether there is a volume of that name."""
        return name in self._volumes

    def matching(self, filters: Mapping[str, list[str]]) -> list[Volume]:
        """Return the volumes that are known here and match."""
        return self._matching(self._volumes.values(), filters)

    def _matching(self, volumes: Iterable[Volume], filters: Mapping[str, list[str]]) -> list[Volume]:
        chosen = Selection(filters, FILTERS)
        return [
            volume
            for volume in sorted(volumes, key=lambda v: v.name)
            if chosen.exact("driver", volume.driver)
            and chosen.part("name", volume.name)
            and chosen.labels(volume.labels)
            and chosen.truth("dangling", not self._references.get(volume.name))
        ]

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and its content. Raises Conflict while a container refers to it; ``force`` is quiet about none."""
        try:
            volume = await self.look(name)
        except NotFound:
            if force:
                return
            raise
        except SystemError_ as error:
            if not force:
                raise
            log.warning("volume %s is forgotten, its driver cannot be asked: %s", name, error)
            volume = self.get(name)
        async with self._lock(name):
            references = self._references.get(name)
            if references:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(sorted(references))}]")
            if self._volumes.get(name) is None:
                return
            if volume.local:
                await asyncio.to_thread(self._erase, volume)
            else:
                await self._remove_plugins(volume, force=force)
            self._forget(name)
        self._locks.pop(name, None)
        self._events.publish("volume", "destroy", name, {"driver": volume.driver})

    def _erase(self, volume: Volume) -> None:
        # The record goes last: what a crash leaves half erased is found by its record and erased again.
        try:
            mountcalls.unmount_all(volume.mountpoint)
            shutil.rmtree(volume.mountpoint.parent)
        except FileNotFoundError:
            log.debug("volume %s had no folder", volume.name)
        except OSError as error:
            raise SystemError_(
                f"remove {volume.name}: error removing volume path '{error.filename}': {error.strerror}"
            ) from error
        self._store.delete(KIND, volume.name)

    async def _remove_plugins(self, volume: Volume, *, force: bool) -> None:
        try:
            await (await self._drivers.get(volume.driver)).remove(volume.name)
        except EngineError as error:
            if not force:
                raise SystemError_(f"remove {volume.name}: {error}") from error
            log.warning("volume %s is forgotten, its driver has not removed it: %s", volume.name, error)

    async def prune(self, filters: Mapping[str, list[str]], *, all_by_default: bool = False) -> tuple[list[str], int]:
        """Remove volumes that no container refers to: anonymous ones, or all; returns names and bytes freed."""
        chosen = Selection(filters, PRUNE_FILTERS)
        before = created_before(filters)
        every = all_by_default or ("all" in filters and chosen.truth("all", True))
        removed: list[str] = []
        freed = 0
        for volume in list(self._volumes.values()):
            if not volume.local or self._references.get(volume.name) or not (every or ANONYMOUS in volume.labels):
                continue
            if not chosen.labels(volume.labels) or (before is not None and not before(volume.created)):
                continue
            size = await asyncio.to_thread(_size, volume.mountpoint)
            try:
                await self.remove(volume.name)
            except (Conflict, NotFound, SystemError_) as error:
                log.warning("volume %s is not pruned: %s", volume.name, error)
                continue
            removed.append(volume.name)
            freed += size
        self._events.publish("volume", "prune", "", {"reclaimed": str(freed)})
        return removed, freed

    async def usage(self) -> list[dict[str, Any]]:
        """Return the API's Volume objects of the local driver with size and number of references."""
        found = []
        for volume in sorted((v for v in self._volumes.values() if v.local), key=lambda v: v.name):
            size = -1 if volume.mounts else await asyncio.to_thread(_size, volume.mountpoint)
            usage = {"Size": size, "RefCount": len(self._references.get(volume.name, ()))}
            found.append({**volume.to_api(), "UsageData": usage})
        return found

    # -- containers

    async def reference(self, name: str, container_id: str) -> None:
        """Keep a volume from being removed while a container exists; raises NotFound."""
        async with self._lock(name):
            self.get(name)
            self._references.setdefault(name, set()).add(container_id)

    async def unreference(self, name: str, container_id: str) -> None:
        """Let a volume go; quiet when the container does not refer to it."""
        references = self._references.get(name)
        if references is not None:
            references.discard(container_id)
            if not references:
                del self._references[name]

    def references(self, name: str) -> list[str]:
        """Return the ids of the containers that refer to a volume."""
        return sorted(self._references.get(name, ()))

    async def acquire(self, name: str, container_id: str, seen: Mapping[str, str] | None = None) -> Path:
        """Have a volume ready for a container that starts and return its folder; mounts what has to be mounted.

        ``seen`` are more attributes of the event: how the container will see it.
        """
        volume = self.get(name)
        async with self._lock(name):
            uses = self._uses.setdefault(name, set())
            fresh = container_id not in uses
            if not volume.local:
                if fresh:
                    volume = await self._mount_plugins(volume, container_id)
            elif volume.mounts and not uses:
                await asyncio.to_thread(self._mount, volume)
            elif not volume.mounts:
                await asyncio.to_thread(volume.mountpoint.mkdir, 0o755, parents=True, exist_ok=True)
            uses.add(container_id)
            self._references.setdefault(name, set()).add(container_id)
        if fresh:
            attributes = {"container": container_id, "driver": volume.driver, **(seen or {})}
            self._events.publish("volume", "mount", name, attributes)
        return volume.mountpoint

    async def release(self, name: str, container_id: str) -> None:
        """Let go of a volume after a container has ended; the last one unmounts. Quiet when it was not used."""
        volume = self._volumes.get(name)
        if volume is None or container_id not in self._uses.get(name, ()):
            return
        async with self._lock(name):
            uses = self._uses.get(name, set())
            uses.discard(container_id)
            if not uses:
                self._uses.pop(name, None)
                if volume.mounts:
                    await asyncio.to_thread(_unmount_if_mounted, volume.mountpoint)
            volume = self._volumes.get(name, volume)
            if container_id in volume.mounted:
                await self._unmount_plugins(volume, container_id, volume.mounted[container_id])
        self._events.publish("volume", "unmount", name, {"container": container_id, "driver": volume.driver})

    async def populate(self, name: str, rootfs: Path, path: str, subpath: str = "") -> bool:
        """Fill an empty volume with what a container's root has at ``path``; False when there was nothing to do.

        With ``subpath`` only that folder of the volume is filled, when it is there and empty.
        """
        volume = self.get(name)
        user = f"copy-{secrets.token_hex(8)}"
        if not volume.local and not await asyncio.to_thread(has_content, rootfs, path):
            return False
        async with self._lock(name):
            mounted = volume.mounts and not self._uses.get(name)
            if mounted:
                await asyncio.to_thread(self._mount, volume)
            elif not volume.local:
                volume = await self._mount_plugins(volume, user)
            try:
                return await asyncio.to_thread(_fill, rootfs, path, volume.mountpoint, subpath)
            except OSError as error:
                raise SystemError_(
                    f"failed to copy {path} of the image into volume {name}: {error.strerror} ({error.filename or rootfs})"
                ) from error
            finally:
                if mounted:
                    await asyncio.to_thread(_unmount_if_mounted, volume.mountpoint)
                elif not volume.local:
                    await self._unmount_plugins(volume, user, volume.mounted[user])

    async def _mount_plugins(self, volume: Volume, user: str) -> Volume:
        """Have a plugin mount its volume for a user, and note that before anybody relies on it; under the volume's lock."""
        mount_id = secrets.token_hex(32)
        volume = self._note(volume.name, mounted={**volume.mounted, user: mount_id})
        try:
            place = await (await self._drivers.get(volume.driver)).mount(volume.name, mount_id)
            if not place.startswith("/"):
                raise SystemError_(f"the driver mounted it at {place!r}, which is no absolute path")
        except EngineError as error:
            self._note(volume.name, mounted={key: each for key, each in volume.mounted.items() if key != user})
            raise SystemError_(
                f"error while mounting volume '{volume.source}': {error}" if volume.source else str(error)
            ) from error
        return self._note(volume.name, mountpoint=Path(place))

    async def _unmount_plugins(self, volume: Volume, user: str, mount_id: str) -> None:
        """Tell a plugin that a use has ended. What it says is only logged: the container has ended all the same."""
        try:
            await (await self._drivers.get(volume.driver)).unmount(volume.name, mount_id)
        except EngineError as error:
            log.warning("volume %s could not be unmounted for %s: %s", volume.name, user[:12], error)
        known = self._volumes.get(volume.name)
        if known is not None and known.mounted.get(user) == mount_id:
            self._note(volume.name, mounted={key: each for key, each in known.mounted.items() if key != user})

    def _note(self, name: str, **changes: Any) -> Volume:
        volume = self._volumes[name] = replace(self._volumes[name], **changes)
        self._keep(volume)
        return volume

    def _mount(self, volume: Volume) -> None:
        if mountcalls.is_mounted(volume.mountpoint):
            return
        kind, device = volume.options.get("type", ""), volume.options.get("device", "")
        options = volume.options.get("o", "")
        with contextlib.suppress(FileExistsError):
            volume.mountpoint.mkdir(parents=True)
        try:
            if kind.startswith("nfs") or kind == "cifs":
                options = _resolved(options)
            mountcalls.mount(device, volume.mountpoint, kind, options)
        except OSError as error:
            raise SystemError_(
                f"error while mounting volume '{volume.mountpoint}': failed to mount local volume: mount {device}:"
                f"{volume.mountpoint}, data: {options}: {(error.strerror or str(error)).lower()}"
            ) from error

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def _fill(rootfs: Path, path: str, mountpoint: Path, subpath: str) -> bool:
    if not subpath:
        return copy_up(rootfs, path, mountpoint)
    folder = Path(os.path.realpath(mountpoint / subpath))
    if not folder.is_relative_to(os.path.realpath(mountpoint)) or not folder.is_dir():
        return False  # the start says what is wrong with it
    return copy_up(rootfs, path, folder)


def _resolved(options: str) -> str:
    """Replace a server's name in ``addr=`` by its address, which is what the kernel takes."""
    words = []
    for word in options.split(","):
        if word.startswith("addr="):
            host = word[5:]
            words.append(f"addr={socket.getaddrinfo(host, None)[0][4][0]}")
        else:
            words.append(word)
    return ",".join(words)


def _unmount_if_mounted(path: Path) -> None:
    mountcalls.unmount_all(path)


def _size(path: Path) -> int:
    """Return the bytes a tree takes on disk, each hard link once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for folder, _, names in os.walk(path, onerror=lambda error: None):
        for name in names:
            try:
                status = os.lstat(f"{folder}/{name}")
            except OSError:
                continue
            key = (status.st_dev, status.st_ino)
            if status.st_nlink == 1 or key not in seen:
                seen.add(key)
                total += status.st_size
    return total


def _now() -> str:
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _stamp(path: Path) -> str:
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).isoformat().replace("+00:00", "Z")
