"""`moorage`: where the command line begins. What it can do is in `application`, which takes longer to import than most verbs to run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from moorage_contract.postponed import quick_imports

from moorage_host.backend_process import begin_backend
from moorage_host.errors import HostError
from moorage_host.paths import user_paths


def main() -> None:
    """Run the command line; does not return."""
    arguments = sys.argv[1:]
    if starts_machine(arguments):
        with contextlib.suppress(HostError):  # said when the backend is needed
            begin_backend(user_paths())
    with quick_imports():
        from moorage_host.cli import application
    application.run(arguments)


def starts_machine(arguments: Sequence[str]) -> bool:
    """Whether this is `moorage start`, which needs the backend at once."""
    return arguments[:1] == ["start"] and not {"-h", "--help"}.intersection(arguments)
