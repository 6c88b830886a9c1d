"""Reading a container's log, wherever its driver keeps it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moorage_guest.engine.record import Container
from moorage_guest.errors import Conflict, NotImplementedByEngine
from moorage_guest.logs import drivers
from moorage_guest.logs.formats import Format
from moorage_guest.logs.reader import LogChunk, LogQuery, Position, read_logs
from moorage_guest.logs.targets import Sink

if TYPE_CHECKING:
    from moorage_guest.engine.containers import Containers


@dataclass(frozen=True)
class LogSource:
    """The file and how it is written."""

    path: Path
    format: Format


def source(engine: "Containers", container: Container) -> LogSource:
    """Return where the log is. Raises NotImplementedByEngine for a driver that keeps none."""
    if container.removing:
        raise Conflict("can not get logs from container which is dead or marked for removal")
    config = container.host_config.log_config
    path = drivers.log_path(engine.data_root.container(container.id), container.id, config.type)
    if path is None:
        raise NotImplementedByEngine("configured logging driver does not support reading")
    return LogSource(path, drivers.log_format(config.type))


def open_sink(engine: "Containers", container: Container) -> Sink | None:
    """Open a container's log for writing; None for a driver that keeps none. Blocks on the disk."""
    config = container.host_config.log_config
    info = drivers.LogInfo(
        container_id=container.id, name=container.name, image_id=container.image_id,
        image_name=container.config.image, command=" ".join([container.path, *container.args]),
        labels=container.config.labels, env=container.config.env,
    )  # fmt: skip
    return drivers.open_sink(engine.data_root.container(container.id), config.type, config.config, info)


async def read(
    engine: "Containers", container: Container, place: LogSource, query: LogQuery, position: Position | None
) -> AsyncGenerator[LogChunk, None]:
    """Yield the log; with follow what comes, until the container has ended."""
    notifier = engine.pump.notifier(container.id) if query.follow else None
    chunks = read_logs(place.path, place.format, query, notifier=notifier, position=position)
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
