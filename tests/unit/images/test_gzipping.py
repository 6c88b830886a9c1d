"""The compression of pushed layers: any gzip reads it, and the same input gives the same bytes."""

import gzip
import os
import random
import subprocess

import pytest
from moorage_guest.images.gzipping import PIECE, compressed

NOISE = random.Random(5).randbytes(2 * PIECE + 77)
TEXT = b"".join(b"line %d of a text that repeats itself\n" % (n % 5000) for n in range(80_000))


def pieces(data: bytes) -> list[bytes]:
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)]


@pytest.mark.parametrize(
    "data",
    [b"", b"x", TEXT, NOISE, TEXT[:PIECE], TEXT + NOISE + TEXT, bytes(3 * PIECE)],
    ids=["nothing", "a byte", "text", "noise", "one piece", "both", "zeros"],
)
def test_gzip_reads_what_was_compressed(data: bytes) -> None:
    packed = b"".join(compressed(pieces(data)))
    assert gzip.decompress(packed) == data
    done = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True, timeout=60)
    assert done.stdout == data


def test_text_gets_small_and_noise_hardly_larger() -> None:
    assert len(b"".join(compressed(pieces(TEXT)))) < len(TEXT) / 5
    assert len(b"".join(compressed(pieces(NOISE)))) < len(NOISE) * 1.001


def test_the_number_of_cores_does_not_show() -> None:
    data = TEXT + NOISE
    before = os.sched_getaffinity(0)
    many = b"".join(compressed(pieces(data)))
    try:
        os.sched_setaffinity(0, {min(before)})
        one = b"".join(compressed(pieces(data)))
    finally:
        os.sched_setaffinity(0, before)
    assert many == one


def test_who_stops_reading_ends_the_threads() -> None:
    packing = compressed(pieces(NOISE))
    next(packing)
    packing.close()
