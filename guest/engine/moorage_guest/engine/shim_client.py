"""Client of one shim: typed requests, replies and events. What they mean for a container is decided elsewhere."""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

from moorage_guest.engine.channel import REQUEST_DEADLINE, Channel, ChannelClosed, RequestFailed
from moorage_guest.engine.shim_types import (
    Attached,
    AttachedChanged,
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
    ShimStatus,
    Started,
    StreamPipes,
)
from moorage_guest.paths import ExecRoot
from moorage_guest.shim import wire

#: Seconds that the runtime may take to start a process.
RUN_DEADLINE = 120.0

#: Characters of an exec's description that go with the request at most; a pipe must take them at once.
_MAX_PROCESS = 48 * 1024

_FEED = struct.Struct("<BQ")


class Feed:
    """Where the container's output goes for attached clients: datagrams of (stream, offset, bytes). Thread-safe.

    The shim drops what it already has, so repeating is harmless. Offsets count the stream's bytes since the container's start.
    """

    #: Bytes of output in one datagram at most.
    MAX_BYTES = 32 * 1024

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Descriptor to wait on for room (EPOLLOUT)."""
        return self._sock.fileno()

    def send(self, stream: int, offset: int, data: bytes) -> bool:
        """Queue at most MAX_BYTES without blocking. False: the clients are slow, try again once writable.

        Raises ShimGone when the shim has died.
        """
        try:
            self._sock.send(_FEED.pack(stream, offset) + data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ShimGone(f"the container's shim takes no output: {error.strerror}") from None
        return True

    def close(self) -> None:
        """Stop feeding. What was queued still arrives."""
        self._sock.close()


class Shim:
    """One container's shim. Every method raises ShimGone once the shim has died; all but `run` and `exec` answer at once."""

    def __init__(self, exec_root: ExecRoot, container_id: str, sock: socket.socket) -> None:
        self.container_id = container_id
        self.folder = exec_root.shim(container_id)
        self.closed = asyncio.Event()
        self._events: asyncio.Queue[ShimEvent | None] = asyncio.Queue()
        self._channel = Channel(sock, self._event, self._closed)

    @classmethod
    async def connect(cls, exec_root: ExecRoot, container_id: str) -> Self:
        """Connect to the running shim of a container; raises ShimGone when there is none."""
        path = exec_root.shim(container_id) / "shim.sock"
        for _ in range(200):
            try:
                return cls(exec_root, container_id, wire.connect(path))
            except BlockingIOError:  # its backlog is full
                await asyncio.sleep(0.01)
            except OSError as error:
                raise ShimGone(f"no shim answers for container {container_id}: {error.strerror}") from None
        raise ShimError(f"the shim of container {container_id} takes no connection")

    async def run(self, bundle: Path, owner: tuple[int, int] = (0, 0)) -> Started:
        """Start the container of an OCI bundle (a folder with config.json). Only once in a shim's life.

        ``owner`` is the machine's number of the container's root, which gets the pipes of its output.
        Raises OciError with what the runtime said; the shim can then only be shut down.
        """
        reply = await self._ask("run", {"bundle": str(bundle), "owner": list(owner)}, deadline=RUN_DEADLINE)
        return Started(int(reply.body["result"]["pid"]), int(reply.body["result"]["started_ns"]))

    async def status(self) -> ShimStatus:
        """Return what the shim knows now."""
        return _status((await self._ask("status")).body["result"])

    @property
    def events(self) -> AsyncIterator[ShimEvent]:
        """What happened since this connection was made, in order; ends when the shim is gone. For one reader."""
        return self._iterate()

    async def pipes(self) -> Pipes:
        """Return new descriptors of all pipes; works from the moment the shim runs until its shutdown."""
        reply = await self._ask("pipes")
        streams = reply.body["result"]["streams"]
        for number in reply.fds:
            os.set_blocking(number, False)
        return Pipes(
            tuple(StreamPipes(stream, *reply.fds[3 * index : 3 * index + 3]) for index, stream in enumerate(streams)),
            self.folder / "journal",
        )

    async def feed(self) -> Feed:
        """Open the way for output to attached clients. What an earlier daemon fed is delivered first."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            await self._ask("feed", fds=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Feed(ours)

    async def attach(
        self,
        client_socket: socket.socket | int,
        *,
        prefix: bytes = b"",
        stdin: bool = True,
        stdout: bool = True,
        stderr: bool = True,
        multiplexed: bool = True,
        detach_keys: bytes = b"",
        start_offsets: Mapping[int, int] | None = None,
        hold: bool = False,
        head: bytes = b"",
    ) -> Attached:
        """Give a client to the shim, which serves it from now on (the descriptor is duplicated: close yours).

        `prefix` is what the client already sent after its request. Output below `start_offsets` (by stream) is
        not shown. Works before `run`, too.

        With `hold` nothing at all is passed on until `attach_from` is told the number returned here and where the client's
        output begins: begin to feed in between, so that nothing falls between. `head` is written to the client before anything
        else; one that is held leaves the shim as it came, without a word, when this connection ends before `attach_from`.
        """
        params = {
            "stdin": stdin, "stdout": stdout, "stderr": stderr, "multiplexed": multiplexed,
            "detach_keys": detach_keys.hex(), "start": {str(key): value for key, value in (start_offsets or {}).items()},
            "hold": hold, "head": head.decode("latin-1"),
        }  # fmt: skip
        number = client_socket if isinstance(client_socket, int) else client_socket.fileno()
        result = (await self._ask("attach", params, blob=prefix, fds=[number])).body["result"]
        held = result.get("held")
        return Attached(None if held is None else int(held), bool(result.get("greets")))

    async def attach_from(self, held: int, start_offsets: Mapping[int, int]) -> None:
        """Let a client that was attached with `hold` have the output from these offsets on."""
        await self._ask("attach_from", {"held": held, "start": {str(key): at for key, at in start_offsets.items()}})

    async def finish_output(self, offsets: Mapping[int, int], *, spill: int | None = None) -> None:
        """Say that the container's output is complete: `offsets` are the lengths of its streams.

        Each attached client is closed once it has got everything up to there; with empty `offsets`, after what has been fed.
        `spill` is an open file with what has not been fed because clients are slow (duplicated; the caller closes its own).
        """
        params = {"offsets": {str(key): value for key, value in offsets.items()}}
        await self._ask("finish_output", params, fds=[] if spill is None else [spill])

    async def ready_exec(self, exec_id: str, *, tty: bool, open_stdin: bool) -> bool:
        """Have the runtime loaded for an exec that is about to come; after some seconds without, that is undone.

        False when it is not: the shim is an older one, busy, or has another runtime.
        """
        try:
            await self._ask("ready_exec", {"exec_id": exec_id, "tty": tty, "open_stdin": open_stdin})
        except ShimError:
            return False
        return True

    async def exec(self, request: ExecRequest) -> Started:
        """Start a process in the container. Raises OciError with what the runtime said; the client's connection is then left to the caller."""
        process = json.dumps(dict(request.process))
        params: dict[str, Any] = {
            "exec_id": request.exec_id, "tty": request.tty, "open_stdin": request.open_stdin,
            "stdout": request.stdout, "stderr": request.stderr, "multiplexed": request.multiplexed,
            "detach_keys": request.detach_keys.hex(), "capture": request.capture,
        }  # fmt: skip
        if request.ready and len(process) <= _MAX_PROCESS:
            params["process"] = process
        else:
            file = self.folder / f"exec-{request.exec_id}.json"
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(process)
        fds = [] if request.client is None else [request.client]
        reply = await self._ask("exec", params, blob=request.prefix, fds=fds, deadline=RUN_DEADLINE)
        return Started(int(reply.body["result"]["pid"]), int(reply.body["result"]["started_ns"]))

    async def exec_output(self, exec_id: str) -> bytes:
        """Return what was captured of an exec's output (stdout and stderr mixed) so far."""
        return (await self._ask("exec_output", {"exec_id": exec_id})).blob

    async def forget_exec(self, exec_id: str) -> None:
        """Drop the record of an exec that has ended; returns quietly when it is unknown."""
        await self._ask("forget_exec", {"exec_id": exec_id})

    async def resize(self, exec_id: str | None, rows: int, columns: int) -> None:
        """Set the terminal's size; before `run` it is remembered. Raises ShimError when there is no terminal."""
        await self._ask("resize", {"exec_id": exec_id, "rows": rows, "columns": columns})

    async def signal(self, exec_id: str | None, number: int) -> None:
        """Send a signal to the first process of the container or exec. Raises ShimError when it has ended."""
        await self._ask("signal", {"exec_id": exec_id, "number": number})

    async def close_stdin(self) -> None:
        """Close the container's standard input after what was already sent. Idempotent."""
        await self._ask("close_stdin")

    async def pause(self) -> None:
        """Freeze the container. Raises OciError."""
        await self._ask("pause")

    async def resume(self) -> None:
        """Thaw the container. Raises OciError."""
        await self._ask("resume")

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Change limits; `resources` is the OCI `linux.resources` object. Raises OciError."""
        await self._ask("update", {"resources": dict(resources)})

    async def shutdown(self, force: bool = False) -> None:
        """Delete the container at the runtime, remove the shim's folder and end the shim.

        Raises ShimError while the container runs, unless `force`: then it is killed. Returns when the shim is gone;
        quietly when it already was.
        """
        with contextlib.suppress(ShimGone):
            await self._ask("shutdown", {"force": force}, deadline=RUN_DEADLINE)
        self._channel.close()

    def close(self) -> None:
        """Leave the shim alone; it goes on without us. Idempotent."""
        self._channel.close()

    async def _ask(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        blob: bytes = b"",
        fds: list[int] | None = None,
        deadline: float = REQUEST_DEADLINE,
    ) -> wire.Message:
        try:
            return await self._channel.request(method, params, blob=blob, fds=fds or [], deadline=deadline)
        except ChannelClosed:
            raise ShimGone(f"the shim of container {self.container_id} is gone") from None
        except TimeoutError:
            raise ShimError(
                f"the shim of container {self.container_id} did not answer {method} in {deadline:.0f} s"
            ) from None
        except RequestFailed as error:
            match error.code:
                case "not_found":
                    raise OciError(str(error), "not_found") from None
                case "not_executable":
                    raise OciError(str(error), "not_executable") from None
                case "runtime":
                    raise OciError(str(error)) from None
            raise ShimError(str(error)) from None

    def _closed(self) -> None:
        self.closed.set()
        self._events.put_nowait(None)

    async def _iterate(self) -> AsyncIterator[ShimEvent]:
        while (event := await self._events.get()) is not None:
            yield event
        self._events.put_nowait(None)

    def _event(self, message: wire.Message) -> None:
        body = message.body
        match body.get("event"):
            case "exited":
                self._events.put_nowait(ContainerExited(int(body["code"]), int(body["at_ns"]), bool(body["oom"])))
            case "exec_started":
                self._events.put_nowait(ExecStarted(str(body["exec_id"]), int(body["pid"])))
            case "exec_exited":
                self._events.put_nowait(ExecExited(str(body["exec_id"]), int(body["code"]), int(body["at_ns"])))
            case "detached":
                self._events.put_nowait(Detached(body["exec_id"]))
            case "attached":
                self._events.put_nowait(AttachedChanged(int(body["count"])))


def _status(body: Mapping[str, Any]) -> ShimStatus:
    ended = body["exit"]
    return ShimStatus(
        protocol=int(body["protocol"]),
        container_id=str(body["container_id"]),
        shim_pid=int(body["shim_pid"]),
        pid=int(body["pid"]),
        started_ns=int(body["started_ns"]),
        exit=None if ended is None else ExitRecord(int(ended["code"]), int(ended["at_ns"]), bool(ended["oom"])),
        paused=bool(body["paused"]),
        execs={item["exec_id"]: ExecStatus(**item) for item in body["execs"]},
        tty=bool(body["tty"]),
        open_stdin=bool(body["open_stdin"]),
        stdin_open=bool(body["stdin_open"]),
        attached=int(body["attached"]),
        size=(int(body["size"][0]), int(body["size"][1])),
    )
