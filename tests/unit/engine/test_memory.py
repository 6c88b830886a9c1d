"""Memory that the C library keeps for later is given back, once for many requests."""

import asyncio

import pytest
from moorage_guest import memory
from moorage_guest.memory import Spare
from moorage_guest.shim import kernel


def test_memory_of_many_small_things_that_are_gone_is_given_back() -> None:
    def held() -> int:
        with open("/proc/self/smaps_rollup") as rollup:
            return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))

    things = [bytearray(3000 + number % 7) for number in range(20_000)]
    kept = things[::50]  # so that what lies between cannot be cut off at the end
    before = held()
    del things
    kernel.give_back()
    assert before - held() > 30_000, kept[0]


async def test_it_is_given_back_once_when_nobody_has_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PAUSE", 0.01)
    loop = asyncio.get_running_loop()
    given: asyncio.Queue[None] = asyncio.Queue()
    monkeypatch.setattr(kernel, "give_back", lambda: loop.call_soon_threadsafe(given.put_nowait, None))
    spare = Spare()
    for _ in range(5):
        spare.soon()
    await asyncio.wait_for(given.get(), 60)
    spare.soon()
    spare.close()
    assert given.empty()
