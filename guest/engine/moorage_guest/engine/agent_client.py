"""Client of the agent: spawn shims and netd, take over the API's listening socket, keep lasting streams.

Lives in moored. When the agent dies, this reconnects to the next one and hands it what it had been keeping.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from moorage_guest.api.kept import Kept
from moorage_guest.engine.channel import Channel, ChannelClosed, RequestFailed
from moorage_guest.engine.shim_client import Shim
from moorage_guest.engine.shim_types import ClientGone, ExitRecord, ShimError, ShimRequest
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.shim import wire

log = logging.getLogger(__name__)

#: Seconds to wait for an agent to be back, or to come up.
AGENT_DEADLINE = 60.0

#: Bytes of one lasting stream that may be under way to the agent; then `send` waits.
WINDOW = 256 * 1024


@dataclass
class _Unconfirmed:
    number: int
    resume: dict[str, Any]
    data: bytes


class LastingStream:
    """An answer that outlives this daemon: the agent writes to the client and remembers how to go on."""

    def __init__(self, agent: "Agent", key: int, sock: int, progress: int, resume: dict[str, Any]) -> None:
        self._agent = agent
        self.key = key
        self.client = sock
        self.progress = progress
        self.resume = resume
        self.closed = asyncio.Event()
        self.numbers = itertools.count(1)
        self.unconfirmed: deque[_Unconfirmed] = deque()
        self.unconfirmed_bytes = 0
        self.room = asyncio.Event()
        self.room.set()
        self.ending = False

    async def send(self, data: bytes, resume: dict[str, Any]) -> None:
        """Have `data` written to the client; once it is, a later daemon goes on from `resume`.

        Waits while too much is under way. Raises ClientGone when the client has left. Data and record belong together: a
        daemon killed at any instant has sent both or neither. At most 64 KiB, anything longer raises ValueError.
        """
        if len(data) > wire.MAX_BLOB:
            raise ValueError(f"{len(data)} bytes in one piece of a lasting stream; at most {wire.MAX_BLOB}")
        while not self.room.is_set() and not self.closed.is_set():
            await self.room.wait()
        if self.closed.is_set():
            raise ClientGone("the client has closed its connection")
        item = _Unconfirmed(next(self.numbers), resume, data)
        self.resume = resume
        self.unconfirmed.append(item)
        self.unconfirmed_bytes += len(data)
        if self.unconfirmed_bytes >= WINDOW:
            self.room.clear()
        self._agent.post_stream(self, item)

    async def close(self) -> None:
        """End the answer: the client's connection is closed after all that was sent. Idempotent."""
        if self.ending or self.closed.is_set():
            return
        self.ending = True
        self._agent.post_close(self)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGENT_DEADLINE):
                await self.closed.wait()

    def confirm(self, number: int) -> None:
        """The agent has written everything up to datagram `number` to the client."""
        while self.unconfirmed and self.unconfirmed[0].number <= number:
            self.unconfirmed_bytes -= len(self.unconfirmed.popleft().data)
        if self.unconfirmed_bytes < WINDOW:
            self.room.set()

    def gone(self) -> None:
        """The client has left, or the answer is complete."""
        if not self.closed.is_set():
            wire.close_all([self.client, self.progress])
            self.unconfirmed.clear()
            self.closed.set()
            self.room.set()


