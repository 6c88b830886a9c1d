"""What the log pump is given for one container: its pipes, where records go, who is told and fed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage_guest.logs.feed import Feed
from moorage_guest.logs.files import LogFile
from moorage_guest.logs.formats import Format
from moorage_guest.logs.notify import Notifier


@dataclass(frozen=True)
class StreamPipes:
    """Descriptors of one stream's pipes, owned by whoever holds this."""

    a_read: int
    b_read: int
    b_write: int

    def close(self) -> None:
        """Close all three."""
        for descriptor in (self.a_read, self.b_read, self.b_write):
            os.close(descriptor)


@dataclass(frozen=True)
class Sink:
    """Where records go: a file and how they look in it.

    ``buffer`` None is blocking mode: while the file cannot be written the container waits. Otherwise up to that many
    bytes of output wait in memory, what comes then is dropped (mode=non-blocking).
    """

    file: LogFile
    format: Format
    buffer: int | None = None


@dataclass(frozen=True)
class LogTarget:
    """What the pump needs for one container. `Pump.add` takes over the descriptors, the sink's file and the feed, also
    when it fails. ``streams`` by number (1 stdout, 2 stderr); ``sink`` None is the driver "none"."""

    container_id: str
    streams: Mapping[int, StreamPipes]
    journal_path: Path
    sink: Sink | None
    notifier: Notifier
    feed: Feed | None = None

    def close(self) -> None:
        """Close everything the target owns."""
        self.close_pipes()
        if self.sink is not None:
            self.sink.file.close()

    def close_pipes(self) -> None:
        """Close everything but the log file."""
        for stream in self.streams.values():
            stream.close()
        if self.feed is not None:
            self.feed.close()
