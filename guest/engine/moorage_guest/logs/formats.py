"""What a log format does: turn cuts of a stream into bytes of a file, and bytes of a file into runs of records."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from moorage_guest.logs.records import Cut

STDOUT = 1
STDERR = 2

#: Names of the streams by number.
STREAM_NAMES = ("stdin", "stdout", "stderr")


@dataclass(frozen=True)
class Run:
    """Records of one stream and one time that follow each other: ``data`` is their text joined. ``end`` is where the
    run ends in the block it was decoded from."""

    stream: int
    time_ns: int
    data: bytes
    attributes: Mapping[str, str]
    end: int


class Format(Protocol):
    """A log format. Files are sequences of records; a record is whole or the file is damaged at its end."""

    def encode(self, stream: int, cut: Cut, time_ns: int) -> bytes:
        """Return the records of a cut. ``time_ns`` is larger than in any record before."""

    def whole(self, block: bytes) -> int:
        """Return the length of the longest beginning of ``block`` that consists of whole records.

        ``block`` begins with a record.
        """

    def sound(self, descriptor: int) -> int:
        """Return how long the part of an open file is that makes sense; behind it is what a power cut left."""

    def decode(self, block: bytes) -> Iterator[Run]:
        """Return the runs in a block of whole records. Damaged records are left out."""

    def align(self, block: bytes) -> int | None:
        """Return where the first record begins in a block that may begin inside one, or None if it cannot be told."""

    def last(self, block: bytes, count: int, *, from_start: bool) -> tuple[int, int]:
        """Return (offset, found): a record at ``offset`` from which on there are ``found`` lines, ``count`` or as few
        more as possible, or fewer if the block has not as many.

        The block ends with a whole record; unless ``from_start`` it may begin inside one. A record without a newline
        at its end belongs to the line that the next one goes on with.
        """
