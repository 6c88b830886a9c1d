"""Makes docs/daemon-json.md from the declarations: `python -m moorage_contract.reference [--check] [FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from moorage_contract.daemon_config import RELOADABLE, SETTINGS, Cost, Setting, as_json
from moorage_contract.daemon_config.declaration import Absent
from moorage_contract.daemon_config.pipe import PIPE_REFUSAL

_COSTS = {
    Cost.RELOAD: "reload",
    Cost.RESTART: "restart",
    Cost.CONTAINERS: "containers",
    Cost.VM: "machine",
}

_HEAD = """\
# daemon.json

Generated from `moorage_contract.daemon_config` by `python -m moorage_contract.reference`; edit the declarations, not this page.

The file has the keys of dockerd's own. A key may be in the file or on the daemon's command line, not in both. What a value of
dockerd's full example leaves empty (`""`, `0`, `[]`, `{}`) counts as not given. Unknown keys are refused.

**Cost** is what putting a new value in force interrupts:

- *reload*: nothing; the daemon reads the file again (SIGHUP).
- *restart*: the daemon restarts, containers keep running.
- *containers*: the option is one that live restore relies on; containers that run must be stopped and started to follow it.

"""


def page() -> str:
    """The whole reference as Markdown."""
    lines = [_HEAD, "| key | type | default | cost | flag | |", "|---|---|---|---|---|---|"]
    lines += [_row(found) for found in SETTINGS.values() if found.supported and not found.no_effect]
    lines += ["", "## Accepted without effect", "", "| key | why |", "|---|---|"]
    lines += [f"| `{found.key}` | {_cell(found.no_effect)} |" for found in SETTINGS.values() if found.no_effect]
    lines += [
        "",
        "## Refused",
        "",
        "Any value but the default is refused with this sentence.",
        "",
        "| key | why |",
        "|---|---|",
    ]
    lines += [f"| `{found.key}` | {_cell(found.refusal)} |" for found in SETTINGS.values() if found.refusal]
    lines += ["| `pipe-size`, `log-pipe-size`, `fifo-size`, … | " + _cell(PIPE_REFUSAL) + " |"]
    back = sorted(key for key in RELOADABLE if SETTINGS[key].absent is Absent.DEFAULT)
    lines += ["", "## Keys taken out of the file", ""]
    lines += [f"On reload, {_listed(back)} go back to their defaults when they are no longer in the file."]
    lines += ["Every other key keeps its value until the daemon restarts."]
    return "\n".join(lines) + "\n"


def _row(found: Setting) -> str:
    default = json.dumps(as_json(found.default))
    if found.default in ((), {}, ""):
        default = ""
    key = f"`{found.key}`" + (f" in `{found.section}`" if found.section else "")
    flags = ", ".join(f"`{flag}`" for flag in found.flags)
    shown = f"`{default}`" if default else ""
    return f"| {key} | {_cell(found.kind.name)} | {shown} | {_COSTS[found.cost]} | {flags} | {_cell(found.help)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _listed(keys: Sequence[str]) -> str:
    quoted = [f"`{key}`" for key in keys]
    return ", ".join(quoted[:-1]) + " and " + quoted[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or with --check say by the exit code whether it is up to date."""
    parser = argparse.ArgumentParser(
        prog="python -m moorage_contract.reference", description="write docs/daemon-json.md"
    )
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when the page differs")
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/daemon-json.md"))
    options = parser.parse_args(arguments)
    text = page()
    if not options.check:
        options.file.write_text(text)
        return 0
    if options.file.exists() and options.file.read_text() == text:
        return 0
    sys.stderr.write(f"{options.file} differs from the declarations: run `python -m moorage_contract.reference`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
