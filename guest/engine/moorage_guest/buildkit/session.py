"""Sessions: what a client offers while it builds, called over the connection that it has opened for that.

Which files go over the wire, and how, is `filesync`'s.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.buildkit import filesync
from moorage_guest.buildkit.errors import Code, GrpcError, PeerGone
from moorage_guest.buildkit.grpc import Channel, ClientStream
from moorage_guest.buildkit.http2 import Connection
from moorage_guest.buildkit.keeping import Keeper, KeptTree
from moorage_guest.buildkit.session_messages import (
    BytesMessage,
    CheckAgentRequest,
    CheckAgentResponse,
    CredentialsRequest,
    CredentialsResponse,
    GetSecretRequest,
    GetSecretResponse,
    HealthCheckRequest,
    HealthCheckResponse,
)
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.registry import Credentials

log = logging.getLogger(__name__)

#: Headers of the request that opens a session.
ID, NAME, SHARED_KEY, METHOD = (
    f"X-Docker-Expose-Session-{each}" for each in ("Uuid", "Name", "Sharedkey", "Grpc-Method")
)

#: Seconds that a build waits for its session to be opened.
WAIT = 5.0

#: Seconds between two questions whether the client is well, and that it has for an answer; after two without one it is given up.
_HEALTH_INTERVAL = 5.0
_HEALTH_DEADLINE = 15.0

#: Seconds that a client has for an answer: it may ask its user for a passphrase.
_DEADLINE = 120.0

#: Bytes of one secret at most, as BuildKit has it.
MAX_SECRET = 500 << 10

#: Connections to an agent at once.
_MAX_AGENTS = 64

_PIECE = 32 << 10

_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
_CHECK_AGENT = "/moby.sshforward.v1.SSH/CheckAgent"
_FORWARD_AGENT = "/moby.sshforward.v1.SSH/ForwardAgent"
_PULL = "/moby.upload.v1.Upload/Pull"
_HEALTH = "/grpc.health.v1.Health/Check"

#: What clients call Docker Hub when they look for its login.
_HUB = "registry-1.docker.io"


@contextlib.contextmanager
def _blamed_on_client() -> Iterator[None]:
    """Say as a build's error what goes wrong with its client."""
    try:
        yield
    except (GrpcError, PeerGone) as error:
        raise InvalidParameter(str(error)) from error


