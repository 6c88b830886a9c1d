"""Version numbers of the engine and its API, and the rule for upgrading in place.

Who fetches, verifies and switches engines is not decided here; see the agent's `engine.upgrade`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

ENGINE_VERSION = "26.11.0"
API_VERSION = "1.51"
MIN_API_VERSION = "1.24"

_ENGINE = re.compile(r"(\d{1,4})\.(\d{1,2})\.(\d{1,6})", re.ASCII)


class VersionError(ValueError):
    """A text that is no engine version."""


@dataclass(frozen=True, order=True)
class EngineVersion:
    """YY.MM.patch, ordered by number: 26.8.3 is older than 26.11.0 and equal to 26.08.3."""

    year: int
    month: int
    patch: int

    @property
    def release(self) -> tuple[int, int]:
        """The YY.MM inside of which containers are kept across an upgrade."""
        return (self.year, self.month)

    def __str__(self) -> str:
        return f"{self.year}.{self.month}.{self.patch}"


@dataclass(frozen=True)
class Verdict:
    """Whether an upgrade may go ahead, and the sentence to show either way."""

    allowed: bool
    reason: str


def parse(text: str) -> EngineVersion:
    """Read `YY.MM.patch`; raise VersionError for anything else, also for a month that is none."""
    match = _ENGINE.fullmatch(text.strip())
    if match is None:
        raise VersionError(f"{text!r} is no engine version: expected YY.MM.patch, such as {ENGINE_VERSION}")
    year, month, patch = (int(part) for part in match.groups())
    if not 1 <= month <= 12:
        raise VersionError(f"{text!r} is no engine version: its second number is a month, from 1 to 12")
    return EngineVersion(year, month, patch)


def compare(left: str, right: str) -> int:
    """-1, 0 or 1 as `left` is older than, equal to or newer than `right`."""
    first, second = parse(left), parse(right)
    return (first > second) - (first < second)


def upgrade_allowed(old: str, new: str, running: Sequence[str]) -> Verdict:
    """Say whether the engine `old` may be replaced by `new` while the containers `running` (names) run.

    Inside one YY.MM, in either direction, always; to another YY.MM only while no container runs. Raises VersionError when
    either text is no version.
    """
    before, after = parse(old), parse(new)
    if before == after:
        return Verdict(
            True, f"engine {after} is the one that runs; it is put in place again and containers keep running"
        )
    verb = "upgrade" if after > before else "rollback"
    if before.release == after.release:
        return Verdict(
            True, f"{verb} from {before} to {after} stays within {after.year}.{after.month}: containers keep running"
        )
    if not running:
        return Verdict(
            True,
            f"{verb} from {before} to {after} leaves {before.year}.{before.month}; no container runs, nothing is at stake",
        )
    names = ", ".join(running)
    return Verdict(
        False,
        f"{verb} from {before} to {after} leaves {before.year}.{before.month}, and live restore keeps containers only within one YY.MM; "
        f"stop these first: {names}",
    )
