"""Agent and shims as the engine sees them: every name that other parts of moored use, in one place."""

from moorage_guest.engine.agent_client import Agent, LastingStream
from moorage_guest.engine.shim_client import Feed, Shim
from moorage_guest.engine.shim_types import (
    Attached,
    AttachedChanged,
    ClientGone,
    ContainerExited,
    Detached,
    ExecExited,
    ExecRequest,
    ExecStarted,
    ExecStatus,
    ExitRecord,
    OciError,
    Pipes,
    ShimError,
    ShimEvent,
    ShimGone,
    ShimRequest,
    ShimStatus,
    Started,
    StreamPipes,
)

__all__ = [
    "Agent", "Attached", "AttachedChanged", "ClientGone", "ContainerExited", "Detached", "ExecExited", "ExecRequest",
    "ExecStarted", "ExecStatus", "ExitRecord", "Feed", "LastingStream", "OciError", "Pipes", "Shim", "ShimError", "ShimEvent",
    "ShimGone", "ShimRequest", "ShimStatus", "Started", "StreamPipes",
]  # fmt: skip