@dataclass
class Agent:
    """The connection to the agent of one exec root."""

    exec_root: ExecRoot
    data_root: DataRoot
    start_if_missing: bool
    role: str
    supervised: bool = False
    _channel: Channel | None = None
    _connected: asyncio.Event = field(default_factory=asyncio.Event)
    _listener: int | None = None
    _was_ready: bool = False
    _streams: dict[int, LastingStream] = field(default_factory=dict)
    _inherited: list[tuple[dict[str, Any], LastingStream]] = field(default_factory=list)
    _keys: "itertools.count[int]" = field(default_factory=itertools.count)
    _held: dict[int, tuple[socket.socket, Kept]] = field(default_factory=dict)
    _found: list[tuple[socket.socket, Kept]] = field(default_factory=list)
    _reconnecting: "asyncio.Task[None] | None" = None
    _closed: bool = False

    @classmethod
    async def connect(
        cls, exec_root: ExecRoot, *, data_root: DataRoot, start_if_missing: bool = True, role: str = "moored"
    ) -> Self:
        """Connect to the agent under `exec_root`; when none answers and `start_if_missing`, start a private one.

        With another `role` than the daemon's, a supervising agent gives shims and nothing else.

        Raises ShimError when there is none or it does not come up.
        """
        agent = cls(exec_root, data_root, start_if_missing, role)
        await agent._open()
        return agent

    async def listener(self) -> socket.socket | None:
        """Return docker.sock's listening socket (non-blocking, the caller's) when supervised, else None."""
        if not self.supervised:
            return None
        if self._listener is None:
            reply = await self._ask("listener", {})
            self._listener = reply.fds[0] if reply.fds else None
            wire.close_all(reply.fds[1:])
        if self._listener is None:
            return None
        sock = socket.socket(fileno=os.dup(self._listener))
        sock.setblocking(False)
        return sock

    async def ready(self) -> None:
        """Tell the supervisor that the API answers. Idempotent; does nothing when run by hand."""
        self._was_ready = True
        await self._ask("ready", {})

    async def spawn_shim(self, request: ShimRequest) -> Shim:
        """Fork a shim for a container and connect to it.

        Raises ShimError when the container has one already (connect to it, or shut it down first).
        """
        await self._ask(
            "spawn_shim",
            {
                "container_id": request.container_id, "tty": request.tty, "open_stdin": request.open_stdin,
                "stdin_once": request.stdin_once, "runtime": request.runtime,
                "runtime_args": list(request.runtime_args), "labels": dict(request.labels),
                "spill_bytes": request.spill_bytes, "spill_folder": str(request.spill_folder or ""),
            },
        )  # fmt: skip
        return await Shim.connect(self.exec_root, request.container_id)

    async def shim_ids(self) -> list[str]:
        """Return the containers whose shims run, also those of daemons before us."""
        return [str(item) for item in (await self._ask("shims", {})).body["result"]["running"]]

    async def dead_shims(self) -> list[str]:
        """Return the containers whose shims died without being shut down; `bury` them."""
        return [str(item) for item in (await self._ask("shims", {})).body["result"]["dead"]]

    async def bury(self, container_id: str) -> ExitRecord:
        """Remove what is left of a container whose shim died, and return how it ended (137 when it was killed for that).

        Raises ShimError while the shim runs.
        """
        result = (await self._ask("bury", {"container_id": container_id})).body["result"]
        return ExitRecord(int(result["code"]), int(result["at_ns"]), bool(result["oom"]))

    async def spawn_netd(self) -> Path:
        """Fork netd off the agent (`moorage_guest.net.netd.main.main`) and return the path of its socket.

        A netd that runs already is left alone. Returns once the socket exists.
        """
        return Path(str((await self._ask("spawn_netd", {})).body["result"]["path"]))

    async def open_lasting(
        self, client_socket: socket.socket, resume: dict[str, Any], *, held: int | None = None
    ) -> LastingStream | None:
        """Give a client's connection to the agent; None when run by hand: then serve the client yourself.

        A connection that was `held` under that key is so no longer from the same moment on.
        The socket is duplicated: close yours. `resume` must be JSON and hold all that a later daemon needs.
        """
        if not self.supervised:
            return None
        client = os.dup(client_socket.fileno())
        progress = os.memfd_create("moorage-stream", os.MFD_CLOEXEC)
        os.ftruncate(progress, 16)
        stream = LastingStream(self, self._new_key(), client, progress, resume)
        self._streams[stream.key] = stream
        try:
            await self._ask("stream_open", {"key": stream.key, "resume": resume, "held": held}, fds=[client, progress])
        except BaseException:
            self._streams.pop(stream.key, None)
            stream.gone()
            raise
        return stream

    async def lasting(self) -> list[tuple[dict[str, Any], LastingStream]]:
        """Return the open streams that an earlier daemon left, each with its last resume record. Gives them once."""
        result, self._inherited = self._inherited, []
        return result

    def hold(self, client: socket.socket) -> Kept | None:
        """Have the agent hold a client's connection open for the next daemon; None when nothing can be kept for it."""
        try:
            kept = Kept.fresh(self._new_key())
        except OSError as error:  # no descriptors, no memory: the client is served all the same
            log.warning("a client's requests will not outlive this daemon: %s", error)
            return None
        self._held[kept.key] = (client, kept)
        self._post_held(client, kept)
        return kept

    def release(self, kept: Kept) -> None:
        """Have the agent let a connection go, without shutting it. Idempotent."""
        if self._held.pop(kept.key, None) is not None and self._channel is not None:
            with contextlib.suppress(ChannelClosed):
                self._channel.post({"method": "client_release", "key": kept.key})

    def forget(self, kept: Kept) -> None:
        """A connection has been closed, or is left to the next daemon: the agent sees which."""
        self._held.pop(kept.key, None)

    def held(self) -> list[tuple[socket.socket, Kept]]:
        """Return the connections that the daemon before us had, with what it had not answered. Gives them once."""
        result, self._found = self._found, []
        return result

    async def close(self) -> None:
        """Disconnect; shims, netd and lasting streams go on. Idempotent."""
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reconnecting
        if self._channel is not None:
            self._channel.close()
        for stream in list(self._streams.values()):
            stream.gone()
        self._streams.clear()
        if self._listener is not None:
            os.close(self._listener)
            self._listener = None

    # -- lasting streams ----------------------------------------------------------------------------------------------

    def post_stream(self, stream: LastingStream, item: _Unconfirmed) -> None:
        """Send one datagram of a stream; while the agent is away it is kept and sent to the next one."""
        if self._channel is not None and self._connected.is_set():
            body = {"method": "stream_data", "key": stream.key, "number": item.number, "resume": item.resume}
            with contextlib.suppress(ChannelClosed):
                self._channel.post(body, blob=item.data)

    def post_close(self, stream: LastingStream) -> None:
        """Ask for the end of a stream."""
        if self._channel is not None and self._connected.is_set():
            with contextlib.suppress(ChannelClosed):
                self._channel.post({"method": "stream_close", "key": stream.key})

    def _post_held(self, client: socket.socket, kept: Kept) -> None:
        if self._channel is not None:  # else the next agent gets it
            with contextlib.suppress(ChannelClosed, OSError):
                self._channel.post({"method": "client_hold", "key": kept.key}, fds=[client.fileno(), kept.memory])

    def _new_key(self) -> int:
        while (key := next(self._keys)) in self._streams or key in self._held:
            pass
        return key

    # -- connection ---------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, params: dict[str, Any], *, fds: list[int] | None = None) -> wire.Message:
        for last in (False, True):
            try:
                async with asyncio.timeout(AGENT_DEADLINE):
                    await self._connected.wait()
                if self._channel is None:
                    raise ChannelClosed
                return await self._channel.request(method, params, fds=fds or [])
            except TimeoutError:
                raise ShimError(f"the agent did not answer {method}; see its log (agent.log)") from None
            except RequestFailed as error:
                raise ShimError(str(error)) from None
            except ChannelClosed:
                if last or self._closed:
                    raise ShimError(f"the agent ended while it was asked to {method}") from None
        raise AssertionError("unreachable")

    async def _open(self) -> None:
        deadline = asyncio.get_running_loop().time() + AGENT_DEADLINE
        path = self.exec_root.supervise_sock
        while True:
            try:
                sock = wire.connect(path)
                break
            except (ConnectionRefusedError, FileNotFoundError) as error:
                if self.start_if_missing and not self.supervised:
                    await self._start_private()
                elif not self.supervised:
                    raise ShimError(f"no agent answers at {path}: {error.strerror}; start moored first") from None
            except BlockingIOError:
                pass
            if asyncio.get_running_loop().time() > deadline:
                raise ShimError(f"no agent answers at {path} within {AGENT_DEADLINE:.0f} s")
            await asyncio.sleep(0.02)
        channel = Channel(sock, self._event, self._lost)
        try:
            hello = await channel.request("hello", {"role": self.role, "listener": self._listener is not None, "ready": self._was_ready},
                                          fds=[] if self._listener is None else [self._listener])  # fmt: skip
            self.supervised = bool(hello.body["result"]["supervised"])
            wire.close_all(hello.fds)
            if self._streams:
                await self._hand_back(channel)
            else:
                await self._take_over(channel, hello.body["result"]["streams"])
            await self._take_clients(channel, hello.body["result"].get("clients", []))
        except (ChannelClosed, RequestFailed, TimeoutError) as error:
            channel.close()
            raise ShimError(f"the agent at {path} does not take this daemon: {error}") from None
        self._channel = channel
        self._connected.set()
        for stream in list(self._streams.values()):
            if stream.ending:
                self.post_close(stream)

    async def _take_over(self, channel: Channel, keys: list[int]) -> None:
        for key in keys:
            reply = await channel.request("stream_take", {"key": key})
            result = reply.body["result"]
            if len(reply.fds) != 2:
                wire.close_all(reply.fds)
                continue
            stream = LastingStream(self, key, reply.fds[0], reply.fds[1], result["resume"])
            stream.numbers = itertools.count(int(result["number"]) + 1)
            self._streams[key] = stream
            self._inherited.append((stream.resume, stream))

    async def _take_clients(self, channel: Channel, keys: list[int]) -> None:
        """Have the agent hold what we have, and take what it holds of the daemon before us."""
        for client, kept in list(self._held.values()):
            if client.fileno() >= 0:
                channel.post({"method": "client_hold", "key": kept.key}, fds=[client.fileno(), kept.memory])
        for key in keys:
            if key in self._held:
                continue
            try:
                reply = await channel.request("client_take", {"key": key})
            except RequestFailed:
                continue  # it has left meanwhile
            if len(reply.fds) != 2:
                wire.close_all(reply.fds)
                continue
            client = socket.socket(fileno=reply.fds[0])
            client.setblocking(False)
            kept = Kept(key, reply.fds[1])
            self._held[key] = (client, kept)
            self._found.append((client, kept))

    async def _hand_back(self, channel: Channel) -> None:
        for stream in list(self._streams.values()):
            await channel.request(
                "stream_open", {"key": stream.key, "resume": stream.resume}, fds=[stream.client, stream.progress]
            )
            for item in stream.unconfirmed:
                body = {"method": "stream_data", "key": stream.key, "number": item.number, "resume": item.resume}
                channel.post(body, blob=item.data)

    async def _start_private(self) -> None:
        argv = [
            sys.executable, "-m", "moorage_guest.agent.main", "--private",
            "--data-root", str(self.data_root.root), "--exec-root", str(self.exec_root.root),
        ]  # fmt: skip
        self.exec_root.root.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(AGENT_DEADLINE):
                answer = await process.stdout.readline()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ShimError(f"the agent did not start within {AGENT_DEADLINE:.0f} s") from None
        status = await process.wait()
        if answer.strip() != b"ready":
            raise ShimError(f"the agent ended with status {status} at start; see the messages above")

    def _lost(self) -> None:
        self._connected.clear()
        self._channel = None
        if not self._closed and self._reconnecting is None:
            self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        log.warning("the agent is gone: waiting for the next one")
        try:
            while not self._closed:
                try:
                    await self._open()
                    return
                except ShimError as error:
                    log.warning("no agent yet: %s", error)
                    await asyncio.sleep(0.2)
        finally:
            self._reconnecting = None

    def _event(self, message: wire.Message) -> None:
        wire.close_all(message.fds)
        body = message.body
        stream = self._streams.get(int(body.get("key", -1)))
        if stream is None:
            return
        match body.get("event"):
            case "stream_written":
                stream.confirm(int(body["number"]))
            case "stream_gone":
                self._streams.pop(stream.key, None)
                stream.gone()
