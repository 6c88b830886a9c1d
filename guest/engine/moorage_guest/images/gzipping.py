"""Compresses with gzip on every core; the same input always gives the same bytes, however many cores there are.

One gzip member of pieces that are compressed apart, each with the end of the one before as its dictionary, as pigz does.
What does not get smaller, like files that are compressed already, is stored: trying costs more than anything else here.
"""

import os
import zlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

#: Bytes that are compressed at a time by one thread; part of what makes the output.
PIECE = 1 << 20

#: Fast rather than small: whoever pushes waits for it.
_LEVEL = 4

#: What deflate can look back.
_WINDOW = 32 << 10

#: Samples of a piece that tell whether it is worth compressing.
_SAMPLES, _SAMPLE = 4, 8 << 10

#: No name, no time, no system: nothing that could differ.
_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"


def compressed(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    """Yield the gzip file of pieces of `PIECE` bytes each (the last may be shorter). Blocks; uses a thread for each core."""
    cores = len(os.sched_getaffinity(0))
    crc = size = 0
    before = b""
    waiting: deque[Future[bytes]] = deque()
    yield _HEAD
    with ThreadPoolExecutor(cores, "gzip") as threads:
        try:
            for piece in pieces:
                waiting.append(threads.submit(_deflate, piece, before))
                before = piece[-_WINDOW:]
                crc = zlib.crc32(piece, crc)
                size += len(piece)
                if len(waiting) > 2 * cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
    yield _LAST_BLOCK + crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def _deflate(piece: bytes, before: bytes) -> bytes:
    """Return whole blocks that end on a byte."""
    if _worth(piece):
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15, zdict=before) if before else _plain(_LEVEL)
    else:
        packer = _plain(0)
    return packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)


def _plain(level: int) -> "zlib._Compress":
    return zlib.compressobj(level, zlib.DEFLATED, -15)


def _worth(piece: bytes) -> bool:
    """Whether samples of a piece get at least a thirtieth smaller."""
    step = max(len(piece) // _SAMPLES, 1)
    sample = b"".join(piece[start : start + _SAMPLE] for start in range(0, len(piece), step))
    return len(zlib.compress(sample, 1)) < len(sample) * 29 // 30 + 16
