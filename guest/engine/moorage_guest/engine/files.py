"""Where a container's files are seen from outside, for `docker cp`: as the container sees them while it lives."""

import asyncio
import contextlib
import errno
import json
import os
import posixpath
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moorage_guest.engine.assembled import assemble
from moorage_guest.engine.mounts import below
from moorage_guest.engine.record import Container, MountRecord
from moorage_guest.errors import Conflict, InvalidParameter, NotFound, SystemError_
from moorage_guest.images.archive import real_path, stat_path
from moorage_guest.shim import kernel

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers


@dataclass(frozen=True)
class View:
    """A folder that stands for the container's root, mounts included, and the path below it."""

    root: Path
    path: str


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
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise InvalidParameter(f"bad parameter: path {path[:100]}: {(error.strerror or '').lower()}") from None


@contextlib.asynccontextmanager
async def _view(engine: "Containers", container: Container, path: str) -> AsyncGenerator[View, None]:
    if not path:
        raise InvalidParameter("bad parameter: path cannot be empty")
    if "\0" in path:
        raise InvalidParameter("bad parameter: path holds a NUL byte")
    if container.removing:
        raise Conflict(f"container {container.id} is being removed")
    if container.status.alive:
        living = await asyncio.to_thread(open_root, container, engine.exec_root.shim(container.id))
        try:
            yield View(Path(f"/proc/self/fd/{living}"), path)
        finally:
            os.close(living)
        return
    async with container.lock:  # an answer may be read, and the next request come, before this one has unmounted
        root = await engine.layers.mount(container.id)
        container.viewers += 1
    try:
        async with _mounts(engine, container) as mounts:
            try:
                place = await asyncio.to_thread(assemble, root, mounts, container.config.working_dir, engine.ids)
            except OSError as error:
                raise SystemError_(f"cannot show the files of container {container.id}: {error}") from error
            try:
                yield View(Path(f"/proc/self/fd/{place.root}"), path)
            finally:
                await asyncio.to_thread(place.close)
    finally:
        async with container.lock:
            container.viewers -= 1
            if not container.viewers and not container.status.alive:
                await engine.layers.unmount(container.id)


def open_root(container: Container, shim: Path) -> int:
    """Open the root folder of a container that lives, ``shim`` being its shim's folder. Raises Conflict when it has just ended.

    Its pid may be another process's by then, whose root would be the machine's own: the shim's record says when it began.
    """
    pid = container.state.pid
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        root = -1
    try:
        record = json.loads((shim / "state.json").read_text())
        same = record["pid"] == pid and record["start_time"] == kernel.start_time(pid) != 0
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if root < 0 or not same:
        if root >= 0:
            os.close(root)
        raise Conflict(f"container {container.id} has just ended; try again")
    return root


@contextlib.asynccontextmanager
async def _mounts(engine: "Containers", container: Container) -> AsyncGenerator[list[tuple[Path, str]], None]:
    """Have the volumes of a container that does not run ready; gives what would be mounted where."""
    found: list[tuple[Path, str]] = []
    async with contextlib.AsyncExitStack() as stack:
        for mount in container.mounts:
            if mount.kind == "volume":
                source = await engine.volumes.acquire(mount.name, container.id, mount.seen())
                stack.push_async_callback(engine.volumes.release, mount.name, container.id)
            elif mount.kind == "bind":
                source = Path(mount.source)
            else:
                continue
            with contextlib.suppress(InvalidParameter):  # a subpath that is not there
                found.append((await asyncio.to_thread(below, source, mount.subpath), mount.destination))
        taken = {destination for _, destination in found}
        folder = engine.data_root.container(container.id)
        found += [
            (folder / Path(inside).name, inside)
            for inside in ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts")
            if inside not in taken and (folder / Path(inside).name).exists()
        ]
        yield found


def _clean(path: str) -> str:
    # Two slashes at the beginning mean something else to POSIX and stay.
    return posixpath.normpath("/" + path.lstrip("/"))


def mount_at(container: Container, path: str) -> MountRecord | None:
    """Return the mount that a path without links leads into."""
    clean = _clean(path)
    found = [m for m in container.mounts if clean == m.destination or clean.startswith(f"{m.destination}/")]
    return max(found, key=lambda each: len(each.destination), default=None)


def check_folder(container: Container, place: View) -> None:
    """Raise InvalidParameter when the path is no folder, or one in which nothing can be written. Blocks.

    Raises NotFound when it is not there. Links are followed first: they may lead from a volume into a read-only root.
    """
    if not stat_path(place.root, place.path.rstrip("/") + "/.").is_folder:
        raise InvalidParameter("extraction point is not a directory")
    mount = mount_at(container, real_path(place.root, place.path))
    if mount is not None:
        if not mount.read_write:
            raise InvalidParameter("mounted volume is marked read-only")
    elif container.host_config.readonly_rootfs:
        raise InvalidParameter("container rootfs is marked read-only")
