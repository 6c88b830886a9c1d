"""The daemon's command line, made from the declarations: `--key value`, or the singular for keys that are lists."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moorage_contract.daemon_config.declaration import Setting
from moorage_contract.daemon_config.document import Json
from moorage_contract.daemon_config.errors import Mistake
from moorage_contract.daemon_config.kinds import Kind, Switch
from moorage_contract.daemon_config.model import SETTINGS

_PREFIX = "daemon_config:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` a flag for every setting. Make the parser with `allow_abbrev=False`, as dockerd knows no abbreviations."""
    group = parser.add_argument_group(
        "settings", "the same as in daemon.json; a setting may be in one of the two places only"
    )
    for found in SETTINGS.values():
        if not found.flags:
            continue
        text = argparse.SUPPRESS if found.hidden else found.help.replace("%", "%%")
        options: dict[str, Any] = {"dest": _PREFIX + found.key, "default": None, "help": text}
        if isinstance(found.kind, Switch):
            group.add_argument(*found.flags, type=_reader(found.kind), nargs="?", const=True, metavar="BOOL", **options)
        elif found.kind.repeatable:
            group.add_argument(*found.flags, action="append", metavar=_metavar(found), **options)
        else:
            group.add_argument(*found.flags, type=_reader(found.kind), metavar=_metavar(found), **options)


def flags_from_namespace(namespace: argparse.Namespace) -> dict[str, object]:
    """The flags that were given, by key of daemon.json, as JSON values for `parse(text, flags=…)`.

    Raises argparse.ArgumentTypeError for a repeated flag that cannot be read; give its text to `parser.error`.
    """
    found: dict[str, object] = {}
    for name, value in vars(namespace).items():
        if not name.startswith(_PREFIX) or value is None:
            continue
        key = name.removeprefix(_PREFIX)
        found[key] = _collected(SETTINGS[key], value) if SETTINGS[key].kind.repeatable else value
    return found


def to_arguments(flags: Mapping[str, object]) -> list[str]:
    """The command line that says `flags` again, for switches and plain values and lists of texts."""
    words: list[str] = []
    for key, value in flags.items():
        flag = SETTINGS[key].flags[0]
        items = value if isinstance(value, list | tuple) else [value]
        words += [f"{flag}={str(item).lower() if isinstance(item, bool) else item}" for item in items]
    return words


def _collected(found: Setting, texts: Sequence[str]) -> Json:
    try:
        return found.kind.collect(texts)
    except Mistake as mistake:
        raise argparse.ArgumentTypeError(f'invalid argument for "{found.flags[0]}" flag: {mistake}') from None


def _reader(kind: Kind[Any]) -> Callable[[str], Json]:
    def read(text: str) -> Json:
        try:
            return kind.read_flag(text)
        except Mistake as mistake:
            raise argparse.ArgumentTypeError(str(mistake)) from None

    return read


def _metavar(found: Setting) -> str:
    return found.flags[0].removeprefix("--").rpartition("-")[2].upper()
