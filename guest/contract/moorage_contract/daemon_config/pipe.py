"""The size of a container's log pipe, which is a promise and not a setting."""

from __future__ import annotations

import re

LOG_PIPE_BYTES = 65536

_WORD = re.compile(r"(^|[-_.])(pipe|pipes|logpipe|fifo)([-_.]|$)", re.IGNORECASE)

PIPE_REFUSAL = (
    "the log pipe of a container is fixed at 64 KiB for each stream and cannot be set: a larger one would only move the moment at "
    "which a container blocks while the daemon is away, and its gauge would mean something else on every machine; remove this key"
)


def is_pipe_key(key: str) -> bool:
    """Whether `key` is somebody's attempt at setting the pipe's size: pipe-size, log-pipe-size, fifo-size and the like."""
    return _WORD.search(key) is not None
