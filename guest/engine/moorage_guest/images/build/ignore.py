"""Patterns of .dockerignore: later ones win, ``!`` takes back, ``**`` stands for any number of folders."""

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Pattern:
    expression: re.Pattern[str]
    keeps: bool


class Ignore:
    """Says which paths of a context are left out."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: list[_Pattern] = []
        for line in patterns:
            text = line.removeprefix("\ufeff").strip()  # some editors begin a file with a byte order mark
            if not text or text.startswith("#"):
                continue
            keeps = text.startswith("!")
            text = posixpath.normpath(text.removeprefix("!").strip()).lstrip("/")
            if text not in ("", "."):
                self._patterns.append(_Pattern(_expression(text), keeps))

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __call__(self, path: str) -> bool:
        """Whether a path (relative, with slashes) is left out; a folder's being left out counts for what is in it."""
        out = False
        parents = _with_parents(path)
        for pattern in self._patterns:
            if out == pattern.keeps and any(pattern.expression.fullmatch(each) for each in parents):
                out = not pattern.keeps
        return out


def _with_parents(path: str) -> Sequence[str]:
    parts = path.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _expression(pattern: str) -> re.Pattern[str]:
    out = ""
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "*":
            if pattern.startswith("**", position):
                position += 2
                if pattern.startswith("/", position):
                    position += 1
                    out += "(?:.*/)?"
                else:
                    out += ".*"
                continue
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[":
            end = pattern.find("]", position + 1)
            if end < 0:
                out += re.escape(char)
            else:
                body = pattern[position + 1 : end]
                out += f"[{body.replace(chr(92), chr(92) * 2)}]"
                position = end
        elif char == "\\" and position + 1 < len(pattern):
            position += 1
            out += re.escape(pattern[position])
        else:
            out += re.escape(char)
        position += 1
    try:
        return re.compile(out)
    except re.error:
        return re.compile(re.escape(pattern))
