"""Clients' folders between builds: of one that is built again, only what has changed since is sent again.

What is kept has no name on disk, so that it ends with the daemon, and ends by itself after a while.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from moorage_guest.images.build.context import ContextTree

#: Seconds that a folder is kept after its last build.
KEEP = 600.0

#: Bytes of all folders that are kept, and files of one.
MAX_BYTES = 1 << 30
MAX_FILES = 50_000

#: Bytes of a folder that is not worth it.
MIN_BYTES = 256 << 10


@dataclass
class KeptTree(ContextTree):
    """A client's folder. When it is closed, ``on_close`` is given its files if they have all come, see `complete`."""

    on_close: Callable[[ContextTree], None] = field(kw_only=True)
    _complete: bool = False

    def complete(self) -> None:
        """Everything has come."""
        self._complete = True

    def close(self) -> None:
        """See the base."""
        if self._complete:
            self._complete = False
            self.on_close(self.moved())
        super().close()


@dataclass
class _Kept:
    tree: ContextTree
    timer: asyncio.TimerHandle


@dataclass
class Keeper:
    """Keeps folders by what tells them from others. Belongs to the event loop."""

    _kept: dict[Hashable, _Kept] = field(default_factory=dict)

    def take(self, key: Hashable) -> ContextTree | None:
        """Return a folder's files, which are the caller's to close from now on, if they are kept and nobody else has them."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        found.timer.cancel()
        return found.tree

    def put(self, key: Hashable, tree: ContextTree) -> None:
        """Keep a folder's files, or close them."""
        self._drop(key)
        files, live, size = tree.measure
        if not MIN_BYTES <= live <= MAX_BYTES or files > MAX_FILES or size > 2 * live:
            tree.close()
            return
        self._kept[key] = _Kept(tree, asyncio.get_running_loop().call_later(KEEP, self._drop, key))
        while sum(each.tree.measure[2] for each in self._kept.values()) > MAX_BYTES:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Keep nothing."""
        for key in list(self._kept):
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        if (tree := self.take(key)) is not None:
            tree.close()
