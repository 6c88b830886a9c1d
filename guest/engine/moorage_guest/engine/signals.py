"""Signal names and numbers as the API takes them."""

import signal

from moorage_guest.errors import InvalidParameter

_RTMIN, _RTMAX = 34, 64

_NUMBERS: dict[str, int] = {
    each.name.removeprefix("SIG"): each.value for each in signal.Signals if not each.name.startswith("SIGRT")
}
_NUMBERS |= {"CLD": signal.SIGCHLD.value, "POLL": signal.SIGIO.value, "IOT": signal.SIGABRT.value, "STKFLT": 16}
_NUMBERS |= {"RTMIN": _RTMIN, "RTMAX": _RTMAX}
_NUMBERS |= {f"RTMIN+{n}": _RTMIN + n for n in range(1, 16)} | {f"RTMAX-{n}": _RTMAX - n for n in range(1, 15)}


def parse_signal(text: str) -> int:
    """Return the number of ``TERM``, ``SIGTERM``, ``15`` or ``RTMIN+3``. Raises InvalidParameter."""
    name = text.strip().upper()
    if name.isdigit() and name.isascii():
        number = int(name)
        if 0 < number <= _RTMAX:
            return number
    elif (known := _NUMBERS.get(name.removeprefix("SIG"))) is not None:
        return known
    raise InvalidParameter(f"invalid signal: {text}")
