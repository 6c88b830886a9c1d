"""Spilling moves all there is to the file or to pipe A, whatever the sizes of the writes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_guest.shim import kernel
from moorage_guest.shim.loop import Loop
from moorage_guest.shim.spill import Spill


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(pytest.fail)
    yield loop
    loop.close()


@pytest.mark.parametrize("size", [1, 4096, 60000, 65536])
def test_a_writer_never_waits_below_the_limit_and_order_is_kept(loop: Loop, tmp_path: Path, size: int) -> None:
    source_read, source_write = kernel.pipe_of_fixed_size()
    a_read, a_write = kernel.pipe_of_fixed_size()
    os.set_blocking(source_write, False)
    os.set_blocking(a_read, False)
    ended: list[bool] = []
    spill = Spill(loop, source_read, a_write, str(tmp_path), 4_000_000, lambda: ended.append(True))
    written = bytearray()
    for number in range(60):
        data = bytes([number]) * size
        while data:
            try:
                count = os.write(source_write, data)
            except BlockingIOError:
                before = kernel.bytes_waiting(source_write)
                loop.step(10)
                assert kernel.bytes_waiting(source_write) < before
                continue
            written += data[:count]
            data = data[count:]
    os.close(source_write)
    assert spill.waiting < 4_000_000
    received = bytearray()
    while not ended:
        loop.step(0.01)
        while True:
            try:
                chunk = os.read(a_read, 1 << 20)
            except BlockingIOError:
                break
            if not chunk:
                break
            received += chunk
    assert received == written
    assert os.read(a_read, 1) == b""
    os.close(a_read)
