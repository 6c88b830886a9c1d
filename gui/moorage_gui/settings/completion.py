"""Offers the keys of daemon.json, each with its help, while one is being typed. Made from the declarations of the contract."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from moorage_contract.daemon_config import SECTIONS, SETTINGS, Cost, Setting, as_json
from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QCompleter, QListView

_COSTS = {
    Cost.RELOAD: "A change is reloaded, nothing stops.",
    Cost.RESTART: "A change restarts the daemon, containers keep running.",
    Cost.CONTAINERS: "A change restarts the daemon; containers must be stopped and started to follow it.",
    Cost.VM: "A change restarts the machine.",
}
KEY_ROLE = int(Qt.ItemDataRole.UserRole)
_TYPING_A_KEY = re.compile(r'(?:^|[{,])\s*"(?P<key>[a-z0-9-]*)$')


def typed_key(before: str) -> str | None:
    """The part of a key that stands before the caret on its line; None where no key is being typed."""
    match = _TYPING_A_KEY.search(before)
    return match.group("key") if match else None


def sample(found: Setting) -> str:
    """A value to begin with: what is not the default for switches, else the default or something empty of the right type."""
    value = as_json(found.default)
    return json.dumps(not value if isinstance(value, bool) else value)


def offered() -> Iterator[tuple[str, str, str]]:
    """Key, help and sample of everything that is worth setting, by key."""
    for key in sorted({*SETTINGS, *SECTIONS}):
        if key in SECTIONS:
            yield key, "HTTP proxies of the daemon.", "{}"
        elif SETTINGS[key].supported and not SETTINGS[key].no_effect and not SETTINGS[key].section:
            yield key, SETTINGS[key].help, sample(SETTINGS[key])


def help_for(key: str) -> str:
    """What a key is for and what changing it interrupts; empty for a key that nobody declares."""
    found = SETTINGS.get(key)
    if found is None:
        return "HTTP proxies of the daemon." if key in SECTIONS else ""
    if found.refusal or found.no_effect:
        return f"{found.help} {'Refused' if found.refusal else 'No effect'}: {found.refusal or found.no_effect}."
    return f"{found.help} {_COSTS[found.cost]}"


class KeyCompleter(QCompleter):
    """Completes on the key; what is shown is the key with its help. `chosen` says which key was picked."""

    chosen = Signal(str)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._samples = {key: value for key, _, value in offered()}
        model = QStandardItemModel(self)
        width = max(len(key) for key in self._samples) + 2
        for key, help, _ in offered():
            item = QStandardItem(f"{key.ljust(width)}{help}")
            item.setData(key, KEY_ROLE)
            item.setToolTip(help)
            model.appendRow(item)
        self.setModel(model)
        self.setCompletionRole(KEY_ROLE)
        self.setFilterMode(Qt.MatchFlag.MatchContains)
        self.setCompletionMode(QCompleter.CompletionMode.PopupCompletion)
        self.setMaxVisibleItems(9)
        self.list = QListView()
        self.list.setUniformItemSizes(True)
        self.setPopup(self.list)
        self.activated.connect(self._picked)

    def _picked(self, text: str) -> None:
        """Qt hands over what stands in the completion role, the key."""
        self.chosen.emit(text)

    def sample_for(self, key: str) -> str:
        """The value that is put in with a key."""
        return self._samples.get(key, '""')
