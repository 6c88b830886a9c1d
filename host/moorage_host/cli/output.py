"""How the command line speaks: results to stdout, steps and errors to stderr, exit status by kind of error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape

from moorage_host.errors import ErrorCode, HostError

EXIT = {
    ErrorCode.FAILED: 1,
    ErrorCode.INVALID: 2,
    ErrorCode.NOT_FOUND: 4,
    ErrorCode.CONFLICT: 5,
    ErrorCode.UNAVAILABLE: 6,
    ErrorCode.TIMEOUT: 7,
}

stdout = Console(soft_wrap=True, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def steps(first: str) -> Iterator[Callable[[str], None]]:
    """Show each step as it begins: as a spinner on a terminal, as lines elsewhere."""
    if stderr.is_terminal:
        with stderr.status(escape(first)) as status:

            def show(step: str) -> None:
                stderr.print(f"[dim]·[/dim] {escape(step)}")
                status.update(escape(step))

            yield show
    else:
        yield lambda step: stderr.print(escape(step))


def failure(error: HostError) -> int:
    """Tell an error with its hint; the exit status for it."""
    stderr.print(f"[red]moorage:[/red] {escape(error.message)}")
    if error.hint:
        stderr.print(
            f"  try: {escape(error.hint)}"
            if not error.hint.startswith(("see ", "is ", "wait "))
            else f"  {escape(error.hint)}"
        )
    return EXIT[error.code]


def warn(message: str) -> None:
    """Tell something one should know."""
    stderr.print(f"[yellow]warning:[/yellow] {escape(message)}")


def raw(text: str) -> None:
    """Text to stdout as it is, with one newline at its end."""
    if text:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
