"""Times and durations as clients write them in parameters."""

import re
import time
from datetime import datetime

from moorage_guest.errors import InvalidParameter

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def parse_time_ns(text: str) -> int:
    """Read a time: unix seconds with a fraction, RFC 3339, or a duration like 1h30m before now. Raises InvalidParameter."""
    if match := re.fullmatch(r"(-?\d+)(?:\.(\d{1,9}))?", text):
        return int(match[1]) * 10**9 + int((match[2] or "").ljust(9, "0"))
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return time.time_ns() - int(sum(float(number) * _UNITS[unit] for number, unit in parts))
    try:
        moment = datetime.fromisoformat(text)
        return int(moment.timestamp() * 10**9)
    except (ValueError, OverflowError):
        raise InvalidParameter(f"failed to parse value as time or duration: {text}") from None
