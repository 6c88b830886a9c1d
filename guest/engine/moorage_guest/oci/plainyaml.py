"""Reads the YAML that device specifications are written in: mappings, lists and scalars by indentation.

Anchors, tags, block scalars and several documents are refused, in words; nothing is taken for what it is not.
"""

import json
import re
from dataclasses import dataclass
from typing import Any


class YamlError(ValueError):
    """The text is not YAML, or more of it than is read here."""


@dataclass(frozen=True)
class _Line:
    number: int
    indent: int
    text: str


_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_OCTAL = re.compile(r"0o?([0-7]+)")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*")
_KEY = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s"'#\[\]{},&*!|>%@`][^#]*?)\s*:(?:\s+|$)""")
_ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\[\]{}"',]+)\s*(?:,|$)""")
_FLOW = re.compile(rf"\[(?:{_ITEM.pattern.removesuffix('(?:,|$)')},)*(?:{_ITEM.pattern.removesuffix('(?:,|$)')})?\s*\]")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


def parse(text: str) -> Any:
    """Return the document's value. Raises YamlError."""
    lines: list[_Line] = []
    for number, raw in enumerate(text.splitlines(), 1):
        stripped = _without_comment(raw).rstrip()
        if stripped in ("", "---") and not lines:
            continue
        if stripped in ("---", "..."):
            raise YamlError(f"line {number}: only one document is read")
        if stripped.strip():
            content = stripped.lstrip(" ")
            if content.startswith("\t"):
                raise YamlError(f"line {number}: indented by a tab")
            lines.append(_Line(number, len(stripped) - len(content), content))
    if not lines:
        return None
    value, rest = _block(lines, lines[0].indent)
    if rest:
        raise YamlError(f"line {rest[0].number}: unexpected indentation")
    return value


def _without_comment(line: str) -> str:
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            escaped = quote == '"' and line[place - 1] == "\\"
            quote = quote if letter != quote or escaped else ""
        elif letter in "\"'" and (place == 0 or line[place - 1] in " [{,:-"):
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1] in " \t"):
            return line[:place]
    return line


def _block(lines: list[_Line], indent: int) -> tuple[Any, list[_Line]]:
    """Return the value of the lines at ``indent`` and deeper, and the lines behind it."""
    first = lines[0]
    if first.text == "-" or first.text.startswith("- "):
        return _list(lines, indent)
    if _KEY.match(first.text):
        return _mapping(lines, indent)
    return _scalar(first.text, first.number), lines[1:]


def _list(lines: list[_Line], indent: int) -> tuple[list[Any], list[_Line]]:
    items = []
    while lines and lines[0].indent == indent and (lines[0].text == "-" or lines[0].text.startswith("- ")):
        line, lines = lines[0], lines[1:]
        content = line.text[1:].lstrip(" ")
        if content:  # what follows the dash is a block of its own, as deep as it stands
            inner = _Line(line.number, indent + len(line.text) - len(content), content)
            value, lines = _block([inner, *lines], inner.indent)
        elif lines and lines[0].indent > indent:
            value, lines = _block(lines, lines[0].indent)
        else:
            value = None
        items.append(value)
    return items, lines


def _mapping(lines: list[_Line], indent: int) -> tuple[dict[str, Any], list[_Line]]:
    found: dict[str, Any] = {}
    while lines and lines[0].indent == indent and (match := _KEY.match(lines[0].text)):
        line, lines = lines[0], lines[1:]
        key = str(_scalar(match[1], line.number)) if match[1][0] in "\"'" else match[1]
        if key in found:
            raise YamlError(f"line {line.number}: {key!r} stands there twice")
        content = line.text[match.end() :]
        is_list = bool(lines) and (lines[0].text == "-" or lines[0].text.startswith("- "))
        if content:
            found[key] = _scalar(content, line.number)
        elif lines and (lines[0].indent > indent or (lines[0].indent == indent and is_list)):
            found[key], lines = _block(lines, lines[0].indent)
        else:
            found[key] = None
    return found, lines


def _scalar(text: str, number: int) -> Any:
    if text[0] in "[{":
        return _flow(text, number)
    if text[0] == '"':
        try:
            return json.loads(text)
        except ValueError as error:
            raise YamlError(f"line {number}: {text} is no quoted text that is read here") from error
    if text[0] == "'":
        if not re.fullmatch(r"'(?:[^']|'')*'", text):
            raise YamlError(f"line {number}: {text} does not end its quotes")
        return text[1:-1].replace("''", "'")
    if text[0] in "&*!|>%@`":
        raise YamlError(f"line {number}: {text[0]!r} at the beginning of a value is not read here")
    if ": " in text or text.endswith(":"):
        raise YamlError(f"line {number}: there are two colons: put the value in quotes")
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if match := _OCTAL.fullmatch(text):
        return int(match[1], 8)
    return float(text) if _FLOAT.fullmatch(text) else text


def _flow(text: str, number: int) -> Any:
    """Read ``[a, b]``; anything deeper has to be JSON."""
    try:
        return json.loads(text)
    except ValueError:
        if not _FLOW.fullmatch(text):
            raise YamlError(f"line {number}: {text} is not read here: write it as JSON, or in lines") from None
        return [_scalar(match[1].strip(), number) for match in _ITEM.finditer(text[1:-1]) if match[1].strip()]
