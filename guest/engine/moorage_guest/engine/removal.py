"""Removing containers: rm, --rm, prune."""

import asyncio
import logging
import shutil

from moorage_guest.engine import lifecycle, unfinished, unmanaged
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.names import not_found
from moorage_guest.engine.record import Container
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict, EngineError, InvalidParameter, NotFound, SystemError_

log = logging.getLogger(__name__)


async def remove(engine: Containers, container: Container, *, force: bool = False, volumes: bool = False) -> None:
    """Remove a container, with ``volumes`` its anonymous ones too. Raises Conflict when it runs and force is not set."""
    if container.removing:
        raise Conflict(f"removal of container {container.id} is already in progress")
    if container.unmanaged and not force:
        unmanaged.check_managed(container)
    if container.status.running and not force:
        reason = (
            "container is paused and must be unpaused first"
            if container.status == Status.PAUSED
            else f"container is {container.status}: stop the container before removing or force remove"
        )
        raise Conflict(f'cannot remove container "/{container.name}": {reason}')
    container.removing = True
    container.stop_requested = True
    try:
        if container.status.running:
            await lifecycle.kill_and_wait(engine, container)
        async with container.lock:
            if engine.get(container.id) is None:
                if container.image_id == "":  # only a shim was left of it, and that is gone
                    return
                raise not_found(container.id)
            await _remove_locked(engine, container, volumes=volumes)
    except BaseException as error:
        container.removing = False
        engine.waits.removed(container, str(error) or "removal was cancelled")
        raise


async def remove_link(engine: Containers, path: str) -> None:
    """Take a link (``container/alias``) away; the other container stays. Raises NotFound or InvalidParameter."""
    parent, slash, alias = path.strip("/").rpartition("/")
    if not slash:
        raise InvalidParameter(f"Conflict, cannot remove the default link name of the container: {path}")
    container = engine.find(parent)
    for link in container.host_config.links:
        target, _, name = link.partition(":")
        if (name or target).rsplit("/", 1)[-1] == alias:
            container.host_config.links.remove(link)
            await engine.save(container)
            return
    raise NotFound(f"no such link: /{parent}/{alias}")


async def auto_remove(engine: Containers, container: Container) -> None:
    """Remove a container with --rm after its end; a failure is logged and told to who waits."""
    if container.removing or engine.get(container.id) is None:
        return
    try:
        await remove(engine, container, force=True, volumes=True)
    except EngineError as error:
        log.warning("container %s could not be removed after its end: %s", container.id, error)


async def _remove_locked(engine: Containers, container: Container, *, volumes: bool) -> None:
    from moorage_guest.engine import ending, execs

    if engine.running.get(container.id) is not None:  # forked for a client that attached before the start
        await ending.take_down(engine, container)
    container.move(Status.REMOVING)
    folder = engine.data_root.container(container.id)
    doomed = {each.name for each in container.mounts if each.kind == "volume" and each.anonymous} if volumes else set()
    try:
        await unfinished.removing(engine, container, doomed)
        results = await asyncio.gather(
            engine.layers.remove_rw(container.id),
            _remove_volumes(engine, container, anonymous=volumes),
            asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
    except BaseException:
        container.move(Status.DEAD)
        await engine.save(container)
        unfinished.end(engine, container.id)
        raise
    execs.drop_all(engine, container)  # one that began while the container ended
    engine.forget(container)
    engine.publish(container, "destroy")
    unfinished.end(engine, container.id)
    engine.waits.removed(container)


async def _remove_volumes(engine: Containers, container: Container, *, anonymous: bool) -> None:
    for mount in container.mounts:
        if mount.kind != "volume":
            continue
        await engine.volumes.unreference(mount.name, container.id)
        if anonymous and mount.anonymous:
            try:
                await engine.volumes.remove(mount.name)
            except (NotFound, Conflict):
                continue
            except SystemError_ as error:
                log.warning("volume %s of container %s stays: %s", mount.name, container.id, error)


async def prune(engine: Containers, candidates: list[Container]) -> tuple[list[str], int]:
    """Remove those of the containers that do not run; returns their ids and the bytes freed."""
    removed: list[str] = []
    freed = 0
    for container in candidates:
        if container.status.running or container.removing:
            continue
        try:
            size, _ = await engine.layers.sizes(container.id)
            await remove(engine, container)
        except EngineError as error:
            log.warning("container %s could not be pruned: %s", container.id, error)
            continue
        removed.append(container.id)
        freed += size
    engine.events.publish("container", "prune", "", {"reclaimed": str(freed)})
    return removed, freed
