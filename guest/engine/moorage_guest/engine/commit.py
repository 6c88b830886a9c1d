"""Making an image of a container."""

from collections.abc import Mapping, Sequence
from typing import Any

from moorage_guest.api.types import ContainerConfig
from moorage_guest.engine import lifecycle
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.create import merge_image
from moorage_guest.engine.record import Container
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict
from moorage_guest.images.build.changes import apply_changes


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
    paused = pause and container.status == Status.RUNNING
    if paused:
        await lifecycle.pause(engine, container)
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


def image_config(config: ContainerConfig) -> dict[str, Any]:
    """Return the part of a container's configuration that an image keeps."""
    full = config.to_api()
    for name in ("Hostname", "Domainname", "MacAddress", "NetworkDisabled", "StopTimeout", "Image"):
        full.pop(name, None)
    return {
        name: value for name, value in full.items() if value not in (None, "", False, [], {}) or name in ("Cmd", "Env")
    }
