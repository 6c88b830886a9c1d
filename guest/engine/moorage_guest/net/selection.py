"""Filters of list and prune requests for networks and volumes, with dockerd's meaning and texts."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from moorage_guest.errors import InvalidParameter

_TRUE = ("1", "true", "True", "TRUE", "t", "T")
_FALSE = ("0", "false", "False", "FALSE", "f", "F")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


class Selection:
    """Says of one property at a time whether an object is wanted. Unknown filters are refused at construction."""

    def __init__(self, filters: Mapping[str, list[str]], known: Iterable[str]) -> None:
        allowed = set(known)
        for name in filters:
            if name not in allowed:
                raise InvalidParameter(f"invalid filter '{name}'")
        for name in ("dangling", "all"):  # faults are told even where there is nothing to choose from
            if wanted := filters.get(name):
                _boolean(name, wanted)
        self._filters = filters

    def exact(self, name: str, value: str, known: Iterable[str] | None = None) -> bool:
        """Whether no value was asked for or this one was."""
        wanted = self._filters.get(name)
        if not wanted:
            return True
        if known is not None:
            for text in wanted:
                if text not in known:
                    raise InvalidParameter(f"invalid filter: '{name}'='{text}'")
        return value in wanted

    def part(self, name: str, value: str) -> bool:
        """Whether no value was asked for or one of them is part of this, or matches it as an expression."""
        wanted = self._filters.get(name)
        return not wanted or any(_matches(text, value) for text in wanted)

    def truth(self, name: str, value: bool) -> bool:
        """Whether no truth was asked for or this one was."""
        wanted = self._filters.get(name)
        if not wanted:
            return True
        return value == _boolean(name, wanted)

    def labels(self, labels: Mapping[str, str]) -> bool:
        """Whether all labels asked for are there, and none of those excluded."""
        return all(_has(labels, text) for text in self._filters.get("label", ())) and not any(
            _has(labels, text) for text in self._filters.get("label!", ())
        )


def _boolean(name: str, values: list[str]) -> bool:
    if all(text in _TRUE for text in values):
        return True
    if all(text in _FALSE for text in values):
        return False
    raise InvalidParameter(f"invalid filter '{name}={values}'")


def _matches(text: str, value: str) -> bool:
    if text in value:
        return True
    # An expression from outside must not keep the daemon busy: what could backtrack without end is taken as plain text.
    if "(" in text or sum(text.count(sign) for sign in "*+{") > 2:
        return False
    try:
        return re.search(text, value) is not None
    except re.error:
        return False


def _has(labels: Mapping[str, str], text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in labels and (not equals or labels[name] == value)


def duration_seconds(text: str) -> float | None:
    """Parse a duration as Go writes it, "1h30m"; None when it is none."""
    if not text or _DURATION.sub("", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def parse_time(text: str) -> float:
    """Return seconds since the epoch for a Unix time, a date, or a duration before now."""
    span = duration_seconds(text)
    if span is not None:
        return time.time() - span
    try:
        return float(text)
    except ValueError:
        pass
    try:
        # Python reads microseconds at most; nanoseconds are cut.
        stamp = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text))
    except ValueError:
        raise InvalidParameter(f'parsing time "{text}" as "2006-01-02": cannot parse "{text}" as "2006"') from None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()


def created_before(filters: Mapping[str, list[str]]) -> Callable[[str], bool] | None:
    """Return a test for the ``until`` filter, or None without one."""
    wanted = filters.get("until")
    if not wanted:
        return None
    if len(wanted) > 1:
        raise InvalidParameter("more than one until filter specified")
    limit = parse_time(wanted[0])
    return lambda created: parse_time(created) < limit
