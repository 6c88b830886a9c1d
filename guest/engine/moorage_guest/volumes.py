"""Named volumes of the local driver: made, listed, mounted while containers run, filled from images, removed.

A container *refers* to a volume from its creation to its removal, which keeps the volume from being removed; it *uses* it
while it runs, which keeps the volume's mount. References and uses are told again at every start (`restore`).
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moorage_guest import mountcalls
from moorage_guest.copyup import copy_up
from moorage_guest.errors import Conflict, InvalidParameter, NotFound, SystemError_
from moorage_guest.events import EventBus
from moorage_guest.net.selection import Selection, created_before
from moorage_guest.paths import DataRoot
from moorage_guest.store import Store

log = logging.getLogger(__name__)

KIND = "volume"
VERSION = 1
ANONYMOUS = "com.docker.volume.anonymous"
FILTERS = ("dangling", "driver", "label", "name")
PRUNE_FILTERS = ("label", "label!", "all", "until")

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_OPTIONS = ("type", "o", "device", "size")
_NEEDS = {"device": ("type",), "type": ("device",), "o": ("device", "type")}


@dataclass(frozen=True)
class Volume:
    """One volume. ``mountpoint`` is where its content is, mounted or not."""

    name: str
    driver: str
    mountpoint: Path
    created: str
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def mounts(self) -> bool:
        """Whether something has to be mounted before use."""
        return bool(self.options.get("type") or self.options.get("device"))

    def to_api(self) -> dict[str, Any]:
        """Return the API's Volume object."""
        return {
            "CreatedAt": self.created,
            "Driver": self.driver,
            "Labels": self.labels,
            "Mountpoint": str(self.mountpoint),
            "Name": self.name,
            "Options": self.options,
            "Scope": "local",
        }


class Volumes:
    """All volumes of one daemon. Everything but disk work is done in the event loop's thread."""

    def __init__(self, store: Store, events: EventBus, data: DataRoot) -> None:
        self._store = store
        self._events = events
        self._folder = data.volumes
        self._volumes: dict[str, Volume] = {}
        self._references: dict[str, set[str]] = {}
        self._uses: dict[str, set[str]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
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
            if path.name not in self._volumes and _NAME.fullmatch(path.name) and (path / "_data").is_dir():
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
        place = self._folder / name / "_data"
        return Volume(name, value["driver"], place, value["created"], dict(value["options"]), dict(value["labels"]))

    async def restore(self, references: Mapping[str, Iterable[str]], live: Mapping[str, Iterable[str]]) -> None:
        """Learn which containers refer to which volumes, and which of them run; drop mounts that nobody uses."""
        for container, names in references.items():
            for name in names:
                self._references.setdefault(name, set()).add(container)
        for container, names in live.items():
            for name in names:
                self._uses.setdefault(name, set()).add(container)
        for volume in self._volumes.values():
            if volume.mounts and not self._uses.get(volume.name):
                await asyncio.to_thread(_unmount_if_mounted, volume.mountpoint)

    # -- volumes

    async def create(
        self, name: str | None, driver: str, options: Mapping[str, str], labels: Mapping[str, str], *, token: str = ""
    ) -> Volume:
        """Create a volume, or return the one of that name. No name makes an anonymous one, one for each ``token`` given."""
        if not name:
            name = hashlib.sha256(token.encode()).hexdigest() if token else secrets.token_hex(32)
            labels = {ANONYMOUS: "", **labels}
        driver = driver or "local"
        if driver != "local":
            raise NotFound(f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found')
        check_name(name)
        async with self._lock(name):
            found = self._volumes.get(name)
            if found is not None:
                return found
            check_options(name, options)
            volume = Volume(name, driver, self._folder / name / "_data", _now(), dict(options), dict(labels))
            await asyncio.to_thread(self._make, volume)
            self._volumes[name] = volume
        self._events.publish("volume", "create", name, {"driver": driver})
        return volume

    def _make(self, volume: Volume) -> None:
        try:
            volume.mountpoint.parent.mkdir(mode=0o701, exist_ok=True)
            volume.mountpoint.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise SystemError_(f"create {volume.name}: cannot make {volume.mountpoint}: {error.strerror}") from error
        volume.mountpoint.chmod(0o755)
        self._keep(volume)

    def _keep(self, volume: Volume) -> None:
        record = asdict(volume)
        del record["mountpoint"], record["name"]
        self._store.put(KIND, volume.name, {"version": VERSION, **record})

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
        """Return the volumes that match."""
        chosen = Selection(filters, FILTERS)
        return [
            volume
            for volume in sorted(self._volumes.values(), key=lambda v: v.name)
            if chosen.exact("driver", volume.driver)
            and chosen.part("name", volume.name)
            and chosen.labels(volume.labels)
            and chosen.truth("dangling", not self._references.get(volume.name))
        ]

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and its content. Raises Conflict while a container refers to it; ``force`` is quiet about none."""
        if name not in self._volumes and force:
            return
        volume = self.get(name)
        async with self._lock(name):
            references = self._references.get(name)
            if references:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(sorted(references))}]")
            if self._volumes.get(name) is None:
                return
            await asyncio.to_thread(self._erase, volume)
            self._volumes.pop(name, None)
            self._references.pop(name, None)
            self._uses.pop(name, None)
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

    async def prune(self, filters: Mapping[str, list[str]], *, all_by_default: bool = False) -> tuple[list[str], int]:
        """Remove volumes that no container refers to: anonymous ones, or all; returns names and bytes freed."""
        chosen = Selection(filters, PRUNE_FILTERS)
        before = created_before(filters)
        every = all_by_default or ("all" in filters and chosen.truth("all", True))
        removed: list[str] = []
        freed = 0
        for volume in list(self._volumes.values()):
            if self._references.get(volume.name) or not (every or ANONYMOUS in volume.labels):
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
        """Return the API's Volume objects with size and number of references."""
        found = []
        for volume in sorted(self._volumes.values(), key=lambda v: v.name):
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
            if volume.mounts and not uses:
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
        self._events.publish("volume", "unmount", name, {"container": container_id, "driver": volume.driver})

    async def populate(self, name: str, rootfs: Path, path: str, subpath: str = "") -> bool:
        """Fill an empty volume with what a container's root has at ``path``; False when there was nothing to do.

        With ``subpath`` only that folder of the volume is filled, when it is there and empty.
        """
        volume = self.get(name)
        async with self._lock(name):
            mounted = volume.mounts and not self._uses.get(name)
            if mounted:
                await asyncio.to_thread(self._mount, volume)
            try:
                return await asyncio.to_thread(_fill, rootfs, path, volume.mountpoint, subpath)
            except OSError as error:
                raise SystemError_(
                    f"failed to copy {path} of the image into volume {name}: {error.strerror} ({error.filename or rootfs})"
                ) from error
            finally:
                if mounted:
                    await asyncio.to_thread(_unmount_if_mounted, volume.mountpoint)

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


def check_name(name: str) -> None:
    """Raise InvalidParameter for a name that no volume can have."""
    if len(name) == 1:
        raise InvalidParameter(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Raise InvalidParameter for options of the local driver that cannot be."""
    for option in options:
        if option not in _OPTIONS:
            raise InvalidParameter(f'create {name}: invalid option: "{option}"')
    for option, needed in _NEEDS.items():
        if options.get(option):
            for other in needed:
                if not options.get(other):
                    raise InvalidParameter(f'create {name}: missing required option: "{other}"')
    if options.get("size"):
        raise InvalidParameter(
            f"create {name}: quota size requested but no quota support; for a bounded volume use type=tmpfs with o=size="
        )


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
