"""Times of log records: nanoseconds since the epoch as text and back."""

import calendar
import re
import time

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def _seconds_text(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def short_text(time_ns: int) -> str:
    """RFC 3339 in UTC, fraction without trailing zeros, as in json-file logs."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{_seconds_text(seconds)}{fraction}Z"


def fixed_text(time_ns: int) -> str:
    """RFC 3339 in UTC, always nine digits, as `docker logs --timestamps` prints."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{_seconds_text(seconds)}.{nanoseconds:09d}Z"


def parse(text: str) -> int:
    """Return nanoseconds since the epoch of an RFC 3339 text. Raises ValueError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not a time: {text!r}")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    seconds = calendar.timegm((int(year), int(month), int(day), int(hour), int(minute), int(second), 0, 0, 0))
    if zone not in ("Z", "z"):
        offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))
