"""What goes wrong between the engine and a client that builds. Both are EngineErrors: their text is for the user."""

import enum
from collections.abc import Sequence

from moorage_guest.buildkit.messages import AnyMessage
from moorage_guest.errors import EngineError


class Code(enum.IntEnum):
    """gRPC's codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class GrpcError(EngineError):
    """A call that was answered with an error, or is to be. ``details`` go with it in ``grpc-status-details-bin``."""

    def __init__(self, code: int, text: str, details: Sequence[AnyMessage] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.details = tuple(details)


class PeerGone(EngineError):
    """The other side has closed its connection, or broken the protocol so that ours was closed (503)."""

    status = 503
