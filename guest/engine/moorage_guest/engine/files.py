"""Where a container's files are seen from outside, for `docker cp`: as the container sees them while it lives."""

import asyncio
import contextlib
import posixpath
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moorage_guest.engine.mounts import below
from moorage_guest.engine.record import Container, MountRecord
from moorage_guest.errors import Conflict, InvalidParameter, NotFound
from moorage_guest.images.archive import stat_path

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers


@dataclass(frozen=True)
class View:
    """A folder that stands for the container's root, or for one mount in it, and the path below it."""

    root: Path
    path: str
    mount: MountRecord | None = None


@contextlib.asynccontextmanager
async def view(engine: "Containers", reference: str, path: str) -> AsyncGenerator[tuple[Container, View], None]:
    """Have a path of the container ready to be read or written. Raises the API's errors, also what happens inside.

    ``reference`` is what the client calls the container, which messages repeat.
    """
    container = engine.find(reference)
    try:
        async with _view(engine, container, path) as place:
            yield container, place
    except NotFound:
        raise NotFound(f"Could not find the file {path} in container {reference}") from None


@contextlib.asynccontextmanager
async def _view(engine: "Containers", container: Container, path: str) -> AsyncGenerator[View, None]:
    if not path:
        raise InvalidParameter("bad parameter: path cannot be empty")
    if "\0" in path:
        raise InvalidParameter("bad parameter: path holds a NUL byte")
    if container.removing:
        raise Conflict(f"container {container.id} is being removed")
    mount = mount_at(container, path)
    if container.status.alive:
        yield View(Path(f"/proc/{container.state.pid}/root"), path, mount)
        return
    if mount is not None and mount.kind in ("volume", "bind"):
        # Nothing is mounted in a container that does not run: its volume or folder itself is gone into.
        inside = posixpath.relpath(_clean(path), mount.destination)
        tail = "/." if path.endswith(("/", "/.")) or inside == "." else ""
        if mount.kind == "volume":
            source = await engine.volumes.acquire(mount.name, container.id)
        else:
            source = Path(mount.source)
        try:
            root = await asyncio.to_thread(below, source, mount.subpath)
            yield View(root, f"/{inside}{tail}", mount)
        finally:
            if mount.kind == "volume":
                await engine.volumes.release(mount.name, container.id)
        return
    async with container.lock:  # an answer may be read, and the next request come, before this one has unmounted
        root = await engine.layers.mount(container.id)
        container.viewers += 1
    try:
        yield View(root, path)
    finally:
        async with container.lock:
            container.viewers -= 1
            if not container.viewers and not container.status.alive:
                await engine.layers.unmount(container.id)


def _clean(path: str) -> str:
    # Two slashes at the beginning mean something else to POSIX and stay.
    return posixpath.normpath("/" + path.lstrip("/"))


def mount_at(container: Container, path: str) -> MountRecord | None:
    """Return the mount that a path leads into, taken by its words alone."""
    clean = _clean(path)
    found = [m for m in container.mounts if clean == m.destination or clean.startswith(f"{m.destination}/")]
    return max(found, key=lambda each: len(each.destination), default=None)


def check_writable(container: Container, mount: MountRecord | None) -> None:
    """Raise InvalidParameter when nothing can be written there."""
    if mount is not None:
        if not mount.read_write:
            raise InvalidParameter("mounted volume is marked read-only")
    elif container.host_config.readonly_rootfs:
        raise InvalidParameter("container rootfs is marked read-only")


def check_folder(place: View) -> None:
    """Raise InvalidParameter when the path is no folder; NotFound when it is not there. Blocks."""
    if not stat_path(place.root, place.path.rstrip("/") + "/.").is_folder:
        raise InvalidParameter("extraction point is not a directory")
