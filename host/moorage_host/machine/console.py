"""The guest's serial console log: bytes that came, lines that were said."""

from __future__ import annotations

from pathlib import Path

SSHD_STARTS = b"sshd starts"
HELD = b"] held"


def size(path: Path) -> int:
    """Bytes on the console since the machine started; 0 when there are none yet."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def said(path: Path, words: bytes) -> bool:
    """Whether `words` came over the console."""
    try:
        return words in path.read_bytes()
    except OSError:
        return False


def text(path: Path) -> str:
    """All of it; nothing when there is none."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def tail(path: Path, lines: int) -> str:
    """The last `lines` lines, carriage returns and control sequences of the firmware out."""
    clean = "".join(letter for letter in text(path) if letter == "\n" or letter == "\t" or letter.isprintable())
    return "\n".join(clean.splitlines()[-lines:])
