"""Which of the daemon's options running containers were started under, and what has changed since.

Live restore relies on some options (`moorage_contract.daemon_config.fingerprint`). Their values are kept under the exec
root, as long as containers run that were started under them; each shim names its set by digest. What a difference means
for a container is decided here; `restore` acts on it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage_contract.daemon_config import Json

log = logging.getLogger(__name__)

#: A container started under another value cannot be managed by this engine.
UNMANAGEABLE = ("data-root", "storage-driver", "userns-remap")

#: A container on the default bridge keeps what it got under another value.
OF_DEFAULT_BRIDGE = (
    "bridge", "bip", "bip6", "fixed-cidr", "fixed-cidr-v6", "default-gateway", "default-gateway-v6", "mtu", "ipv6",
    "icc", "ip-masq",
)  # fmt: skip

#: So does every container with a network of its own.
OF_NETWORKS = ("iptables", "ip6tables")


@dataclass(frozen=True)
class Difference:
    """One option with another value than when a container was started."""

    key: str
    old: Json
    new: Json

    @property
    def manageable(self) -> bool:
        """Whether a container started under the old value can be taken back."""
        return self.key not in UNMANAGEABLE

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.old)} and is {_shown(self.new)} now"

    @property
    def reason(self) -> str:
        """Why a container cannot be taken back, and what to do."""
        return (
            f"it was started with {self.key} {_shown(self.old)}, this engine's is {_shown(self.new)}: stop it, or start "
            f"the engine with the old {self.key} to manage it again"
        )


def _shown(value: Json) -> str:
    if isinstance(value, str):
        return value or "not set"
    return json.dumps(value) if value not in ([], {}) else "not set"


class StartOptions:
    """The sets of values, by digest. Reads and writes one small file; blocking, but only on memory."""

    def __init__(self, path: Path, current: Mapping[str, Json]) -> None:
        self._path = path
        self._current = dict(current)
        text = json.dumps(self._current, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._known: dict[str, dict[str, Json]] = {}
        try:
            record = json.loads(path.read_text())
            self._known = {str(key): dict(value) for key, value in record["options"].items()}
        except FileNotFoundError:
            log.debug("%s: the first daemon since the machine started", path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.error("%s is damaged (%r): which options containers were started under is not known", path, error)
        self.changed = any(digest != self.digest for digest in self._known)
        """Whether there may be containers that were started under other values."""
        self.keep([*self._known, self.digest])

    def differences(self, digest: str) -> tuple[Difference, ...]:
        """Return what differs from the values that a container was started under; nothing when they are not known."""
        before = self._known.get(digest, self._current)
        return tuple(
            Difference(key, before[key], value)
            for key, value in self._current.items()
            if key in before and before[key] != value
        )

    def keep(self, digests: Iterable[str]) -> None:
        """Forget all sets but those named and the one in force."""
        known = {digest: self._known[digest] for digest in digests if digest in self._known}
        known[self.digest] = self._current
        if known == self._known:
            return
        self._known = known
        temporary = self._path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"version": 1, "options": known}, file)
        temporary.rename(self._path)


def concerning(differences: Iterable[Difference], networks: Collection[str]) -> tuple[Difference, ...]:
    """Return those of the differences that mean something to a container in these networks."""
    wanted = {
        *UNMANAGEABLE,
        *(OF_DEFAULT_BRIDGE if "bridge" in networks else ()),
        *(OF_NETWORKS if networks else ()),
    }
    return tuple(each for each in differences if each.key in wanted)


def warnings(outdated: Mapping[str, tuple[Difference, ...]]) -> list[str]:
    """Return a sentence for every difference, with the names of the containers that it concerns."""
    names: dict[str, list[str]] = {}
    for name, differences in sorted(outdated.items()):
        for difference in differences:
            names.setdefault(str(difference), []).append(name)
    return [
        f"{text}: running containers keep the old value until they are started again: {', '.join(found)}"
        for text, found in names.items()
    ]
