"""The agent's lines in the boot's list of steps, on the console that init names in the environment."""

import contextlib
import os

#: Where init tells the agent of its boot about the console.
VARIABLE = "MOORAGE_CONSOLE"


def tell(step: str) -> None:
    """Write one line; quiet where there is no console, or no boot to tell of."""
    path = os.environ.get(VARIABLE, "")
    if path:
        with contextlib.suppress(OSError), open(path, "w") as console, open("/proc/uptime") as uptime:
            console.write(f"moorage: boot [{uptime.read().split()[0]}] {step}\n")


def close() -> None:
    """The list is complete: whoever takes over later has no boot to tell of."""
    os.environ.pop(VARIABLE, None)
