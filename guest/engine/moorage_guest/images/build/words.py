"""Words of the Dockerfile language: quoting, escapes and the expansion of variables.

Expansion follows the reference: ``$name``, ``${name}``, and ``:-``, ``:+``, ``:?`` with their forms without a colon, ``#``, ``##``,
``%``, ``%%``, ``/`` and ``//``.
"""

import contextlib
import fnmatch
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from moorage_guest.errors import InvalidParameter

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass
class Expansion:
    """Expands words; remembers which variables it looked at."""

    variables: Mapping[str, str]
    escape: str = "\\"
    used: set[str] = field(default_factory=set)

    def one(self, word: str) -> str:
        """Expand a word and take its quotes away. Raises InvalidParameter that names the word."""
        with _named(word):
            return self._inner(word)

    def _inner(self, word: str) -> str:
        return "".join(self._parts(word, keep_quotes=False, mark=lambda text: text))

    def many(self, word: str) -> list[str]:
        """Expand a word and split what came from outside of quotes at white space."""
        with _named(word):
            marked = "".join(self._parts(word, keep_quotes=False, mark=_protect))
        return [_unprotect(each) for each in re.split(r"[ \t\r\n]+", marked) if each]

    def raw(self, text: str) -> str:
        """Expand a text in which quotes stand for themselves, as a here-document."""
        with _named(text):
            out: list[str] = []
            position = 0
            while position < len(text):
                char = text[position]
                if char == "$":
                    piece, position = self._dollar(text, position)
                    out.append(piece)
                    continue
                if char == self.escape and position + 1 < len(text):
                    position += 1
                    char = text[position]
                out.append(char)
                position += 1
            return "".join(out)

    def shown(self, text: str, *, keep_quotes: bool) -> str:
        """Expand what can be in a text that people read; never raises, and what is not set stays as it is written."""
        out: list[str] = []
        position, quoted = 0, False
        while position < len(text):
            char = text[position]
            if char == "'" and not quoted and (end := text.find("'", position + 1)) > 0:
                out.append(text[position : end + 1] if keep_quotes else text[position + 1 : end])
                position = end + 1
                continue
            if char == '"':
                quoted = not quoted
                out.append(char if keep_quotes else "")
            elif char == self.escape and position + 1 < len(text):
                position += 1
                out.append(text[position])
            elif char == "$":
                piece, end = self._shown_variable(text, position)
                out.append(piece)
                position = end
                continue
            else:
                out.append(char)
            position += 1
        return "".join(out)

    def _shown_variable(self, text: str, position: int) -> tuple[str, int]:
        name = _NAME.match(text, position + 2 if text.startswith("${", position) else position + 1)
        with contextlib.suppress(InvalidParameter):
            piece, end = self._dollar(text, position)
            return (piece, end) if name is not None and name[0] in self.variables else (text[position:end], end)
        return text[position], position + 1

    def _parts(self, word: str, *, keep_quotes: bool, mark: Callable[[str], str]) -> list[str]:
        out: list[str] = []
        position = 0
        while position < len(word):
            char = word[position]
            if char == "'":
                end = word.find("'", position + 1)
                if end < 0:
                    raise InvalidParameter("unexpected end of statement while looking for matching single-quote")
                out.append(mark(word[position + 1 : end]))
                if end == position + 1:
                    out.append(mark(""))
                position = end + 1
            elif char == '"':
                text, position = self._double(word, position + 1)
                out.append(mark(text))
            elif char == self.escape and position + 1 < len(word):
                out.append(mark(word[position + 1]))
                position += 2
            elif char == self.escape:
                position += 1
            elif char == "$":
                text, position = self._dollar(word, position)
                out.append(text)
            else:
                out.append(char)
                position += 1
        return out

    def _double(self, word: str, position: int) -> tuple[str, int]:
        out: list[str] = []
        while True:
            if position >= len(word):
                raise InvalidParameter("unexpected end of statement while looking for matching double-quote")
            char = word[position]
            if char == '"':
                return "".join(out), position + 1
            if char == "$":
                text, position = self._dollar(word, position)
                out.append(text)
                continue
            if char == self.escape and position + 1 < len(word) and word[position + 1] in ('"', "$", self.escape):
                position += 1
                char = word[position]
            out.append(char)
            position += 1

    def _dollar(self, word: str, position: int) -> tuple[str, int]:
        rest = position + 1
        if rest < len(word) and word[rest] == "{":
            return self._braces(word, rest + 1)
        match = _NAME.match(word, rest)
        if match is None:
            if rest < len(word) and word[rest] in "0123456789@*#?-$!":
                return self._value(word[rest]) or "", rest + 1
            return "$", rest
        return self._value(match[0]) or "", match.end()

    def _value(self, name: str) -> str | None:
        self.used.add(name)
        return self.variables.get(name)

    def _braces(self, word: str, position: int) -> tuple[str, int]:
        match = _NAME.match(word, position) or re.compile(r"\d+|[@*#?$!-]").match(word, position)
        if match is None:
            raise InvalidParameter(f"syntax error: bad substitution in {word!r}")
        name, position = match[0], match.end()
        if position >= len(word):
            raise InvalidParameter("syntax error: missing '}'")
        value = self._value(name)
        operator = word[position]
        if operator == "}":
            return value or "", position + 1
        colon = operator == ":"
        if colon:
            position += 1
            operator = word[position : position + 1]
        if operator and operator in "-+?":
            raw, position = self._until_brace(word, position + 1)
            there = value is not None and (not colon or value != "")
            if operator == "-":
                return (value or "") if there else self._inner(raw), position
            if operator == "+":
                return self._inner(raw) if there else "", position
            if not there:
                message = (
                    self._inner(raw) or "is not allowed to be empty"
                    if colon
                    else self._inner(raw) or "is not allowed to be unset"
                )
                raise InvalidParameter(f"{name}: {message}")
            return value or "", position
        if colon or not operator or operator not in "#%/":
            raise InvalidParameter(
                f"unsupported modifier ({word[position - 1 if colon else position :][:2]}) in substitution"
            )
        double = word[position + 1 : position + 2] == operator
        raw, position = self._until_brace(word, position + (2 if double else 1))
        if operator == "/":
            pattern, _, replacement = raw.partition("/")
            return _replace(value or "", self._inner(pattern), self._inner(replacement), everywhere=double), position
        return _strip(value or "", self._inner(raw), front=operator == "#", longest=double), position

    def _until_brace(self, word: str, position: int) -> tuple[str, int]:
        depth, start = 1, position
        while position < len(word):
            char = word[position]
            if char == self.escape:
                position += 2
                continue
            if char == "}":
                depth -= 1
                if not depth:
                    return word[start:position], position + 1
            elif word.startswith("${", position):
                depth += 1
                position += 1
            position += 1
        raise InvalidParameter("syntax error: missing '}'")


