"""The HTTP side of the Engine API: routing by version, parameters, errors, and the hand-over of hijacked connections.

What a route does belongs to the module of its area; this one knows no area.
"""

import asyncio
import functools
import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import pydantic
from moorage_contract.version import API_VERSION, ENGINE_VERSION, MIN_API_VERSION

from moorage_guest import web
from moorage_guest.api.clients import Clients
from moorage_guest.api.kept import Holder, Kept
from moorage_guest.api.protocol import Protocol
from moorage_guest.api.tlsfront import TlsFront
from moorage_guest.api.writer import AnswerWriter
from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.plugins.authorization import Peer

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=pydantic.BaseModel)

#: Largest JSON body that is read into memory, bytes. dockerd has no limit; no real request comes near.
MAX_JSON = 4 << 20

_VERSION = re.compile(r"/v([0-9]+)\.([0-9]+)(?=/|$)")


def version_tuple(text: str) -> tuple[int, int]:
    """Return API version "1.44" as (1, 44)."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


_NEWEST = version_tuple(API_VERSION)
_OLDEST = version_tuple(MIN_API_VERSION)


class ApiRequest(web.BaseRequest):
    """A request after routing: path parameters in `match_info`, the version the client speaks in `api_version`."""

    match_info: Mapping[str, str]
    api_version: tuple[int, int]
    server_headers: Mapping[str, str]
    #: The body, once `read_body` has read it.
    body: bytes | None = None
    #: Whether a body counts as JSON only when it says so, since otherwise nobody was shown it.
    strict: bool = False

    @property
    def connection(self) -> Protocol:
        """The client's connection."""
        assert isinstance(self.protocol, Protocol)
        return self.protocol

    @property
    def _kept(self) -> Kept | None:
        return self.connection.kept

    @property
    def tries(self) -> int:
        """How many daemons ended while they worked on this request, before it was answered."""
        return self._kept.tries if self._kept is not None else 0

    @property
    def begun_ns(self) -> int:
        """When the first byte of this request came, to the first of those daemons; 0 when nobody has noted it."""
        return self._kept.began_ns if self._kept is not None else 0

    @property
    def token(self) -> str:
        """What tells this request from all others, the same for all of those daemons; "" when it will not be taken over."""
        return self._kept.token if self._kept is not None else ""

    def give_away(self) -> None:
        """The connection goes to somebody who gets a duplicate of it: its end is no longer this daemon's to see to."""
        self.connection.give_away()

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        writer = self._payload_writer
        assert isinstance(writer, AnswerWriter)
        writer.begin(self._kept, whole=isinstance(response, web.Response))

    @property
    def version_http10(self) -> bool:
        """Whether the client speaks HTTP/1.0, which knows no chunks."""
        return self.version < web.HttpVersion11


