"""What a create or a removal that was cut short by the daemon's death leaves, found and freed at the next start.

A note in the state database (kind "unfinished", by container) names the volumes that were made for a container that is not
recorded yet, or that go with one whose record is gone already. Layers without a container are swept by `images.layers`.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage_guest.engine.record import KIND, Container
from moorage_guest.errors import Conflict, NotFound

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers

log = logging.getLogger(__name__)

NOTE = "unfinished"


#: Seconds after which notes about what is finished are taken away, all that have come together.
_PAUSE = 1.0


async def begin(engine: "Containers", container: Container, volumes: Collection[str]) -> None:
    """Note, before they are made, the volumes that are made for a container; `created` takes the note away."""
    if volumes:
        await asyncio.to_thread(engine.store.put, NOTE, container.id, {"version": 1, "volumes": sorted(volumes)})


async def created(engine: "Containers", container: Container, volumes: Collection[str]) -> None:
    """Record a new container, and that its volumes are its own from now on: both or neither."""

    def write() -> None:
        with engine.store.transaction():
            engine.store.put(KIND, container.id, container.to_record())
            engine.store.delete(NOTE, container.id)

    await (asyncio.to_thread(write) if volumes else engine.save(container))


async def removing(engine: "Containers", container: Container, volumes: Collection[str]) -> None:
    """Take a container's record away, and note what goes with it and is to be told: both or neither."""
    note = {"version": 1, "volumes": sorted(volumes), "destroyed": container.attributes()}

    def write() -> None:
        with engine.store.transaction():
            engine.store.put(NOTE, container.id, note)
            engine.store.delete(KIND, container.id)

    await asyncio.to_thread(write)


def end(engine: "Containers", container_id: str) -> None:
    """Have the note taken away soon: what it names is dealt with, and dealing with it again would do no harm."""
    engine.finished.add(container_id)
    if len(engine.finished) == 1:
        engine.task(_flush(engine), "notes of what is finished")


async def _flush(engine: "Containers") -> None:
    await asyncio.sleep(_PAUSE)
    finished, engine.finished = engine.finished, set()

    def write() -> None:
        with engine.store.transaction():
            for container_id in finished:
                engine.store.delete(NOTE, container_id)

    await asyncio.to_thread(write)


async def tidy(engine: "Containers", known: Collection[str]) -> None:
    """Free what was left; for the start, once volumes know who refers to them and before anything new is made.

    ``known`` are the containers that have something.
    """
    for container_id, note in (await asyncio.to_thread(engine.store.all, NOTE)).items():
        if container_id not in known:
            await _free(engine, container_id, note)
        await asyncio.to_thread(engine.store.delete, NOTE, container_id)
    if engine.store.recovered is None:
        await asyncio.to_thread(_sweep, engine.data_root.container("x").parent, set(known))


async def _free(engine: "Containers", container_id: str, note: Mapping[str, Any]) -> None:
    for name in note.get("volumes", []):
        if engine.volumes.has(str(name)) and not engine.volumes.get(str(name)).local:
            # A plugin may take its time.
            engine.task(_remove(engine, str(name), container_id), f"removal of volume {name}")
        else:
            await _remove(engine, str(name), container_id)
    told = any(each.action == "destroy" and each.actor_id == container_id for each in engine.events.history())
    if "destroyed" in note and not told:
        engine.events.publish("container", "destroy", container_id, note["destroyed"])


async def _remove(engine: "Containers", name: str, container_id: str) -> None:
    with contextlib.suppress(NotFound, Conflict):
        await engine.volumes.remove(name)
        log.info("volume %s was made or kept for container %s, which is gone: removed", name, container_id)


def _sweep(folder: Path, known: set[str]) -> None:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name not in known:
            log.info("removing %s, which belongs to no container", entry)
            shutil.rmtree(entry, ignore_errors=True)
