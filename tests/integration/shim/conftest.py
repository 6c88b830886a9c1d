"""An agent with its daemon, and what holds containers of it."""

from collections.abc import AsyncIterator

import pytest

from tests.support.shims import Harness
from tests.support.supervised import Supervised, supervised


@pytest.fixture
async def guest() -> AsyncIterator[Supervised]:
    async with supervised() as guest:
        yield guest


@pytest.fixture
async def harness(guest: Supervised) -> AsyncIterator[Harness]:
    await guest.running()
    harness = await guest.harness()
    yield harness
    await harness.end_containers()
    await harness.agent.close()
