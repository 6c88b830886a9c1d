"""How a setting is declared: its type, default, help, cost of a change, flags, and whether this engine has it.

The declarations themselves are the fields of `model.DaemonConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, cast

from moorage_contract.daemon_config.document import Json
from moorage_contract.daemon_config.kinds import Kind

T = TypeVar("T")
_SLOT = "moorage.setting"


class Cost(Enum):
    """What a change interrupts, cheapest first."""

    RELOAD = "reload"
    RESTART = "restart"
    CONTAINERS = "containers"
    VM = "vm"

    @property
    def weight(self) -> int:
        """Order of costs; the whole plan costs what its dearest change does."""
        return list(Cost).index(self)


class Absent(Enum):
    """What a reload does to a reloadable key that is no longer in the file."""

    KEEP = "keep"
    DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One key of daemon.json. `refusal` says why any value but the default is refused; `no_effect` why a value changes nothing."""

    key: str
    attribute: str
    kind: Kind[Any]
    default: Any
    help: str
    cost: Cost
    flags: tuple[str, ...]
    absent: Absent
    restore: bool
    section: str
    refusal: str
    no_effect: str
    aliases: tuple[str, ...]
    hidden: bool

    @property
    def supported(self) -> bool:
        """Whether a value of one's own is accepted at all."""
        return not self.refusal

    @property
    def reloadable(self) -> bool:
        """Whether SIGHUP puts a new value in force."""
        return self.cost is Cost.RELOAD


def setting(
    kind: Kind[T],
    default: T,
    help: str,
    *,
    cost: Cost = Cost.RESTART,
    flags: tuple[str, ...] | None = None,
    key: str = "",
    absent: Absent = Absent.KEEP,
    restore: bool = False,
    section: str = "",
    refusal: str = "",
    no_effect: str = "",
    aliases: tuple[str, ...] = (),
    hidden: bool = False,
) -> T:
    """Declare a field of DaemonConfig. The key is the field's name with hyphens, the flag `--key`, unless given.

    `restore` puts the option into the live-restore fingerprint; its cost is CONTAINERS then. `section` is the object of the
    file that holds the key.
    """
    declared = {
        "key": key, "kind": kind, "default": default, "help": help, "cost": Cost.CONTAINERS if restore else cost, "flags": flags,
        "absent": absent, "restore": restore, "section": section, "refusal": refusal, "no_effect": no_effect, "aliases": aliases,
        "hidden": hidden,
    }  # fmt: skip
    if isinstance(default, dict):
        return dataclasses.field(default_factory=cast(Callable[[], T], dict), metadata={_SLOT: declared})
    return dataclasses.field(default=default, metadata={_SLOT: declared})


@cache
def declared(model: type) -> Mapping[str, Setting]:
    """All settings of a dataclass by key, in the order of their declaration."""
    found = {}
    for field in dataclasses.fields(model):
        if _SLOT not in field.metadata:
            continue
        values = dict(field.metadata[_SLOT])
        key = values.pop("key") or field.name.replace("_", "-")
        flags = values.pop("flags")
        found[key] = Setting(key=key, attribute=field.name, flags=(f"--{key}",) if flags is None else flags, **values)
    return found


def unset(value: Json) -> bool:
    """Whether dockerd takes a value for none: "", 0, [] and {}, but never false."""
    return value is None or (not isinstance(value, bool) and not value)
