"""Downloads and uploads that are going on: how many at a time, and never one blob twice."""

import asyncio
from dataclasses import dataclass, field


@dataclass
class Transfers:
    """Belongs to one event loop."""

    downloads: asyncio.Semaphore
    uploads: asyncio.Semaphore
    packing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held to compress a layer, which takes every core."""
    locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def lock(self, digest: str) -> asyncio.Lock:
        """Return the lock under which a blob is fetched."""
        return self.locks.setdefault(digest, asyncio.Lock())
