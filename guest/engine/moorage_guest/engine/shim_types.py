"""What moored, agent and shims tell each other, as values; the conversation itself is in `shim_client` and `agent_client`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moorage_guest.errors import EngineError


class ShimError(EngineError):
    """An agent or a shim cannot do what was asked, or cannot be reached; the text says which and why."""


class ShimGone(ShimError):
    """The shim of this container does not run (any more)."""


class ClientGone(Exception):
    """The client of a lasting stream has closed its connection."""


class OciError(ShimError):
    """The OCI runtime refused; the message is its own. `exit_code` is what dockerd then gives the container."""

    def __init__(self, message: str, kind: Literal["not_found", "not_executable", "other"] = "other") -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def exit_code(self) -> int:
        return {"not_found": 127, "not_executable": 126}.get(self.kind, 128)


@dataclass(frozen=True)
class ShimRequest:
    """What a shim has to know when it is forked. `runtime` is an absolute path or a name in $PATH."""

    container_id: str
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    runtime: str = "crun"
    runtime_args: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    """Shown by the agent while moored is away: `name` (the container's), `stop_signal`."""
    spill_bytes: int = 0
    """Bytes of each stream that the shim keeps in a file below `spill_folder` instead of letting the container wait; not for a tty."""
    spill_folder: Path | None = None


@dataclass(frozen=True)
class Started:
    """A process that runs: its pid in moored's pid namespace, and when it was started (Unix time, ns)."""

    pid: int
    started_ns: int


@dataclass(frozen=True)
class ExitRecord:
    """How a container ended: 128 + n when signal n ended it; `at_ns` is Unix time in ns."""

    exit_code: int
    at_ns: int
    oom: bool = False


@dataclass(frozen=True)
class ExecStatus:
    """One exec session. `exit_code` is None while it runs. `attached` says whether a client is connected to it."""

    exec_id: str
    pid: int
    running: bool
    exit_code: int | None
    started_ns: int
    at_ns: int
    tty: bool
    attached: bool


@dataclass(frozen=True)
class ShimStatus:
    """Everything a daemon that comes back has to know. `pid` is 0 before `run`."""

    protocol: int
    container_id: str
    shim_pid: int
    pid: int
    started_ns: int
    exit: ExitRecord | None
    paused: bool
    execs: Mapping[str, ExecStatus]
    tty: bool
    open_stdin: bool
    stdin_open: bool
    attached: int
    """Clients that want output: while it is not 0, everything the container writes has to be fed."""
    size: tuple[int, int]
    """Rows and columns of the terminal, (0, 0) when never set."""

    @property
    def running(self) -> bool:
        return self.pid > 0 and self.exit is None


@dataclass(frozen=True)
class Attached:
    """A client that was given to a shim. `held` is its number for `attach_from`, None when it is served at once.

    `greets` says whether the shim writes the head to it; one that was started by an earlier engine does not.
    """

    held: int | None
    greets: bool


@dataclass(frozen=True)
class StreamPipes:
    """Pipe A (read end: the container writes, moored moves on) and pipe B (both ends). Stream 1 is stdout, 2 stderr.

    A's read end reports end of file once every process that had the write end is gone.
    """

    stream: int
    a_read: int
    b_read: int
    b_write: int


@dataclass(frozen=True)
class Pipes:
    """All streams of a container (a tty container has only stream 1). Non-blocking descriptors; the receiver closes them."""

    streams: tuple[StreamPipes, ...]
    journal: Path


@dataclass(frozen=True)
class ExecRequest:
    """A process to start in a running container. `process` is the OCI process object.

    `ready`: `Shim.ready_exec` has been told of it before.
    `client` is the descriptor of the client's socket (duplicated; the caller still closes its own) or None: then output is
    thrown away, but for the first `capture` bytes, which `Shim.exec_output` returns.
    """

    exec_id: str
    process: Mapping[str, Any]
    tty: bool = False
    open_stdin: bool = False
    client: int | None = None
    prefix: bytes = b""
    stdout: bool = True
    stderr: bool = True
    multiplexed: bool = True
    detach_keys: bytes = b""
    capture: int = 0
    ready: bool = False


@dataclass(frozen=True)
class ContainerExited:
    """The container's first process ended; what it wrote last may still be in the pipes."""

    exit_code: int
    at_ns: int
    oom: bool


@dataclass(frozen=True)
class ExecStarted:
    """An exec session's process began, and who had asked for it was gone."""

    exec_id: str
    pid: int


@dataclass(frozen=True)
class ExecExited:
    """An exec session's process ended."""

    exec_id: str
    code: int
    at_ns: int


@dataclass(frozen=True)
class Detached:
    """A client used its detach keys. `exec_id` is None for a client attached to the container itself."""

    exec_id: str | None


@dataclass(frozen=True)
class AttachedChanged:
    """The number of clients that want output changed; feed all output while it is not 0."""

    count: int


ShimEvent = ContainerExited | ExecStarted | ExecExited | Detached | AttachedChanged
