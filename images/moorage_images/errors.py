"""Errors of the image builder: what failed, on what, and what to try."""


class ImageError(Exception):
    """A build step failed. `hint` says what to try, when there is something to try."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message} ({self.hint})" if self.hint else message
