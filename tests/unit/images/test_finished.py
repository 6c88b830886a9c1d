"""Waiting for threads: who is cancelled goes on only after the thread has ended."""

import asyncio
import threading

import pytest
from moorage_guest.images.streams import finished


async def test_a_cancelled_task_waits_for_its_thread() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(60)
        done.set()

    task = asyncio.create_task(finished(asyncio.to_thread(work)))
    await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    await asyncio.wait({task}, timeout=0)
    task.cancel()
    await asyncio.wait({task}, timeout=0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_results_and_errors_come_through() -> None:
    assert await finished(asyncio.to_thread(lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        await finished(asyncio.to_thread(lambda: 1 // 0))
