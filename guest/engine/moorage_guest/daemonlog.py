"""The daemon's own log on standard error, in the three forms that dockerd's has: logfmt, JSON, and coloured on a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from moorage_contract.daemon_config import DaemonConfig

LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}

#: What a line calls its level: dockerd's words, which people grep for.
_LEVEL_NAMES = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "fatal"}
_COLOURS = {10: 37, 20: 36, 30: 33, 40: 31, 50: 31}


def _level(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelno, record.levelname.lower())


class _Formatter(logging.Formatter):
    """What the forms have in common: the time, and a traceback below the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and below it the traceback where there is one."""
        line = self.line(record, datetime.fromtimestamp(record.created, UTC))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def line(self, record: logging.LogRecord, when: datetime) -> str:
        """Return one line without its end."""
        level = _level(record)
        quoted = json.dumps(record.getMessage(), ensure_ascii=False)
        moment = when.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        return f'time="{moment}Z" level={level} msg={quoted} module={record.name}'


class _Json(_Formatter):
    def line(self, record: logging.LogRecord, when: datetime) -> str:
        """Return an object."""
        text = {"level": _level(record), "module": record.name, "msg": record.getMessage()}
        return json.dumps({**text, "time": when.isoformat(timespec="microseconds").replace("+00:00", "Z")})


class _Coloured(_Formatter):
    def line(self, record: logging.LogRecord, when: datetime) -> str:
        """Return a line for eyes."""
        colour = _COLOURS.get(record.levelno, _COLOURS[20])
        moment = when.isoformat(timespec="microseconds")
        return f"\x1b[{colour}m{_level(record).upper()[:4]}\x1b[0m[{moment}] {record.getMessage()}"


def set_up(config: DaemonConfig, stream: TextIO | None = None) -> None:
    """Let everything be logged as the configuration says, to standard error unless told otherwise."""
    out = stream or sys.stderr
    level = logging.DEBUG if config.debug else LEVELS[config.log_level]
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(out)
    if config.log_format == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(_Coloured() if out.isatty() and not config.raw_logs else _Formatter())
    for number, name in _LEVEL_NAMES.items():
        logging.addLevelName(number, name)
    root.addHandler(handler)
    root.setLevel(level)
    for noisy in ("asyncio", "aiohttp"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
