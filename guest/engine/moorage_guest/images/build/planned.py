"""The steps of a build once every word of the Dockerfile has been expanded: what `planning` gives and `solve` carries out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage_guest.images.build import git
from moorage_guest.images.build.dialect import Stage, Statement
from moorage_guest.images.build.mounts import Mount
from moorage_guest.images.build.seams import Built
from moorage_guest.images.image import LayerBlob


def is_fetched(word: str) -> bool:
    """Whether ADD fetches a word from elsewhere."""
    return git.is_git(word) or bool(re.match(r"https?://", word))


@dataclass(frozen=True)
class Origin:
    """Where files come from: a stage, an image or other files by address. Exactly one is given."""

    stage: int | None = None
    image: Built | None = None
    address: str | None = None
    """"" is the main context."""
    name: str = ""
    """As people call it."""
    made_here: bool = False
    """Whether it is the result of another build: being based on it is no step."""


@dataclass(frozen=True)
class Step:
    """Something that makes a layer. ``number`` counts within the stage, from its base on; ``shown`` is how people see it."""

    statement: Statement
    number: int
    shown: str

    @property
    def documents_made(self) -> int:
        """How many here-documents become files."""
        return 0


@dataclass(frozen=True)
class MakeFolder(Step):
    """WORKDIR. What is made of it belongs to ``user``."""

    path: str
    user: str


@dataclass(frozen=True)
class Run(Step):
    """RUN. ``environment`` is all that the command sees, ``proxies`` what it sees besides and the cache does not."""

    command: tuple[str, ...]
    environment: tuple[str, ...]
    proxies: tuple[str, ...]
    user: str
    folder: str
    mounts: tuple[tuple[Mount, Origin | None], ...]
    network: str
    script: tuple[str, str] | None
    """Name and text of a here-document that is a program of its own."""
    note: str
    """What is shown after the instruction."""

    @property
    def documents_made(self) -> int:
        """See the base."""
        return int(self.script is not None)


@dataclass(frozen=True)
class Copy(Step):
    """COPY and ADD. ``target`` is absolute, a slash at its end makes it a folder."""

    origin: Origin
    sources: tuple[str, ...]
    documents: tuple[tuple[str, str], ...]
    """Names and texts of here-documents."""
    target: str
    chown: str
    chmod: str
    link: bool
    parents: bool
    exclude: tuple[str, ...]
    checksum: str
    keep_git: bool

    @property
    def is_add(self) -> bool:
        """Whether archives are unpacked and addresses fetched."""
        return self.statement.name == "ADD"

    @property
    def documents_made(self) -> int:
        """See the base."""
        return len(self.documents)

    @property
    def needs_origin(self) -> bool:
        """Whether anything is taken from its origin, and not all from elsewhere."""
        return any(not (self.is_add and is_fetched(word)) for word in self.sources)


@dataclass(frozen=True)
class Row:
    """One row of the image's history; ``step`` is which of the stage's steps made its layer, None when none did."""

    created_by: str
    step: int | None = None


@dataclass
class Planned:
    """One stage, ready to be carried out. ``base`` is None for scratch."""

    stage: Stage
    base: Origin | None
    config: dict[str, Any]
    document: Mapping[str, Any]
    author: str
    total: int = 0
    steps: list[Step] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    """What words mean at its end, and commands see: arguments and the environment, whichever came last."""
    shows_base: bool = True
    """Whether its base counts as its first step."""
    label: str = ""
    """By which its steps are shown: name or number, "" where there is only one stage."""


@dataclass(frozen=True)
class Laid:
    """What a stage came to: its layers, the history of the image it began with and the rows it added."""

    layers: tuple[LayerBlob, ...] = ()
    chain: tuple[str, ...] = ()
    below: tuple[Mapping[str, Any], ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    steps: tuple[tuple[str, int, str], ...] = ()
    """See `seams.Built`."""
