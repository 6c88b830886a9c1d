"""Routes of exec sessions."""

import contextlib
import logging
from typing import Annotated

from pydantic import BeforeValidator, Field

from moorage_guest import web
from moorage_guest.api.container_streams import MULTIPLEXED, RAW
from moorage_guest.api.containers import after_restore, terminal_size
from moorage_guest.api.server import ApiRequest, Hijacked, Route, empty_response, hijack, json_body, json_response
from moorage_guest.api.types import ApiModel, List, Words
from moorage_guest.engine import attach, execs
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.record import Container
from moorage_guest.errors import EngineError, InvalidParameter, Unavailable
from moorage_guest.logs.reader import frame

log = logging.getLogger(__name__)

_Size = Annotated[list[int] | None, BeforeValidator(lambda value: value or None)]


class _CreateBody(ApiModel):
    """Body of POST /containers/{id}/exec."""

    user: str = ""
    privileged: bool = False
    tty: bool = False
    console_size: _Size = None
    attach_stdin: bool = False
    attach_stderr: bool = False
    attach_stdout: bool = False
    detach: bool = False
    detach_keys: str = ""
    env: List[str] = Field(default_factory=list)
    working_dir: str = ""
    cmd: Words = None


class _StartBody(ApiModel):
    """Body of POST /exec/{id}/start."""

    detach: bool = False
    tty: bool = False
    console_size: _Size = None


def routes(engine: Containers) -> list[Route]:
    """Return the routes of this area."""

    async def create(request: ApiRequest) -> web.StreamResponse:
        body = await json_body(request, _CreateBody)
        container = engine.find(request.match_info["id"])
        if not body.cmd:
            raise InvalidParameter("No exec command specified")
        for entry in [*body.env, *body.cmd]:
            if "\0" in entry:
                raise InvalidParameter("invalid command or environment: it holds a NUL byte")
        if body.working_dir and not body.working_dir.startswith("/"):
            raise InvalidParameter(
                f"the working directory '{body.working_dir}' is invalid, it needs to be an absolute path"
            )
        attach.parse_detach_keys(body.detach_keys)
        config = execs.ExecConfig(
            args=tuple(body.cmd),
            tty=body.tty,
            attach_stdin=body.attach_stdin,
            attach_stdout=body.attach_stdout,
            attach_stderr=body.attach_stderr,
            env=tuple(body.env),
            user=body.user,
            working_dir=body.working_dir,
            privileged=body.privileged,
            detach_keys=body.detach_keys,
            console_size=_size(body.console_size),
        )
        return json_response({"Id": execs.create(engine, container, config, request.match_info["id"]).id}, status=201)

    async def start(request: ApiRequest) -> web.StreamResponse:
        body = await json_body(request, _StartBody, required=False)
        session = execs.find(engine, request.match_info["id"])
        container = execs.check_startable(engine, session)
        size = _size(body.console_size) if body.tty and request.api_version >= (1, 42) else None
        if body.detach:
            await execs.start(engine, container, session, console_size=size)
            return empty_response(200)
        execs.begin(engine, session)
        multiplexed = not body.tty  # of the start, as in dockerd, even where the session itself has a terminal
        kind = MULTIPLEXED if multiplexed and request.api_version >= (1, 42) else RAW
        try:
            connection = await hijack(request, kind)
        except ConnectionError as error:
            execs.abandon(session)
            raise Unavailable("the client has closed its connection") from error
        await _run(container, session, connection, size, multiplexed=multiplexed)
        return connection.response

    async def _run(
        container: Container,
        session: execs.Exec,
        connection: Hijacked,
        size: tuple[int, int] | None,
        *,
        multiplexed: bool,
    ) -> None:
        """Start a session for a client; a failure is told in the stream, since the answer has begun."""
        client = connection.socket
        with contextlib.closing(client):
            try:
                await execs.start(
                    engine, container, session, client=client.fileno(), prefix=connection.prefix,
                    detach_keys=attach.parse_detach_keys(session.config.detach_keys), console_size=size,
                    multiplexed=multiplexed,
                )  # fmt: skip
            except EngineError as error:
                log.info("exec %s in container %s failed: %s", session.id, container.id, error)
                text = f"{error}\r\n".encode()
                with contextlib.suppress(OSError):
                    client.send(frame(1, text) if multiplexed else text)

    async def inspect(request: ApiRequest) -> web.StreamResponse:
        return json_response(execs.find(engine, request.match_info["id"]).to_api())

    async def resize(request: ApiRequest) -> web.StreamResponse:
        rows, columns = terminal_size(request)
        session = execs.find(engine, request.match_info["id"])
        await execs.resize(engine, session, rows, columns)
        return empty_response(200)

    own = [
        Route("POST", "/containers/{id}/exec", create),
        Route("POST", "/exec/{id}/start", start),
        Route("POST", "/exec/{id}/resize", resize),
        Route("GET", "/exec/{id}/json", inspect),
    ]
    return [after_restore(engine, route) for route in own]


def _size(value: list[int] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if len(value) != 2 or any(not 0 <= each <= 65535 for each in value):
        raise InvalidParameter("invalid ConsoleSize: it has to be [height, width]")
    return value[0], value[1]
