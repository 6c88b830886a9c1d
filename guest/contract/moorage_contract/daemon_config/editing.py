"""Changing one key in the text of a daemon.json and leaving everything else as its author wrote it."""

from __future__ import annotations

import json
import re

from moorage_contract.daemon_config.document import Document, Json, Member, read
from moorage_contract.daemon_config.model import SETTINGS


def set_key(text: str, key: str, value: Json) -> str:
    """Return `text` with `key` set; other keys, unknown ones too, their order and the white space stay. None removes the key.

    The proxies are set inside of "proxies". Raises SyntaxFault when the text is no JSON. The result is not validated: keys that no
    declaration knows can be set as well.
    """
    section = SETTINGS[key].section if key in SETTINGS else ""
    document = read(text)
    if section and document.top(key) is None:
        held = document.top(section)
        content = dict(held.value) if held is not None and isinstance(held.value, dict) else {}
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
        return _set(document, section, content or None)
    return _set(document, key, value)


def _set(document: Document, key: str, value: Json) -> str:
    text = document.text
    member = document.top(key)
    if value is None:
        return text if member is None else _without(document, member)
    indent = _indent(document)
    if member is not None:
        return text[: member.value_start] + _written(value, indent) + text[member.value_end :]
    line = f"{json.dumps(key, ensure_ascii=False)}: {_written(value, indent)}"
    members = document.top_members()
    if members:
        last = members[-1].value_end
        separator = f",\n{indent}" if "\n" in text[document.root_start : document.root_end] else ", "
        return text[:last] + separator + line + text[last:]
    if document.root_start < 0:
        return "{\n" + indent + line + "\n}\n"
    return text[: document.root_start] + "{\n" + indent + line + "\n}" + text[document.root_end :]


def _without(document: Document, member: Member) -> str:
    """Cut a member with the comma that parts it from its neighbour."""
    text, members = document.text, document.top_members()
    place = members.index(member)
    if place + 1 < len(members):
        return text[: member.key_start] + text[members[place + 1].key_start :]
    if place > 0:
        return text[: members[place - 1].value_end] + text[member.value_end :]
    return text[: document.root_start] + "{}" + text[document.root_end :]


def _indent(document: Document) -> str:
    members = document.top_members()
    if members:
        before = re.search(r"\n([ \t]+)\Z", document.text[: members[0].key_start])
        if before:
            return before.group(1)
    return "  "


def _written(value: Json, indent: str) -> str:
    """JSON on one line when it is short, else indented as the file is."""
    short = json.dumps(value, ensure_ascii=False)
    if len(short) <= 60 or not isinstance(value, list | dict):
        return short
    unit: str | int = "\t" if "\t" in indent else len(indent)
    return json.dumps(value, ensure_ascii=False, indent=unit).replace("\n", f"\n{indent}")
