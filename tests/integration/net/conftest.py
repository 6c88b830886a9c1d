import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.networks import World
from tests.support.networks import world as make_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    root = Path(tempfile.mkdtemp(prefix="net-", dir="/tmp"))
    try:
        async with make_world(root) as made:
            yield made
    finally:
        shutil.rmtree(root)