@contextlib.contextmanager
def _named(word: str) -> Iterator[None]:
    try:
        yield
    except InvalidParameter as error:
        raise InvalidParameter(f"failed to process {json.dumps(word, ensure_ascii=False)}: {error}") from None


def _protect(text: str) -> str:
    """Mark white space that quotes protect; private characters stand for it. An empty quoted word stays a word."""
    return "\ue000" + text.translate({32: "\ue001", 9: "\ue002", 10: "\ue003", 13: "\ue004"})


def _unprotect(text: str) -> str:
    return text.replace("\ue000", "").translate({0xE001: " ", 0xE002: "\t", 0xE003: "\n", 0xE004: "\r"})


def _strip(value: str, pattern: str, *, front: bool, longest: bool) -> str:
    lengths = range(len(value) + 1)
    for length in reversed(lengths) if longest else lengths:
        piece = value[:length] if front else value[len(value) - length :]
        if fnmatch.fnmatchcase(piece, pattern):
            return value[length:] if front else value[: len(value) - length]
    return value


def _replace(value: str, pattern: str, replacement: str, *, everywhere: bool) -> str:
    expression = re.compile(fnmatch.translate(pattern).removesuffix("\\Z").removesuffix("\\z"))
    return expression.sub(lambda match: replacement, value, count=0 if everywhere else 1)


def split_quoted(text: str, escape: str = "\\") -> list[str]:
    """Split a line at white space outside of quotes; quotes and escapes stay in the words."""
    words: list[str] = []
    current = ""
    quote = ""
    position = 0
    while position < len(text):
        char = text[position]
        if char == escape and position + 1 < len(text) and quote != "'":
            current += text[position : position + 2]
            position += 2
            continue
        if quote:
            quote = "" if char == quote else quote
            current += char
        elif char in "'\"":
            quote = char
            current += char
        elif char.isspace():
            if current:
                words.append(current)
            current = ""
        else:
            current += char
        position += 1
    if current:
        words.append(current)
    return words