@dataclass(eq=False)
class ClientSession:
    """What one client offers. Methods raise InvalidParameter when the client says no, or is gone."""

    id: str
    name: str
    shared_key: str
    channel: Channel
    tmp: Path
    """Where files that do not fit into memory are kept."""
    keeper: Keeper
    methods: frozenset[str] = frozenset()
    """Paths of what it offers, in lower case."""

    @property
    def closed(self) -> asyncio.Event:
        """Set when the client has gone."""
        return self.channel.connection.closed

    def offers(self, path: str) -> bool:
        """Whether the client has said that it answers a method."""
        return path.lower() in self.methods

    # -- files --------------------------------------------------------------------------------------------------------

    async def local(
        self,
        name: str,
        *,
        follow: Sequence[str] = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> ContextTree:
        """Return the files of a folder that the client calls ``name``, owned by root; to be closed by the caller.

        ``follow`` are paths to be sent alone, with what links in them lead to; ``include`` and ``exclude`` are patterns.
        ``progress`` is told the bytes that have come.
        """
        if not self.offers(filesync.FILES):
            raise InvalidParameter("no local sources enabled")
        metadata = filesync.options(name, follow=follow, include=include, exclude=exclude)
        key = (self.shared_key, name, tuple(follow))
        before = self.keeper.take(key) if self.shared_key else None
        tree = KeptTree(self.tmp, on_close=functools.partial(self.keeper.put, key))
        try:
            with _blamed_on_client():
                async with self.channel.stream(filesync.FILES, metadata) as stream:
                    await filesync.Receiver(stream, tree, progress, before).run()
        except BaseException:
            tree.close()
            raise
        finally:
            if before is not None:
                before.close()
        if self.shared_key:
            tree.complete()
        return tree

    async def upload(self, path: str) -> AsyncIterator[bytes]:
        """Yield what the client has under the address http://buildkit-session/``path``."""
        with _blamed_on_client():
            metadata = [("urlpath", f"/{path.lstrip('/')}"), ("urlhost", "buildkit-session")]
            async with self.channel.stream(_PULL, metadata) as stream:
                while (message := await stream.receive(BytesMessage)) is not None:
                    yield message.data

    async def send_tar(
        self, exporter: str, pieces: AsyncIterator[bytes], metadata: Iterable[tuple[str, str]] = ()
    ) -> int:
        """Send a file as the client's output ``exporter``; return its bytes. ``metadata`` is told to the client."""
        sent = 0
        with _blamed_on_client():
            async with self._output(exporter, metadata) as stream:
                async for piece in pieces:
                    for start in range(0, len(piece), _PIECE):
                        await stream.send(BytesMessage(bytes(piece[start : start + _PIECE])))
                    sent += len(piece)
                await stream.finish()
                await stream.receive(BytesMessage)
        return sent

    async def send_files(self, exporter: str, root: Path, progress: Callable[[int], None] | None = None) -> int:
        """Send what is in a folder as the client's output ``exporter``; return the bytes. ``progress`` is told those so far."""
        with _blamed_on_client():
            async with self._output(exporter, ()) as stream:
                return await filesync.Sender(stream, root, progress).run()

    @contextlib.asynccontextmanager
    async def _output(self, exporter: str, metadata: Iterable[tuple[str, str]]) -> AsyncIterator[ClientStream]:
        if not self.offers(filesync.OUTPUT):
            raise InvalidParameter(f"method {filesync.OUTPUT} not supported by the client")
        head = [("buildkit-attachable-exporter-id", exporter)] if exporter else []
        head += [(f"exporter-md-{key}", value) for key, value in metadata]
        async with self.channel.stream(filesync.OUTPUT, head) as stream:
            yield stream

    # -- secrets ------------------------------------------------------------------------------------------------------

    async def secret(self, name: str) -> bytes | None:
        """Return a secret; None when the client has none of that name."""
        if not self.offers(_SECRET):
            return None
        with _blamed_on_client():
            try:
                answer = await self.channel.unary(_SECRET, GetSecretRequest(name), GetSecretResponse, timeout=_DEADLINE)
            except GrpcError as error:
                if error.code in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
                    return None
                raise
        if len(answer.data) > MAX_SECRET:
            raise InvalidParameter(f"secret {name} is larger than {MAX_SECRET} bytes")
        return answer.data

    async def credentials(self, host: str) -> Credentials:
        """Return the login for a registry; one that says nothing when there is none."""
        if not self.offers(_CREDENTIALS):
            return Credentials()
        asked = _HUB if host in ("docker.io", "index.docker.io") else host
        with _blamed_on_client():
            try:
                answer = await self.channel.unary(
                    _CREDENTIALS, CredentialsRequest(asked), CredentialsResponse, timeout=_DEADLINE
                )
            except GrpcError as error:
                if error.code in (Code.NOT_FOUND, Code.UNIMPLEMENTED):
                    return Credentials()
                raise
        if not answer.username:
            return Credentials(identity_token=answer.secret, server=host)
        return Credentials(answer.username, answer.secret, server=host)

    # -- agents -------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def ssh(self, name: str, path: Path, uid: int, gid: int, mode: int) -> AsyncIterator[None]:
        """Listen at ``path`` within the block and hand each connection on to the client's SSH agent of that name."""
        name = name or "default"
        missing = InvalidParameter(
            f"unset ssh forward key {name}: start the build with --ssh {name}, and an agent (ssh-agent) or a key for it"
        )
        if not self.offers(_CHECK_AGENT):
            raise missing
        with _blamed_on_client():
            try:
                await self.channel.unary(_CHECK_AGENT, CheckAgentRequest(name), CheckAgentResponse, timeout=_DEADLINE)
            except GrpcError as error:
                if error.code == Code.UNIMPLEMENTED:
                    raise missing from None
                raise
        listener = _listen(path, uid, gid, mode)
        accepting = asyncio.ensure_future(self._accept(listener, name))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            listener.close()
            path.unlink(missing_ok=True)

    async def _accept(self, listener: socket.socket, name: str) -> None:
        """Serve connections until cancelled; those that are open end, too."""
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(_MAX_AGENTS)
        async with asyncio.TaskGroup() as group:
            while True:
                await room.acquire()
                connection, _ = await loop.sock_accept(listener)
                group.create_task(self._forward(connection, name)).add_done_callback(lambda _done: room.release())

    async def _forward(self, connection: socket.socket, name: str) -> None:
        loop = asyncio.get_running_loop()

        async def to_client(stream: ClientStream) -> None:
            while data := await loop.sock_recv(connection, _PIECE):
                await stream.send(BytesMessage(data))
            await stream.finish()

        with connection:
            connection.setblocking(False)
            try:
                async with self.channel.stream(_FORWARD_AGENT, [("buildkit.ssh.id", name)]) as stream:
                    sending = asyncio.ensure_future(to_client(stream))
                    try:
                        while (message := await stream.receive(BytesMessage)) is not None:
                            await loop.sock_sendall(connection, message.data)
                    finally:
                        sending.cancel()
                        await asyncio.gather(sending, return_exceptions=True)
            except (GrpcError, PeerGone, OSError) as error:
                log.debug("a connection to the SSH agent %s of a client ends: %s", name, error)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Return when the client has gone, or no longer says that it is well."""
        failures = 0
        while not self.closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEALTH_INTERVAL):
                    await self.closed.wait()
                    return
            try:
                await self.channel.unary(_HEALTH, HealthCheckRequest(), HealthCheckResponse, timeout=_HEALTH_DEADLINE)
                failures = 0
            except GrpcError as error:
                failures = 0 if error.code == Code.UNIMPLEMENTED else failures + 1
            except PeerGone:
                return
            if failures == 2:
                log.warning("session %s is given up: its client does not answer", self.id)
                return


def _listen(path: Path, uid: int, gid: int, mode: int) -> socket.socket:
    """Return a listening socket with this owner and mode; longer paths than a socket's address can hold are taken."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.chown(path.name, uid, gid, dir_fd=folder, follow_symlinks=False)
        os.chmod(path.name, mode, dir_fd=folder)
        listener.listen(_MAX_AGENTS)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


@dataclass
class Sessions:
    """All sessions, by id. ``tmp`` is where files of clients are kept that do not fit into memory."""

    tmp: Path
    keeper: Keeper = field(default_factory=Keeper)
    _open: dict[str, ClientSession] = field(default_factory=dict)
    _waiting: dict[str, set["asyncio.Future[ClientSession]"]] = field(default_factory=dict)

    def check(self, session_id: str, upgrade: str) -> None:
        """Raise InvalidParameter, in dockerd's words, when such a session cannot be opened."""
        if session_id in self._open:
            raise InvalidParameter(f"session {session_id} already exists")
        check_upgrade(upgrade)

    async def serve(
        self,
        connection: socket.socket,
        prefix: bytes,
        *,
        session_id: str,
        name: str,
        shared_key: str,
        methods: Iterable[str],
    ) -> None:
        """Hold a session open until its client goes. Owns the socket, which is non-blocking."""
        opened = await Connection.open(connection, prefix, client=True)
        offered = frozenset(each.lower() for each in methods)
        session = ClientSession(session_id, name, shared_key, Channel(opened), self.tmp, self.keeper, offered)
        self._open[session_id] = session
        for waiting in self._waiting.pop(session_id, ()):
            if not waiting.done():
                waiting.set_result(session)
        try:
            await session.watch()
        finally:
            if self._open.get(session_id) is session:
                del self._open[session_id]
            opened.close()

    async def get(self, session_id: str, wait: float = WAIT) -> ClientSession:
        """Return a session, waiting so many seconds for it to be opened. Raises InvalidParameter."""
        session_id = re.sub(
            r"^[^:]*:(?=.)", "", session_id
        )  # what stands before tells builds with several sessions apart
        session = self._open.get(session_id)
        if session is not None and not session.closed.is_set():
            return session
        waiting: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(session_id, set()).add(waiting)
        try:
            async with asyncio.timeout(wait):
                return await waiting
        except TimeoutError:
            raise InvalidParameter(f"no active session for {session_id}: context deadline exceeded") from None
        finally:
            others = self._waiting.get(session_id, set())
            others.discard(waiting)
            if not others:
                self._waiting.pop(session_id, None)


def check_upgrade(protocol: str) -> None:
    """Raise InvalidParameter, in dockerd's words, unless a request asks for HTTP/2."""
    if not protocol:
        raise InvalidParameter("no upgrade proto in request")
    if protocol != "h2c":
        raise InvalidParameter(f"protocol {protocol} not supported")
