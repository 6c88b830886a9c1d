"""COPY --exclude and --chmod: a tree of files seen through them. All blocks."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from moorage_guest.errors import InvalidParameter
from moorage_guest.images.archive import Content
from moorage_guest.images.build.ignore import Ignore
from moorage_guest.images.build.sources import Source, SourceTree
from moorage_guest.images.tarformat import FOLDER, SYMLINK, Entry

ChangeMode = Callable[[int, bool], int]

_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111}


@dataclass
class FilteredTree(SourceTree):
    """Another tree without what patterns leave out, with other modes. Patterns count from each source on."""

    inner: SourceTree
    exclude: tuple[str, ...] = ()
    mode: ChangeMode | None = None

    def is_folder(self, path: str) -> bool:
        """See the base."""
        return self.inner.is_folder(path)

    def names(self, path: str) -> Sequence[str]:
        """See the base."""
        return self.inner.names(path)

    def head(self, path: str) -> bytes:
        """See the base."""
        return self.inner.head(path)

    def walk(self, source: Source) -> Iterator[tuple[Entry, Content | None]]:
        """See the base."""
        left_out = Ignore(self.exclude)
        for entry, content in self.inner.walk(replace(source, tree=self.inner)):
            if self.exclude and entry.name and left_out(entry.name):
                continue
            if self.mode is not None and entry.kind != SYMLINK:
                entry.mode = self.mode(entry.mode, entry.kind == FOLDER)
            yield entry, content


def read_mode(text: str) -> ChangeMode:
    """Read the value of --chmod, octal or as `chmod` takes it. Raises InvalidParameter."""
    if re.fullmatch(r"[0-7]{1,5}", text) and int(text, 8) <= 0o7777:
        octal = int(text, 8)
        return lambda mode, folder: octal
    clauses = text.split(",")
    actions: list[tuple[str, str, str]] = []
    for clause in clauses:
        match = re.fullmatch(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)", clause)
        if match is None:
            raise InvalidParameter(
                f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, or as in u=rw,go=r"
            )
        for operator, what in re.findall(r"([-+=])([rwxXst]*|[ugo])", match[2]):
            actions.append((match[1] or "a", operator, what))

    def change(mode: int, folder: bool) -> int:
        for who, operator, what in actions:
            mode = _changed(mode, who, operator, what, folder)
        return mode

    return change


def _changed(mode: int, who: str, operator: str, what: str, folder: bool) -> int:
    mask = 0
    for each in "ugo" if "a" in who else who:
        mask |= _WHO[each]
    bits = 0
    if what in ("u", "g", "o"):
        own = (mode >> {"u": 6, "g": 3, "o": 0}[what]) & 7
        bits = own * 0o111
    else:
        for each in what:
            if each in _BITS:
                bits |= _BITS[each]
            elif each == "X" and (folder or mode & 0o111):
                bits |= 0o111
            elif each == "s":
                bits |= 0o6000
            elif each == "t":
                bits |= 0o1000
    bits &= mask
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    return (mode & ~(mask & 0o777)) | bits
