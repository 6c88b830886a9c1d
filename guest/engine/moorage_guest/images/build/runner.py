"""What the builder needs of the engine: running one command in a container on top of an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class RunStep:
    """One RUN. ``config`` is the image's configuration with the arguments of the build in Env; ``host`` a HostConfig object."""

    image_id: str
    command: Sequence[str]
    config: Mapping[str, Any]
    host: Mapping[str, Any]
    chain: tuple[str, ...] | None = None
    """The layers to run on, for a step that is no image and that nobody is to see; ``image_id`` is then ""."""
    secret_env: tuple[str, ...] = field(default=(), repr=False)
    """Variables that are written down nowhere."""


class StepRunner(Protocol):
    """Runs steps. Raises the API's errors. A container that was made is removed by whoever made it, also when cancelled."""

    async def create(self, step: RunStep) -> str:
        """Make a container and return its id."""

    async def run(self, container_id: str, output: Callable[[int, bytes], None]) -> int:
        """Start it, hand over what it writes to which stream (1 or 2), in order, and return its exit code once it has ended and is unmounted."""

    async def keep(self, container_id: str) -> None:
        """Leave it to the user, who wants to look at it."""

    async def remove(self, container_id: str) -> None:
        """Kill it if need be and remove it with all it wrote; quiet when it is gone."""
