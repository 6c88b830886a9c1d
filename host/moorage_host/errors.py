"""Errors of the host side: what failed, on what, and what to try. The CLI turns `code` into an exit status."""

from __future__ import annotations

from enum import Enum


class ErrorCode(Enum):
    """What kind of failure it was, for programs. The value crosses the control API."""

    INVALID = "invalid"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    FAILED = "failed"


class HostError(Exception):
    """Something the user can read and act on. `hint` says what to try, when there is something to try."""

    def __init__(self, message: str, *, hint: str = "", code: ErrorCode = ErrorCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
