"""The program in the desktop's menu, and started with the session: files where the XDG rules have them, for Linux desktops."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

CHOICES = ("menu", "autostart", "off")
_ACCENT, _MARK = "#0b6e8f", "none"
_ENTRY = """\
[Desktop Entry]
Type=Application
Name=Moorage
Comment=Linux containers in a small virtual machine
Exec={command}
Icon=moorage
Terminal=false
Categories=Development;System;
StartupWMClass=moorage
"""


@dataclass(frozen=True)
class Places:
    """The three files, by the user's XDG folders."""

    menu: Path
    autostart: Path
    icon: Path


def places(environ: Mapping[str, str]) -> Places:
    """Where the files go. Touches nothing."""
    home = Path(environ.get("HOME") or Path.home())

    def folder(variable: str, otherwise: str) -> Path:
        value = environ.get(variable, "")
        return Path(value) if value.startswith("/") else home / otherwise

    data, config = folder("XDG_DATA_HOME", ".local/share"), folder("XDG_CONFIG_HOME", ".config")
    return Places(
        data / "applications/moorage.desktop",
        config / "autostart/moorage.desktop",
        data / "icons/hicolor/scalable/apps/moorage.svg",
    )


def enter(choice: str, program: Path, environ: Mapping[str, str]) -> str:
    """Write or remove the files; a sentence on what is so now. Idempotent; OSError when a folder is not the user's.

    `menu` is the entry alone, `autostart` has the tray icon come with the session too, `off` is neither.
    """
    found = places(environ)
    wanted = {found.menu: f"{quoted(program)} --page containers", found.autostart: quoted(program)}
    if choice != "autostart":
        del wanted[found.autostart]
    if choice == "off":
        wanted.clear()
    for path in (found.menu, found.autostart, found.icon):
        if path not in wanted and not (path == found.icon and wanted):
            path.unlink(missing_ok=True)
    for path, command in wanted.items():
        _write(path, _ENTRY.format(command=command))
    if wanted:
        drawing = (resources.files("moorage_gui.icons") / "moorage.svg").read_text(encoding="utf-8")
        _write(found.icon, drawing.replace("currentColor", _ACCENT).replace("markColor", _MARK))
    return {
        "menu": "Moorage is in the desktop's menu.",
        "autostart": "Moorage is in the desktop's menu, and its tray icon comes with the session.",
        "off": "Moorage is neither in the desktop's menu nor started with the session.",
    }[choice]


def quoted(program: Path) -> str:
    """A program's path as the key Exec wants it: quoted, and quoted once more as every value is."""
    once = re.sub(r'(["`$\\])', r"\\\1", str(program)).replace("%", "%%")
    return f'"{once}"'.replace("\\", "\\\\")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
