"""What a build in BuildKit's way is asked for, what it asks its client for, and what it tells of itself.

The wire is for `moorage_guest.buildkit`; nothing here knows it. Times are nanoseconds since the epoch.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.image import LayerBlob
from moorage_guest.images.platforms import Platform
from moorage_guest.images.registry import Credentials


@dataclass(frozen=True)
class Source:
    """A place in a text: its lines from 1 on, both ends counted."""

    filename: str
    data: bytes
    ranges: tuple[tuple[int, int], ...] = ()
    language: str = "Dockerfile"


class BuildError(InvalidParameter):
    """A build failed. ``source`` is where in the Dockerfile, ``vertex`` the digest of the step, ``code`` what a command ended with.

    ``within`` is put before the message, and no part of what the step itself is said to have failed of.
    """

    def __init__(
        self, message: str, *, source: Source | None = None, vertex: str = "", code: int = 0, within: str = ""
    ) -> None:
        super().__init__(f"{within}{message}")
        self.own = message
        self.source = source
        self.vertex = vertex
        self.code = code


@dataclass(frozen=True)
class Vertex:
    """One step of a build as clients show it."""

    digest: str
    name: str
    inputs: tuple[str, ...] = ()
    cached: bool = False
    started_ns: int | None = None
    completed_ns: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Notice:
    """What a build thinks of its Dockerfile."""

    vertex: str
    short: str
    detail: tuple[str, ...] = ()
    url: str = ""
    source: Source | None = None
    level: int = 1


class Reporter(Protocol):
    """Sees what a build does. Called in the event loop; never waits."""

    def vertex(self, vertex: Vertex) -> None:
        """A step is known, has begun or is over: the whole of its state, each time that it changes."""

    def status(
        self, vertex: str, name: str, current: int, total: int, started_ns: int, completed_ns: int | None
    ) -> None:
        """How far a part of a step is: bytes, or steps of a kind. ``total`` is 0 when nobody knows."""

    def log(self, vertex: str, stream: int, data: bytes) -> None:
        """What a command wrote: 1 output, 2 errors."""

    def warning(self, warning: Notice) -> None:
        """Something that will be wrong one day, or is not what it seems."""


class Session(Protocol):
    """What a build may ask its client for. Every method raises InvalidParameter when the client has gone or says no."""

    async def local(
        self,
        name: str,
        *,
        follow: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> ContextTree:
        """Return the files of a folder of the client's, to be closed by the caller.

        ``follow`` are paths to be sent alone, with what links in them lead to; ``exclude`` are patterns of .dockerignore;
        ``progress`` is told how many bytes have come.
        """

    async def secret(self, name: str) -> bytes | None:
        """Return a secret; None when the client has none of that name."""

    def ssh(self, name: str, path: Path, uid: int, gid: int, mode: int) -> AbstractAsyncContextManager[None]:
        """Listen at ``path`` and hand each connection on to the client's agent."""

    async def credentials(self, host: str) -> Credentials:
        """Return the login for a registry; one that says nothing when there is none."""

    def upload(self, path: str) -> AsyncIterator[bytes]:
        """Yield what the client has under an address http://buildkit-session/``path``."""


#: What an image says of its steps, so that builds elsewhere find them (--cache-to type=inline).
INLINE_CACHE = "moorage.buildcache.v1"


@dataclass(frozen=True)
class Built:
    """What a build made, held by ``owner`` until the build's context ends. ``document`` is the image's whole configuration."""

    document: Mapping[str, Any]
    layers: tuple[LayerBlob, ...]
    chain: tuple[str, ...]
    platform: Platform
    owner: str
    steps: tuple[tuple[str, int, str], ...] = ()
    """Of each step that made a layer: the key by which the build cache knows it, which layer it is, and when it was made."""

    def exported(self, *, with_steps: bool) -> dict[str, Any]:
        """Return the configuration as an image has it, with the steps for the caches of others if wanted."""
        return (
            {**self.document, INLINE_CACHE: [list(each) for each in self.steps]} if with_steps else dict(self.document)
        )
