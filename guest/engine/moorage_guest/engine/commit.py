"""Making an image of a container."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from moorage_guest.api.types import ContainerConfig
from moorage_guest.engine import lifecycle
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.create import merge_image
from moorage_guest.engine.record import Container
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict, SystemError_
from moorage_guest.images.build.changes import apply_changes

#: Seconds that the end of a container may take to be told once the runtime says that it is over.
_ENDING = 5.0


async def commit(
    engine: Containers,
    container: Container,
    *,
    config: Mapping[str, Any],
    reference: str = "",
    comment: str = "",
    author: str = "",
    changes: Sequence[str] = (),
    pause: bool = True,
) -> str:
    """Make an image of the container's files and return its id; a running container is paused meanwhile."""
    if container.removing or container.status == Status.DEAD:
        raise Conflict(f"You cannot commit container {container.id} which is {container.status}")
    wanted = ContainerConfig.model_validate(config)
    merged = merge_image(wanted, container.config.to_api())
    result = apply_changes(image_config(merged), changes)
    paused = pause and container.status == Status.RUNNING and await _pause(engine, container)
    try:
        image_id = await engine.layers.commit(
            container.id, config=result, reference=reference, comment=comment, author=author,
            created_by=" ".join([container.path, *container.args]),
        )  # fmt: skip
    finally:
        if paused and container.status == Status.PAUSED:
            await lifecycle.unpause(engine, container)
    engine.publish(container, "commit", comment=comment, imageID=image_id, imageRef=reference)
    return image_id


async def _pause(engine: Containers, container: Container) -> bool:
    """Pause a running container; false when its end came first, which is just as good: it writes no more."""
    running = engine.running.get(container.id)
    try:
        await lifecycle.pause(engine, container)
    except Conflict:
        if container.status.running:
            raise
        return False
    except SystemError_:  # the runtime may know of the end before we have dealt with it
        if running is None:
            raise
        try:
            async with asyncio.timeout(_ENDING):
                await running.ended.wait()
        except TimeoutError:
            pass
        if not running.ended.is_set():
            raise
        return False
    return True


def image_config(config: ContainerConfig) -> dict[str, Any]:
    """Return the part of a container's configuration that an image keeps."""
    full = config.to_api()
    for name in ("Hostname", "Domainname", "MacAddress", "NetworkDisabled", "StopTimeout", "Image"):
        full.pop(name, None)
    return {
        name: value for name, value in full.items() if value not in (None, "", False, [], {}) or name in ("Cmd", "Env")
    }
