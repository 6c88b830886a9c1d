"""Reading JSON with the place of every key and value, so that a fault can be shown at its line.

Knows nothing of settings. Python's own parser gives no positions and lets duplicate keys pass.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from json import JSONDecodeError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Path = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_WORDS: dict[str, Json] = {"true": True, "false": False, "null": None}
_DEPTH = 64


class SyntaxFault(ValueError):
    """The text is no JSON. `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True)
class Member:
    """One `"key": value` of an object; offsets are characters from the start of the text, ends exclusive."""

    path: Path
    key: str
    value: Json
    key_start: int
    key_end: int
    value_start: int
    value_end: int


@dataclass
class Document:
    """A parsed text whose root is an object. An empty text is an empty object (`root_start` is -1 then)."""

    text: str
    root: dict[str, Json] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    duplicates: list[Member] = field(default_factory=list)
    root_start: int = -1
    root_end: int = -1
    _lines: list[int] = field(default_factory=list)

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of a character, both from 1."""
        if not self._lines:
            self._lines = [0, *(match.end() for match in re.finditer("\n", self.text))]
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1

    def top(self, key: str) -> Member | None:
        """The root's member of that name, the last one when it is there twice."""
        return self.find((key,))

    def find(self, path: Path) -> Member | None:
        """The member at `path`, or the nearest one above it (positions inside lists are those of the list)."""
        while path:
            for member in reversed(self.members):
                if member.path == path:
                    return member
            path = path[:-1]
        return None

    def top_members(self) -> list[Member]:
        """The root's members in the order of the text."""
        return [member for member in self.members if len(member.path) == 1]


def read(text: str) -> Document:
    """Parse `text`; raise SyntaxFault at the first character that cannot be. A byte order mark is passed over."""
    document = Document(text)
    start = 1 if text.startswith("\ufeff") else 0
    _Scanner(document).run(start)
    return document


class _Scanner:
    """One pass over a document's text, filling its members."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.text = document.text

    def fail(self, message: str, offset: int) -> SyntaxFault:
        line, column = self.document.place(min(offset, len(self.text)))
        return SyntaxFault(message, line, column)

    def run(self, start: int) -> None:
        offset = self.skip(start)
        if offset == len(self.text):
            return
        if self.text[offset] != "{":
            raise self.fail("the configuration must be an object: begin with {", offset)
        value, end = self.object(offset, (), 0)
        rest = self.skip(end)
        if rest != len(self.text):
            raise self.fail(f"invalid character {self.text[rest]!r} after top-level value", rest)
        self.document.root, self.document.root_start, self.document.root_end = value, offset, end

    def skip(self, offset: int) -> int:
        match = _SPACE.match(self.text, offset)
        end = match.end() if match else offset
        if self.text.startswith(("//", "/*"), end) or self.text.startswith("#", end):
            raise self.fail("JSON has no comments: remove this one", end)
        return end

    def unexpected(self, offset: int, wanted: str) -> SyntaxFault:
        if offset >= len(self.text):
            return self.fail(f"unexpected end of JSON input: {wanted} is missing", offset)
        return self.fail(f"invalid character {self.text[offset]!r}: expected {wanted}", offset)

    def string(self, offset: int) -> tuple[str, int]:
        match = _STRING.match(self.text, offset)
        if match is None:
            raise self.fail('a string is not closed on its line: add " at its end', offset)
        try:
            return str(json.loads(match.group())), match.end()
        except JSONDecodeError as error:
            raise self.fail("invalid escape in a string: write \\\\ for a backslash", offset + error.pos) from None

    def value(self, offset: int, path: Path, depth: int) -> tuple[Json, int]:
        if depth > _DEPTH:
            raise self.fail("nested too deeply", offset)
        char = self.text[offset : offset + 1]
        if char == '"':
            return self.string(offset)
        if char == "{":
            return self.object(offset, path, depth)
        if char == "[":
            return self.array(offset, path, depth)
        for word, value in _WORDS.items():
            if self.text.startswith(word, offset):
                return value, offset + len(word)
        number = _NUMBER.match(self.text, offset)
        if number:
            literal = number.group()
            if len(literal) > 40:
                raise self.fail("this number is too long", offset)
            return (float(literal) if number.group(1) or number.group(2) else int(literal)), number.end()
        if char == "'":
            raise self.fail("strings stand in double quotes: write \" instead of '", offset)
        raise self.unexpected(offset, "a value")

    def object(self, offset: int, path: Path, depth: int) -> tuple[dict[str, Json], int]:
        found: dict[str, Json] = {}
        offset = self.skip(offset + 1)
        if self.text[offset : offset + 1] == "}":
            return found, offset + 1
        while True:
            if self.text[offset : offset + 1] != '"':
                if found and self.text[offset : offset + 1] == "}":
                    raise self.fail("invalid character '}': a comma stands before it; remove that comma", offset)
                raise self.unexpected(offset, "a key in double quotes" + ("" if found else " or }"))
            key, key_end = self.string(offset)
            colon = self.skip(key_end)
            if self.text[colon : colon + 1] != ":":
                raise self.unexpected(colon, f'":" after the key "{key}"')
            start = self.skip(colon + 1)
            slot = len(self.document.members)
            value, end = self.value(start, (*path, key), depth + 1)
            member = Member((*path, key), key, value, offset, key_end, start, end)
            self.document.members.insert(slot, member)
            if key in found:
                self.document.duplicates.append(member)
            found[key] = value
            offset = self.skip(end)
            char = self.text[offset : offset + 1]
            if char == "}":
                return found, offset + 1
            if char != ",":
                raise self.unexpected(offset, f'"," or "}}" after the value of "{key}"')
            offset = self.skip(offset + 1)

    def array(self, offset: int, path: Path, depth: int) -> tuple[list[Json], int]:
        found: list[Json] = []
        offset = self.skip(offset + 1)
        if self.text[offset : offset + 1] == "]":
            return found, offset + 1
        while True:
            if found and self.text[offset : offset + 1] == "]":
                raise self.fail("invalid character ']': a comma stands before it; remove that comma", offset)
            value, end = self.value(offset, (*path, len(found)), depth + 1)
            found.append(value)
            offset = self.skip(end)
            char = self.text[offset : offset + 1]
            if char == "]":
                return found, offset + 1
            if char != ",":
                raise self.unexpected(offset, '"," or "]" in this list')
            offset = self.skip(offset + 1)
