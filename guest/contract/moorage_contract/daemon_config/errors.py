"""What can be wrong with a daemon.json, and how it is said: every fault has its place in the text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

UNKNOWN = "the following directives don't match any configuration option"
CONFLICT = "the following directives are specified both as a flag and in the configuration file"
MERGED = "merged configuration validation from file and command line flags failed"


class FaultKind(Enum):
    """Decides how dockerd groups faults into sentences."""

    SYNTAX = "syntax"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    VALUE = "value"
    REFUSED = "refused"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `line` and `column` count from 1; both are 0 when the fault came by a flag.

    `message` is a sentence of its own. `detail` is what goes into the shared sentence of its kind: a key for unknown
    ones, `key: (from flag: …, from file: …)` for conflicts.
    """

    kind: FaultKind
    key: str
    line: int
    column: int
    message: str
    detail: str = ""


class ConfigError(ValueError):
    """A configuration that is refused; `faults` holds all of them in the order of the text. `str()` is dockerd's wording."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.line, fault.column)))
        super().__init__(self._wording())

    def _wording(self) -> str:
        """Join faults as dockerd does: one sentence for all unknown keys, one for all conflicts, one each for the rest."""
        syntax = [fault.message for fault in self.faults if fault.kind is FaultKind.SYNTAX]
        if syntax:
            return "\n".join(syntax)
        sentences: list[str] = []
        unknown = [fault.detail for fault in self.faults if fault.kind is FaultKind.UNKNOWN]
        if unknown:
            sentences.append(f"{UNKNOWN}: {', '.join(unknown)}")
        conflicts = [fault.detail for fault in self.faults if fault.kind is FaultKind.CONFLICT]
        if conflicts:
            sentences.append(f"{CONFLICT}: {', '.join(conflicts)}")
        values = [fault.message for fault in self.faults if fault.kind in (FaultKind.VALUE, FaultKind.REFUSED)]
        if values:
            sentences.append(f"{MERGED}: " + "\n".join(values))
        return "\n".join(sentences)


class Mistake(ValueError):
    """A value that its setting cannot take; the text says why. Turned into a Fault where the place is known."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path
