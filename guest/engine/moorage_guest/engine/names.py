"""Names of containers: what is allowed, who has which, and made-up ones for containers without."""

import re
import secrets
from collections.abc import Iterator

from moorage_guest.errors import Conflict, InvalidParameter, NotFound

NAME = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")

_MANNERS = [
    "agile",
    "amber",
    "azure",
    "bold",
    "brave",
    "brisk",
    "calm",
    "candid",
    "clever",
    "cosmic",
    "crisp",
    "curious",
    "dapper",
    "daring",
    "deft",
    "eager",
    "earnest",
    "early",
    "fabled",
    "fair",
    "fleet",
    "fluent",
    "fond",
    "frank",
    "fresh",
    "gentle",
    "glad",
    "golden",
    "happy",
    "hardy",
    "honest",
    "humble",
    "jolly",
    "keen",
    "kind",
    "lively",
    "loyal",
    "lucid",
    "merry",
    "mellow",
    "mild",
    "modest",
    "nimble",
    "noble",
    "patient",
    "placid",
    "plucky",
    "polite",
    "proud",
    "prudent",
    "quick",
    "quiet",
    "ready",
    "rustic",
    "serene",
    "sharp",
    "silent",
    "sleek",
    "snug",
    "solid",
    "spry",
    "steady",
    "sunny",
    "swift",
    "tidy",
    "tranquil",
    "upbeat",
    "vivid",
    "warm",
    "wise",
    "witty",
    "young",
    "zesty",
]

_BERTHS = [
    "anchor",
    "beacon",
    "bollard",
    "bosun",
    "bowline",
    "breeze",
    "bridge",
    "buoy",
    "cabin",
    "capstan",
    "clipper",
    "cleat",
    "compass",
    "coracle",
    "cove",
    "current",
    "cutter",
    "davit",
    "dinghy",
    "dock",
    "ebb",
    "estuary",
    "fathom",
    "ferry",
    "fjord",
    "flotilla",
    "foghorn",
    "galley",
    "gangway",
    "gull",
    "halyard",
    "harbor",
    "haven",
    "hawser",
    "heron",
    "jetty",
    "jib",
    "keel",
    "ketch",
    "knot",
    "lagoon",
    "lantern",
    "launch",
    "lighthouse",
    "lock",
    "lugger",
    "mainsail",
    "marina",
    "mast",
    "mooring",
    "oar",
    "otter",
    "outrigger",
    "packet",
    "pelican",
    "pier",
    "pilot",
    "pinnace",
    "plover",
    "port",
    "quay",
    "reef",
    "rigging",
    "rudder",
    "sail",
    "schooner",
    "sextant",
    "shoal",
    "skiff",
    "sloop",
    "spar",
    "spinnaker",
    "starboard",
    "tender",
    "tern",
    "tide",
    "tiller",
    "trawler",
    "tug",
    "wharf",
    "yawl",
]


def check_name(name: str) -> str:
    """Return the name without a leading slash. Raises InvalidParameter as dockerd words it."""
    if not NAME.fullmatch(name):
        raise InvalidParameter(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return name.lstrip("/")


class Names:
    """Which name belongs to which container id, and ids by prefix."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def reserve(self, name: str, container_id: str) -> None:
        """Give a free name to a container. Raises Conflict as dockerd words it."""
        holder = self._ids.setdefault(name, container_id)
        if holder != container_id:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )

    def release(self, name: str, container_id: str) -> None:
        """Take a name back; quiet when it belongs to somebody else."""
        if self._ids.get(name) == container_id:
            del self._ids[name]

    def get(self, name: str) -> str | None:
        """Return the id of the container with this name, or None."""
        return self._ids.get(name)

    def make_up(self, container_id: str) -> str:
        """Reserve a name nobody has and return it."""
        for name in _candidates(container_id):
            if name not in self._ids:
                self._ids[name] = container_id
                return name
        raise AssertionError("unreachable: the last candidate is the id itself")


def _candidates(container_id: str) -> Iterator[str]:
    for attempt in range(8):
        name = f"{secrets.choice(_MANNERS)}_{secrets.choice(_BERTHS)}"
        yield name if attempt < 3 else f"{name}{secrets.randbelow(1000)}"
    yield container_id[:12]
    yield container_id


def not_found(reference: str) -> NotFound:
    """Return the error for a container that does not exist."""
    return NotFound(f"No such container: {reference}")
