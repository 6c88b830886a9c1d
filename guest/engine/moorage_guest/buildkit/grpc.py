"""gRPC over `http2`: a server of methods, and a channel to call those of a peer.

Messages are `protobuf.Message`s; compression is not offered and not taken.
"""

import asyncio
import base64
import contextlib
import functools
import json
import logging
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from h2.errors import ErrorCodes

from moorage_guest import errors as engine_errors
from moorage_guest.buildkit.errors import Code, GrpcError, PeerGone
from moorage_guest.buildkit.http2 import Connection, Headers, Stream
from moorage_guest.buildkit.messages import AnyMessage, RpcStatus
from moorage_guest.buildkit.protobuf import Message, WireError
from moorage_guest.buildkit.session_messages import HealthCheckRequest, HealthCheckResponse

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

#: Bytes of one message at most.
MAX_MESSAGE = 16 << 20

#: Bytes of an error's text and details that are sent; peers bound headers, and a trailer is one.
_MAX_TEXT = 8 << 10
_MAX_DETAILS = 512 << 10

_CODES: dict[type[engine_errors.EngineError], Code] = {
    engine_errors.InvalidParameter: Code.INVALID_ARGUMENT,
    engine_errors.Unauthorized: Code.UNAUTHENTICATED,
    engine_errors.Forbidden: Code.PERMISSION_DENIED,
    engine_errors.NotFound: Code.NOT_FOUND,
    engine_errors.Conflict: Code.FAILED_PRECONDITION,
    engine_errors.NotImplementedByEngine: Code.UNIMPLEMENTED,
    engine_errors.Unavailable: Code.UNAVAILABLE,
}

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass
class _Messages:
    """Cuts a stream's bytes into messages."""

    stream: Stream
    size: int = 0
    """Bytes of the last message."""
    _buffer: bytearray = field(default_factory=bytearray)

    async def next(self) -> bytes | None:
        """Return the next message's bytes, None at the end. Raises PeerGone, GrpcError."""
        head = await self._take(5, at_end=True)
        if head is None:
            return None
        if head[0]:
            raise GrpcError(Code.UNIMPLEMENTED, "compressed messages are not taken")
        size = int.from_bytes(head[1:5], "big")
        if size > MAX_MESSAGE:
            raise GrpcError(Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is larger than {MAX_MESSAGE}")
        self.size = size
        return await self._take(size, at_end=False)

    async def _take(self, size: int, *, at_end: bool) -> bytes | None:
        while len(self._buffer) < size:
            data = await self.stream.read()
            if not data:
                if at_end and not self._buffer:
                    return None
                raise GrpcError(Code.INTERNAL, "a message is cut short")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def decoded(self, kind: type[M]) -> M | None:
        """Return the next message, None at the end. Raises PeerGone, GrpcError."""
        data = await self.next()
        if data is None:
            return None
        try:
            return kind.decode(data)
        except WireError as error:
            raise GrpcError(Code.INTERNAL, f"malformed {kind.__name__}: {error}") from None


def _framed(message: Message) -> bytes:
    data = message.encode()
    return b"\0" + len(data).to_bytes(4, "big") + data


# -- server -------------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A call under way, as its handler sees it. The handler is cancelled when the client gives up or is gone."""

    metadata: Mapping[str, str]
    """What the client sent beside the messages; of names that came more than once the last."""
    stream: Stream
    begun: bool = False

    def begin(self, metadata: Mapping[str, str] | None = None) -> None:
        """Send the answer's headers, with metadata, before anything else is known; quiet when that is done. Raises PeerGone."""
        if not self.begun:
            self.begun = True
            more = [(name.encode(), value.encode("latin-1", "replace")) for name, value in (metadata or {}).items()]
            self.stream.send_headers([*_HEAD, *more])


@dataclass(frozen=True)
class Method:
    """One method: what its request is, and who answers. A handler's EngineErrors are told to the client."""

    request: type[Message]
    unary: Callable[[Any, Call], Awaitable[Message]] | None = None
    streaming: Callable[[Any, Call], AsyncGenerator[Message, None]] | None = None


def unary(request: type[M], handler: Callable[[M, Call], Awaitable[Message]]) -> Method:
    """Return a method that answers one message with one."""
    return Method(request, unary=handler)


def streaming(request: type[M], handler: Callable[[M, Call], AsyncGenerator[Message, None]]) -> Method:
    """Return a method that answers one message with many."""
    return Method(request, streaming=handler)


async def _healthy(_request: HealthCheckRequest, _call: Call) -> HealthCheckResponse:
    return HealthCheckResponse(1)


HEALTH = {"/grpc.health.v1.Health/Check": unary(HealthCheckRequest, _healthy)}


async def serve(connection: socket.socket, prefix: bytes, methods: Mapping[str, Method]) -> None:
    """Answer calls on a connected, non-blocking socket until the peer closes it. Owns the socket.

    ``methods`` are by path ("/package.Service/Method"); health is answered too.
    """
    table = {**HEALTH, **methods}
    async with asyncio.TaskGroup() as group:

        def answer(stream: Stream) -> None:
            task = group.create_task(_answer(stream, table))
            stream.on_gone = functools.partial(_cancel, task)

        opened = await Connection.open(connection, prefix, client=False, on_stream=answer)
        try:
            await opened.closed.wait()
        finally:
            opened.close()


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


async def _answer(stream: Stream, methods: Mapping[str, Method]) -> None:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in stream.headers}
    call = Call({name: value for name, value in headers.items() if not name.startswith(":")}, stream)
    error: GrpcError | None = None
    try:
        async with asyncio.timeout(_timeout(headers.get("grpc-timeout", ""))):
            await _carry_out(call, headers.get(":path", ""), methods)
    except TimeoutError:
        error = GrpcError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    except engine_errors.EngineError as failed:
        if stream.gone is not None:
            return
        error = as_grpc(failed)
    except Exception as failed:
        log.exception("a call of a client that builds failed")
        error = GrpcError(Code.UNKNOWN, f"{type(failed).__name__}: {failed}")
    with contextlib.suppress(PeerGone):
        stream.send_headers([*([] if call.begun else _HEAD), *_status_headers(error)], end=True)
        stream.reset(ErrorCodes.NO_ERROR)  # in case that the client would still send


