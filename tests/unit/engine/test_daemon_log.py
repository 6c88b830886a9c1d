"""The daemon's own log: one line an entry, whatever is said, in each of its forms."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from moorage_contract.daemon_config import DaemonConfig
from moorage_guest import daemonlog

log = logging.getLogger("moorage_guest.somewhere")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_and_json_hold_any_message_on_one_line() -> None:
    for form in ("text", "json"):
        out = io.StringIO()
        daemonlog.set_up(DaemonConfig(log_format=form), out)
        log.warning('it said "no"\nand left')
        log.debug("not shown")
        [line] = out.getvalue().splitlines()
        if form == "json":
            entry = json.loads(line)
            assert (entry["level"], entry["msg"]) == ("warning", 'it said "no"\nand left')
        else:
            assert line.endswith('level=warning msg="it said \\"no\\"\\nand left" module=moorage_guest.somewhere')


def test_terminal_gets_colours_unless_raw_logs_are_asked_for() -> None:
    for raw in (False, True):
        out = _Terminal()
        daemonlog.set_up(DaemonConfig(debug=True, raw_logs=raw), out)
        log.debug("a word")
        assert out.getvalue().startswith("\x1b[37mDEBU\x1b") is not raw


def test_traceback_stands_below_its_line() -> None:
    out = io.StringIO()
    daemonlog.set_up(DaemonConfig(), out)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it failed")
    assert out.getvalue().splitlines()[-1] == "ValueError: why"