Handler = Callable[[ApiRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """One operation. ``path`` has parameters as ``{name}`` (one segment) or ``{name:regex}``; ``since`` hides it from older clients."""

    method: str
    path: str
    handler: Handler
    since: tuple[int, int] = _OLDEST


@functools.cache
def _pattern(path: str) -> re.Pattern[str]:
    """Return a route's path compiled, which is done when a request first comes near it."""
    parts = re.split(r"\{(\w+)(?::([^{}]+))?\}", path)
    out = re.escape(parts[0])
    for name, regex, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        out += f"(?P<{name}>{regex or '[^/]+'})" + re.escape(literal)
    return re.compile(out)


class RouteTable:
    """Finds the route of a request; the first that fits, by method and first segment of the path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[tuple[str, str], list[Route]] = {}
        for route in routes:
            key = (route.method, _first_segment(route.path))
            self._routes.setdefault(key, []).append(route)

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]] | None:
        """Return the route for an unversioned path and its parameters."""
        candidates = self._routes.get((method, _first_segment(path)), [])
        if method == "HEAD" and not candidates:
            candidates = self._routes.get(("GET", _first_segment(path)), [])
        for route in candidates:
            if match := _pattern(route.path).fullmatch(path):
                return route, match.groupdict()
        return None


class _Server(web.Server):
    def __call__(self) -> Protocol:
        return Protocol(self, loop=self._loop, malformed=lambda text: error_response(400, text), **self._kwargs)


class ApiServer:
    """Serves routes on any number of listening sockets. `start` and `close` once each.

    Under a ``holder`` that is supervised, connections and what was asked on them outlive this daemon.
    """

    def __init__(
        self, routes: Iterable[Route], *, headers: Mapping[str, str] | None = None, holder: Holder | None = None
    ) -> None:
        self._routes = RouteTable(routes)
        #: Called after each answer that was a stream: such requests load, build, pull.
        self.on_streamed: Callable[[], None] = lambda: None
        self.headers = {
            "Api-Version": API_VERSION,
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": f"Moorage/{ENGINE_VERSION} (linux)",
            **(headers or {}),
        }
        self._server = _Server(
            self._handle,
            request_factory=_make_request,
            access_log=None,
            tcp_keepalive=True,
            keepalive_timeout=3600,
        )
        self._listening: list[asyncio.Server] = []
        self._serving = False
        self._fronts: list[TlsFront] = []
        self._clients = Clients(self._server, holder) if holder is not None and holder.supervised else None

    async def serve(self, listener: socket.socket, *, tls: ssl.SSLContext | None = None) -> None:
        """Accept connections on a bound, listening socket until `close`."""
        self._serving = True
        listener.setblocking(False)
        if tls is None and self._clients is not None:
            self._clients.serve(listener)
            return
        if tls is None:
            loop = asyncio.get_running_loop()
            self._listening.append(await loop.create_server(self._server, sock=listener, backlog=4096))
            return
        front = TlsFront(listener, tls, self._adopt)
        self._fronts.append(front)
        front.start()

    async def _adopt(self, connection: socket.socket, peer: Peer | None) -> None:
        def protocol() -> Protocol:
            made = self._server()
            made.peer = peer
            return made

        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)

    async def take_over(self) -> None:
        """Go on with the connections that the daemon before us had; after `serve`."""
        if self._clients is not None:
            await self._clients.take_over()

    async def close(self) -> None:
        """Stop accepting and end what is being done within half a second; connections that are held stay open."""
        serving, self._serving = self._serving, False
        listening, self._listening = self._listening, []
        fronts, self._fronts = self._fronts, []
        if self._clients is not None and serving:
            self._clients.leave()
        for server in listening:
            server.close()
        if serving:
            await asyncio.sleep(0)  # requests that have just come are begun, and so are not taken for idle connections
            self._server.pre_shutdown()
            await self._server.shutdown(0.5)
        for front in fronts:
            await front.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, ApiRequest)
        started = time.monotonic()
        protocol = request.connection
        try:
            response = await self._dispatch(request)
        except web.HTTPException as error:
            response = error_response(error.status, error.text or error.reason)
        except EngineError as error:
            log.debug("%s %s answers %d: %s", request.method, request.path, error.status, error)
            response = error_response(error.status, str(error))
        except pydantic.ValidationError as error:
            response = error_response(400, validation_text(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            closed = request.transport is None or request.transport.is_closing()
            if closed and isinstance(error, ConnectionError | RuntimeError):  # the latter is sendfile's
                log.debug("%s %s: the client is gone", request.method, request.path)
                response = error_response(503, "the client has closed its connection")  # goes nowhere, quietly
            else:
                log.exception("%s %s failed", request.method, request.path)
                response = error_response(500, f"{type(error).__name__}: {error}")
        finally:
            protocol.raw = None
        if not response.prepared:
            for name, value in self.headers.items():
                response.headers.setdefault(name, value)
        log.debug(
            "%s %s -> %d in %.3f s",
            request.method,
            request.path_qs,
            response.status,
            time.monotonic() - started,
        )
        if request.method == "POST" and not isinstance(response, web.Response | GivenAway):
            self.on_streamed()
        return response

    async def _dispatch(self, request: ApiRequest) -> web.StreamResponse:
        path = request.path
        version = _NEWEST
        if match := _VERSION.match(path):
            version = (int(match[1]), int(match[2]))
            path = path[match.end() :] or "/"
            text = f"{match[1]}.{match[2]}"
            if version > _NEWEST:
                raise InvalidParameter(
                    f"client version {text} is too new. Maximum supported API version is {API_VERSION}"
                )
            if version < _OLDEST:
                raise InvalidParameter(
                    f"client version {text} is too old. Minimum supported API version is {MIN_API_VERSION}, "
                    "please upgrade your client to a newer version"
                )
        if request.method == "OPTIONS":  # of any path, as in dockerd
            return web.Response(status=200)
        found = self._routes.find(request.method, path)
        if found is None or found[0].since > version:
            return error_response(404, "page not found")
        route, request.match_info = found
        request.api_version = version
        request.server_headers = self.headers
        return await route.handler(request)


def _first_segment(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""


def _make_request(
    message: Any,
    payload: web.StreamReader,
    protocol: web.RequestHandler,
    _writer: web.AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> ApiRequest:
    # A build context or an image has no limit: client_max_size bounds only what read() takes, and json_body has its own.
    loop = asyncio.get_running_loop()
    return ApiRequest(message, payload, protocol, AnswerWriter(protocol, loop), task, loop, client_max_size=0)


# -- answers ------------------------------------------------------------------------------------------------------------


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with a JSON document."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def empty_response(status: int = 204) -> web.Response:
    """Answer without a body."""
    return web.Response(status=status)


def error_response(status: int, message: str) -> web.Response:
    """Answer as the API says errors are answered; 304 has no body."""
    if status == HTTPStatus.NOT_MODIFIED:
        return web.Response(status=status)
    return json_response({"message": message}, status=status)


def validation_text(error: pydantic.ValidationError) -> str:
    """Say in one line what is wrong with a request's JSON, every fault of it."""
    faults = [f"{'.'.join(str(part) for part in fault['loc']) or 'body'}: {fault['msg']}" for fault in error.errors()]
    return "invalid JSON: " + "; ".join(faults)


async def stream_response(
    request: ApiRequest,
    content_type: str = "application/json",
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Begin a chunked answer and flush its headers before anything else is known."""
    response = web.StreamResponse(status=status, headers={**request.server_headers, **(headers or {})})
    response.content_type = content_type
    if request.version_http10:
        response.force_close()
    else:
        response.enable_chunked_encoding()
    await response.prepare(request)
    return response


# -- parameters ---------------------------------------------------------------------------------------------------------


def query_bool(request: web.BaseRequest, name: str, default: bool = False) -> bool:
    """Read a boolean as dockerd does: absent is the default, "", 0, no, false and none are false, all else is true."""
    value = request.query.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "no", "false", "none")


def query_int(request: web.BaseRequest, name: str, default: int | None = None) -> int | None:
    """Read an integer; 400 when it is none."""
    value = request.query.get(name, "")
    if value == "":
        return default
    try:
        return int(value)
    except ValueError:
        raise InvalidParameter(f'strconv.Atoi: parsing "{value}": invalid syntax') from None


def filters(request: web.BaseRequest, known: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Read ``filters``: lists (docker-py) or maps to true (the CLI). Unknown names are refused in dockerd's words."""
    text = request.query.get("filters", "")
    if not text:
        return {}
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise InvalidParameter(f"invalid filter: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidParameter("invalid filter: it has to be a JSON object")
    result: dict[str, list[str]] = {}
    for name, values in raw.items():
        if isinstance(values, dict):
            result[name] = [str(value) for value, wanted in values.items() if wanted]
        elif isinstance(values, list):
            result[name] = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
        else:
            raise InvalidParameter(f"invalid filter '{name}'")
    if known is not None:
        allowed = set(known)
        for name in result:
            if name not in allowed:
                raise InvalidParameter(f"invalid filter '{name}'")
    return result


async def read_body(request: web.BaseRequest, limit: int = MAX_JSON) -> bytes:
    """Read a whole body of at most ``limit`` bytes; a second time it is the same."""
    if isinstance(request, ApiRequest) and request.body is not None:
        return request.body
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise InvalidParameter(f"request body is larger than {limit} bytes")
        chunks.append(chunk)
    body = b"".join(chunks)
    if isinstance(request, ApiRequest):
        request.body = body
    return body


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from outside; halves of surrogate pairs become U+FFFD, as Go reads them, since they fit into no answer."""
    value = json.loads(text)
    if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
        plain = json.dumps(value, ensure_ascii=False)
        value = json.loads(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return value


def json_fault(error: json.JSONDecodeError) -> str:
    """Say what is wrong with a document in the words that clients know from dockerd."""
    if error.msg.startswith("Extra data"):
        return "unexpected content after JSON"
    if error.pos >= len(error.doc) or error.msg.startswith("Unterminated"):
        return "invalid JSON: unexpected EOF"
    places = {
        "Expecting property name": "looking for beginning of object key string",
        "Illegal trailing comma": "looking for beginning of object key string",
        "Expecting value": "looking for beginning of value",
        "Expecting ':'": "after object key",
        "Expecting ','": "after object key:value pair",
        "Invalid control": "in string literal",
        "Invalid \\escape": "in string escape code",
    }
    where = next((words for start, words in places.items() if error.msg.startswith(start)), None)
    if where is None:
        return f"invalid JSON: {error}"
    return f"invalid JSON: invalid character '{error.doc[error.pos]}' {where}"


async def json_object(request: web.BaseRequest, *, required: bool = True) -> dict[str, Any]:
    """Read a JSON object from the body; 400 in dockerd's words when it is none."""
    body = await read_body(request)
    if not body.strip():
        if required:
            raise InvalidParameter("invalid JSON: got EOF while reading request body")
        return {}
    strict = isinstance(request, ApiRequest) and request.strict
    if (strict or "Content-Type" in request.headers) and request.content_type != "application/json":
        kind = request.headers.get("Content-Type", "")
        raise InvalidParameter(f"unsupported Content-Type header ({kind}): must be 'application/json'")
    try:
        value = parse_json(body)
    except json.JSONDecodeError as error:
        raise InvalidParameter(json_fault(error)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"invalid JSON: {error}") from None
    if value is None and not required:
        return {}
    if not isinstance(value, dict):
        raise InvalidParameter("invalid JSON: the body has to be an object")
    return value


async def json_body(request: web.BaseRequest, model: type[Model], *, required: bool = True) -> Model:
    """Read a JSON object from the body and check it against a model."""
    return model.model_validate(await json_object(request, required=required))


async def while_connected(request: ApiRequest, work: Coroutine[Any, Any, None]) -> None:
    """Do work until it is done or the client has closed its connection, which HTTP does not tell a handler."""
    task = asyncio.ensure_future(work)
    try:
        while (transport := request.transport) is not None and not transport.is_closing():
            done, _ = await asyncio.wait({task}, timeout=1)
            if done:
                return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- hijack -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hijacked:
    """A connection that HTTP is done with: the client's socket (owned by the receiver) and bytes already read from it."""

    socket: socket.socket
    prefix: bytes
    response: web.StreamResponse
    """What the handler has to return; it writes nothing."""


class GivenAway(web.StreamResponse):
    """Stands for an answer that somebody else gives on the same connection. What a handler then returns."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    @property
    def prepared(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def borrow(request: ApiRequest) -> Hijacked:
    """Take what the client sends away from HTTP without writing anything; the connection is still held for the next daemon.

    The caller owns the returned socket (non-blocking), and calls `part` once somebody has it whom a daemon's end does not touch.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    transport.pause_reading()
    prefix = request.connection.take_tail(request.content_length or 0)
    raw: Any = transport.get_extra_info("socket")
    duplicate = socket.socket(fileno=socket.dup(raw.fileno()))
    duplicate.setblocking(False)
    return Hijacked(duplicate, prefix, GivenAway())


def part(request: ApiRequest) -> None:
    """Let go of a connection that was borrowed: what happens on it is no longer this daemon's business. Idempotent."""
    request.give_away()
    if request.transport is not None:
        request.transport.abort()


def upgrade_head(request: ApiRequest, content_type: str) -> bytes:
    """Return the head of the answer that ends HTTP: 101 UPGRADED, or 200 for a client that did not ask for an upgrade."""
    upgrade = request.headers.get("Upgrade", "")
    common = f"Content-Type: {content_type}\r\n"
    for name in ("Api-Version", "Docker-Experimental", "Ostype", "Server"):
        common += f"{name}: {request.server_headers[name]}\r\n"
    if upgrade:
        return f"HTTP/1.1 101 UPGRADED\r\n{common}Connection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n".encode()
    return f"HTTP/1.1 200 OK\r\n{common}\r\n".encode()


async def hijack(request: ApiRequest, content_type: str = "application/vnd.docker.raw-stream") -> Hijacked:
    """Answer with `upgrade_head` and hand the connection over.

    Everything that can fail must have been checked before: after this there is no way to answer an error but in-band.
    """
    hijacked = borrow(request)
    part(request)
    try:
        await asyncio.get_running_loop().sock_sendall(hijacked.socket, upgrade_head(request, content_type))
    except BaseException:
        hijacked.socket.close()
        raise
    return hijacked
