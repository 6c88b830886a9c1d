"""Which users and groups of the machine stand for those of containers whose root is remapped.

On disk a remapped daemon keeps files with the machine's numbers, as the containers' kernel wants them; in archives and
records everything has the containers' own. Where one becomes the other, an `IdMap` is handed in.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage_guest.errors import InvalidParameter


class Unmapped(InvalidParameter):
    """A user or group of a container has none on the machine; the text is dockerd's."""


@dataclass(frozen=True)
class IdRange:
    """``count`` numbers of containers from ``inside`` on, which are those of the machine from ``outside`` on."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True)
class IdMap:
    """Ranges for users and for groups. Without ranges all numbers stay as they are."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uids)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the machine's numbers for a container's. Raises Unmapped."""
        if not self.uids:
            return uid, gid
        return _outside(self.uids, uid), _outside(self.gids, gid)

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """Return a container's numbers for the machine's. What no container could have made keeps its number."""
        if not self.uids:
            return uid, gid
        return _inside(self.uids, uid), _inside(self.gids, gid)

    @property
    def root(self) -> tuple[int, int]:
        """The machine's numbers for a container's root."""
        return self.outside(0, 0)

    @property
    def folder(self) -> str:
        """The folder below the data root in which a daemon with this mapping keeps everything; "" for none."""
        return "{}.{}".format(*self.root) if self else ""

    def let_through(self, *folders: Path) -> None:
        """Let containers' root, and nobody else, through folders of the daemon to what is its own below them."""
        if self:
            for folder in folders:
                os.chown(folder, 0, self.root[1])
                folder.chmod(0o710)

    def give(self, *paths: Path) -> None:
        """Make files or folders containers' root's own."""
        if self:
            for path in paths:
                os.chown(path, *self.root, follow_symlinks=False)

    def to_oci(self) -> dict[str, Any]:
        """Return the mappings as the OCI ``linux`` object has them."""
        return {"uidMappings": _oci(self.uids), "gidMappings": _oci(self.gids)}


def _outside(ranges: tuple[IdRange, ...], number: int) -> int:
    for each in ranges:
        if each.inside <= number < each.inside + each.count:
            return each.outside + number - each.inside
    raise Unmapped(f"Container ID {number} cannot be mapped to a host ID")


def _inside(ranges: tuple[IdRange, ...], number: int) -> int:
    for each in ranges:
        if each.outside <= number < each.outside + each.count:
            return each.inside + number - each.outside
    return number


def _oci(ranges: tuple[IdRange, ...]) -> list[dict[str, int]]:
    return [{"containerID": each.inside, "hostID": each.outside, "size": each.count} for each in ranges]


#: Nothing is remapped.
SAME = IdMap()
