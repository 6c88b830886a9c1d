"""What a volume is: its record, what clients are told of it, and which names and options the local driver takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage_guest.errors import InvalidParameter

LOCAL = "local"

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_OPTIONS = ("type", "o", "device", "size")
_NEEDS = {"device": ("type",), "type": ("device",), "o": ("device", "type")}


def is_name(text: str) -> bool:
    """Whether the local driver may call a volume that."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Volume:
    """One volume. ``mountpoint`` is where its content is, mounted or not; of a plugin's volume it is ``Path()`` until it is known."""

    name: str
    driver: str
    mountpoint: Path
    created: str
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    scope: str = LOCAL
    #: By container that uses it, what a plugin was told of that use.
    mounted: dict[str, str] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        """Whether it is the engine's own, not a plugin's."""
        return self.driver == LOCAL

    @property
    def mounts(self) -> bool:
        """Whether something has to be mounted before use."""
        return self.local and bool(self.options.get("type") or self.options.get("device"))

    @property
    def source(self) -> str:
        """Where its content is, as clients are told; "" when that is not known."""
        return "" if self.mountpoint == Path() else str(self.mountpoint)

    def to_api(self) -> dict[str, Any]:
        """Return the API's Volume object."""
        return {
            **({"CreatedAt": self.created} if self.created else {}),
            "Driver": self.driver,
            "Labels": self.labels,
            "Mountpoint": self.source,
            "Name": self.name,
            "Options": self.options,
            "Scope": self.scope,
            **({"Status": dict(self.status)} if self.status else {}),
        }

    def to_record(self) -> dict[str, Any]:
        """Return what is kept of it."""
        record: dict[str, Any] = {
            "driver": self.driver, "created": self.created, "options": self.options, "labels": self.labels,
        }  # fmt: skip
        if not self.local:
            record.update(mountpoint=self.source, scope=self.scope, mounted=self.mounted)
        return record


def check_name(name: str) -> None:
    """Raise InvalidParameter for a name that no volume can have."""
    if len(name) == 1:
        raise InvalidParameter(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not is_name(name) or len(name) > 255:
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def check_options(name: str, options: Mapping[str, str]) -> None:
    """Raise InvalidParameter for options of the local driver that cannot be."""
    for option in options:
        if option not in _OPTIONS:
            raise InvalidParameter(f'create {name}: invalid option: "{option}"')
    for option, needed in _NEEDS.items():
        if options.get(option):
            for other in needed:
                if not options.get(other):
                    raise InvalidParameter(f'create {name}: missing required option: "{other}"')
    if options.get("size"):
        raise InvalidParameter(
            f"create {name}: quota size requested but no quota support; for a bounded volume use type=tmpfs with o=size="
        )
