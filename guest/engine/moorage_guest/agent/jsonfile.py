"""Small records of the agent on disk."""

import json
from pathlib import Path
from typing import Any

from moorage_guest.shim import kernel


def write_json(path: Path, record: Any) -> None:
    """Replace a file (0600) as a whole; nothing is synced."""
    kernel.replace_small(str(path), json.dumps(record).encode())