async def _carry_out(call: Call, path: str, methods: Mapping[str, Method]) -> None:
    method = methods.get(path)
    if method is None:
        service, _, name = path.lstrip("/").partition("/")
        raise GrpcError(Code.UNIMPLEMENTED, f"unknown method {name} for service {service}")
    request = await _Messages(call.stream).decoded(method.request)
    if request is None:
        raise GrpcError(Code.INTERNAL, "the request has no message")
    if method.unary is not None:
        answer = _framed(await method.unary(request, call))
        call.begin()
        await call.stream.send(answer)
    elif method.streaming is not None:
        async with contextlib.aclosing(method.streaming(request, call)) as messages:
            async for message in messages:
                call.begin()
                await call.stream.send(_framed(message))


_HEAD: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))


def as_grpc(error: engine_errors.EngineError) -> GrpcError:
    """Return an engine's error as gRPC's, with the code that fits."""
    if isinstance(error, GrpcError):
        return error
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), Code.UNKNOWN)
    return GrpcError(code, str(error))


def _status_headers(error: GrpcError | None) -> list[tuple[bytes, bytes]]:
    if error is None:
        return [(b"grpc-status", b"0")]
    text = str(error)
    head = [(b"grpc-status", str(int(error.code)).encode())]
    said = quote(text[:_MAX_TEXT], safe=_PRINTABLE, errors="surrogateescape")
    said = re.sub(r"^ | $", "%20", said)  # a header's value neither begins nor ends with a space
    head.append((b"grpc-message", said.encode()))
    if error.details:
        status = RpcStatus(int(error.code), text, list(error.details)).encode()
        if len(status) <= _MAX_DETAILS:
            head.append((b"grpc-status-details-bin", base64.b64encode(status).rstrip(b"=")))
    return head


_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def _timeout(text: str) -> float | None:
    """Return a call's deadline in seconds from now, None without one. Raises GrpcError."""
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,8}[HMSmun]", text):
        raise GrpcError(Code.INTERNAL, f"malformed grpc-timeout: {text}")
    return int(text[:-1]) * _UNITS[text[-1]]


