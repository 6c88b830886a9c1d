"""The host's copy of daemon.json: edited whether or not the engine is up, applied through the agent, never left broken.

`daemon.json` is what was last in force, `daemon.json.pending` what was saved while the engine was down,
`daemon.json.rejected` what the engine would not take when it came up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from moorage_contract import agent
from moorage_contract.daemon_config import ConfigError, plan

from moorage_host.api import ConfigChange, ConfigFault, EngineConfigApplied, EngineConfigCheck, EngineConfigText
from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder, write_atomically

EMPTY = "{}\n"


class Guest(Protocol):
    """What is needed of the running guest."""

    async def config_text(self) -> str: ...

    async def config_apply(self, content: str, mode: str) -> agent.ConfigApplied: ...


class EngineConfig:
    """daemon.json of one user. `path` is the file last in force."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending = path.with_name(path.name + ".pending")
        self._rejected = path.with_name(path.name + ".rejected")

    def get(self) -> EngineConfigText:
        """What the user should see: the pending text if there is one, else the one in force."""
        pending = _read(self._pending)
        return EngineConfigText(
            content=pending if pending is not None else self.in_force(), pending=pending is not None
        )

    def in_force(self) -> str:
        """The text last known to be in force."""
        text = _read(self._path)
        return EMPTY if text is None else text

    @property
    def pending(self) -> bool:
        return self._pending.exists()

    def check(self, content: str) -> EngineConfigCheck:
        """The faults of `content`, or what applying it would change and cost. Touches nothing."""
        try:
            found = plan(self.in_force(), content)
        except ConfigError as error:
            faults = [
                ConfigFault(message=fault.message, key=fault.key, line=fault.line, column=fault.column)
                for fault in error.faults
            ]
            return EngineConfigCheck(ok=False, faults=faults, sentence=str(error))
        changes = [
            ConfigChange(
                key=change.key, old=change.old, new=change.new, cost=change.cost.value, sentence=change.sentence
            )
            for change in found.changes
        ]
        return EngineConfigCheck(ok=True, changes=changes, mode=found.apply_mode, sentence=found.sentence)

    def save(self, content: str) -> EngineConfigApplied:
        """Keep `content` for the engine's next start. A text with faults is refused, and nothing changes."""
        found = self.check(content)
        if not found.ok:
            return EngineConfigApplied(ok=False, message=found.sentence)
        private_folder(self._path.parent)
        write_atomically(self._pending, content)
        return EngineConfigApplied(
            ok=True, pending=True, mode=found.mode, message="Saved; it takes effect when the engine starts."
        )

    async def apply(self, content: str, guest: Guest) -> EngineConfigApplied:
        """Put `content` in force in the running engine, by reload when that suffices. A refusal leaves the old file in force."""
        found = self.check(content)
        if not found.ok:
            return EngineConfigApplied(ok=False, message=found.sentence)
        answer = await guest.config_apply(content, found.mode)
        if answer.ok:
            private_folder(self._path.parent)
            write_atomically(self._path, content)
            self._pending.unlink(missing_ok=True)
            self._rejected.unlink(missing_ok=True)
        return EngineConfigApplied(
            ok=answer.ok,
            message=answer.message or ("" if answer.ok else "the daemon refused the file"),
            rolled_back=answer.rolled_back,
            mode=found.mode,
        )

    async def reconcile(self, guest: Guest) -> str:
        """Called when the guest has come up: apply what is pending, or learn what is in force there.

        A sentence when the guest refused it, or the host's copy cannot be read: the guest's own file is in force then.
        """
        inside = await guest.config_text()
        try:
            wanted, known = _read(self._pending), self.in_force()
        except HostError as error:
            return f"the engine runs with the daemon.json that it has inside: {error}"
        if wanted is None and _blank(inside) and not _blank(known):
            wanted = known  # a new machine: the settings outlive the disk
        if wanted is None or wanted == inside:
            self._pending.unlink(missing_ok=True)
            if inside != known:
                private_folder(self._path.parent)
                write_atomically(self._path, inside)
            return ""
        answer = await guest.config_apply(wanted, "restart")
        self._pending.unlink(missing_ok=True)
        if answer.ok:
            write_atomically(self._path, wanted)
            return ""
        write_atomically(self._rejected, wanted)
        write_atomically(self._path, inside)
        return f"the engine refused the changed daemon.json ({answer.message}); the previous one is in force, yours is kept in {self._rejected}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(
            f"{path} cannot be read: {error}", hint="make it readable, or remove it", code=ErrorCode.INVALID
        ) from error


def _blank(text: str) -> bool:
    try:
        return not json.loads(text or "{}")
    except ValueError:
        return False
