"""What putting a new daemon.json in force would interrupt, known before anybody does it; and the live-restore fingerprint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from moorage_contract.daemon_config.declaration import Absent, Cost, Setting
from moorage_contract.daemon_config.document import Json
from moorage_contract.daemon_config.model import SETTINGS, DaemonConfig
from moorage_contract.daemon_config.reading import parse


@dataclass(frozen=True)
class Change:
    """One key whose value differs. `old` and `new` are what is in force before and after, defaults included."""

    key: str
    old: Json
    new: Json
    cost: Cost
    sentence: str


@dataclass(frozen=True)
class Plan:
    """All changes and the one mode that puts them all in force. With no change, `changes` is empty and the mode is RELOAD."""

    changes: tuple[Change, ...]
    mode: Cost
    sentence: str

    @property
    def restarts_daemon(self) -> bool:
        """Whether a reload does not suffice."""
        return self.mode is not Cost.RELOAD

    @property
    def apply_mode(self) -> str:
        """The `mode` of the agent's config.apply: "reload" or "restart"."""
        return "restart" if self.restarts_daemon else "reload"


_SENTENCES = {
    Cost.RELOAD: "reloaded into the running daemon, nothing stops",
    Cost.RESTART: "the daemon restarts, containers keep running",
    Cost.CONTAINERS: "part of what live restore relies on: the daemon restarts, and containers that run now must be stopped and started to follow",
    Cost.VM: "the machine restarts",
}
_OVERALL = {
    Cost.RELOAD: "The daemon reloads its configuration; nothing stops.",
    Cost.RESTART: "The daemon restarts; containers keep running.",
    Cost.CONTAINERS: "The daemon restarts. Running containers go on as they are and may have to be stopped by hand.",
    Cost.VM: "The machine restarts, and with it every container.",
}


def plan(old_text: str, new_text: str) -> Plan:
    """Compare two daemon.json. Raises ConfigError when the new one is refused; an old one that is refused counts as empty."""
    new = parse(new_text)
    old = _lenient(old_text)
    changes = [change for found in SETTINGS.values() if (change := _change(found, old, new)) is not None]
    mode = max((change.cost for change in changes), key=lambda cost: cost.weight, default=Cost.RELOAD)
    # on its way out the daemon goes by the old setting, on its way in by the new one
    if mode in (Cost.RESTART, Cost.CONTAINERS) and not (old.live_restore and new.live_restore):
        sentence = "The daemon restarts. Live restore is off, so running containers stop."
    else:
        sentence = _OVERALL[mode] if changes else "Nothing changes."
    return Plan(tuple(changes), mode, sentence)


def fingerprint(config: DaemonConfig) -> dict[str, Json]:
    """The options that live restore relies on, as JSON by key. Containers started under another fingerprint may not be restored."""
    return {found.key: as_json(getattr(config, found.attribute)) for found in SETTINGS.values() if found.restore}


def as_json(value: Any) -> Json:
    """A setting's typed value as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: as_json(item) for key, item in asdict(value).items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is no value of a setting")


def _lenient(text: str) -> DaemonConfig:
    try:
        return parse(text)
    except ValueError:
        return DaemonConfig()


def _change(found: Setting, old: DaemonConfig, new: DaemonConfig) -> Change | None:
    before, after = as_json(getattr(old, found.attribute)), as_json(getattr(new, found.attribute))
    if before == after:
        return None
    cost, sentence = found.cost, _SENTENCES[found.cost]
    if found.no_effect:
        cost, sentence = Cost.RELOAD, f"no effect: {found.no_effect}"
    elif cost is Cost.RELOAD and found.absent is Absent.KEEP and found.key not in new.given:
        cost, sentence = (
            Cost.RESTART,
            "a key taken out of the file keeps its value on reload: the daemon restarts, containers keep running",
        )
    return Change(found.key, before, after, cost, sentence)