def detail(name: str, value: Mapping[str, Any]) -> AnyMessage:
    """Return an error's detail as BuildKit sends them: as JSON of a message of its package errdefs, such as ``Source``."""
    return AnyMessage(f"github.com/moby/buildkit/errdefs.{name}+json", json.dumps(value).encode())


# -- client -------------------------------------------------------------------------------------------------------------


class ClientStream:
    """A call that we made, messages going both ways."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._messages = _Messages(stream)
        self._checked = False
        self._sending = asyncio.Lock()

    async def send(self, *messages: Message) -> None:
        """Send messages, waiting while the peer takes none. Raises PeerGone; GrpcError when the peer has answered with one.

        Several tasks may send.
        """
        try:
            async with self._sending:
                await self._stream.send(b"".join(map(_framed, messages)))
        except PeerGone:
            await self._raise_answer()
            raise

    async def finish(self) -> None:
        """Send no more; quiet when the peer has ended the call well before it was told that."""
        try:
            await self._stream.send(b"", end=True)
        except PeerGone:
            if not await self._raise_answer():
                raise

    async def receive(self, kind: type[M]) -> M | None:
        """Return the next message, None when the peer has ended well. Raises GrpcError, PeerGone."""
        if not self._checked:
            _check_head(await self._stream.answered())
            self._checked = True
        message = await self._messages.decoded(kind)
        if message is None:
            _check_status(self._stream.trailers or self._stream.headers)
        return message

    @property
    def size(self) -> int:
        """Bytes of the last message that was received."""
        return self._messages.size

    def cancel(self) -> None:
        """Give the call up, unless it is over."""
        self._stream.reset(ErrorCodes.CANCEL)

    async def _raise_answer(self) -> bool:
        """Raise what the peer answered before it stopped listening; whether it has answered at all."""
        trailers = self._stream.trailers or self._stream.headers
        if any(name == b"grpc-status" for name, _ in trailers):
            _check_status(trailers)
            return True
        return False


@dataclass
class Channel:
    """Calls methods of the peer at the other end of a connection."""

    connection: Connection

    @contextlib.asynccontextmanager
    async def stream(self, path: str, metadata: Sequence[tuple[str, str]] = ()) -> AsyncIterator[ClientStream]:
        """Call a method; the call is given up when the block ends before it is over. Raises PeerGone."""
        headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"user-agent", b"moored"),
            *((name.encode(), value.encode("latin-1", "replace")) for name, value in metadata),
        ]  # fmt: skip
        call = ClientStream(await self.connection.request(headers))
        try:
            yield call
        finally:
            call.cancel()

    async def unary(
        self,
        path: str,
        request: Message,
        answer: type[M],
        *,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: float = 60.0,
    ) -> M:
        """Call a method with one message and return its answer. ``timeout`` in seconds. Raises GrpcError, PeerGone."""
        try:
            async with asyncio.timeout(timeout), self.stream(path, metadata) as call:
                await call.send(request)
                await call.finish()
                result = await call.receive(answer)
                if result is None:
                    raise GrpcError(Code.INTERNAL, f"{path} was answered without a message")
                await call.receive(answer)
                return result
        except TimeoutError:
            raise GrpcError(Code.DEADLINE_EXCEEDED, f"the client did not answer {path} in {timeout:.0f} s") from None


def _check_head(headers: Headers) -> None:
    status = dict(headers).get(b":status", b"")
    if status != b"200":
        raise GrpcError(Code.UNAVAILABLE, f"the client answered a call with HTTP status {status.decode('latin-1')}")


def _check_status(trailers: Headers) -> None:
    """Raise GrpcError unless a call ended well."""
    found = dict(trailers)
    text = unquote(found.get(b"grpc-message", b"").decode("latin-1"))
    try:
        code = int(found.get(b"grpc-status", b""))
    except ValueError:
        raise GrpcError(Code.INTERNAL, "the client ended a call without a status") from None
    if code == Code.OK:
        return
    details: Sequence[AnyMessage] = ()
    with contextlib.suppress(ValueError):  # details are only more of the same
        encoded = found.get(b"grpc-status-details-bin", b"")
        details = RpcStatus.decode(base64.b64decode(encoded + b"=" * (-len(encoded) % 4))).details
    raise GrpcError(code, text or f"the call failed with code {code}", details)
