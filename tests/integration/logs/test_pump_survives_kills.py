"""SIGKILL of the daemon at random instants loses no byte of a container's output and doubles none."""

import itertools
from pathlib import Path

import pytest
from moorage_guest.logs.files import Rotation, history

from tests.support.logs import json_records, kill_again_and_again, shim_pipes


def _check(folder: Path, written: dict[int, bytes]) -> None:
    records = json_records(folder / "log.json")
    for number, name in ((1, "stdout"), (2, "stderr")):
        texts = [text for stream, text, _ in records if stream == name]
        logged = b"".join(texts)
        if logged != written[number]:
            at = next(
                (i for i, (a, b) in enumerate(zip(logged, written[number], strict=False)) if a != b),
                min(len(logged), len(written[number])),
            )
            raise AssertionError(
                f"{name}: {len(logged)} bytes logged, {len(written[number])} written, first difference at {at}: "
                f"{logged[at : at + 60]!r} instead of {written[number][at : at + 60]!r}"
            )
        for text, following in itertools.pairwise(texts):
            assert len(text) <= 16385
            assert text.endswith(b"\n") or len(text) == 16384 or following is None
            assert b"\n" not in text[:-1]


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_is_lost_or_doubled_by_a_hundred_kills(tmp_path: Path, seed: int) -> None:
    with shim_pipes(tmp_path) as shim:
        written = kill_again_and_again(shim, seed, 100, Rotation())
    assert min(map(len, written.values())) > 100_000
    _check(tmp_path, written)


def test_rotation_in_between_keeps_every_record(tmp_path: Path) -> None:
    with shim_pipes(tmp_path) as shim:
        written = kill_again_and_again(shim, 77, 100, Rotation(max_size=200_000, max_files=10_000))
    assert len(history(tmp_path / "log.json")) > 3
    _check(tmp_path, written)
