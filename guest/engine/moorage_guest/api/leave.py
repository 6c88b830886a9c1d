"""Asks authorization plugins for leave before a request is done, and again before it is answered."""

import logging
from dataclasses import replace

import pydantic

from moorage_guest import web
from moorage_guest.api.server import ApiRequest, Handler, Route, read_body
from moorage_guest.errors import EngineError
from moorage_guest.plugins.authorization import Asked, Authorization

log = logging.getLogger(__name__)


def guarded(routes: list[Route], authorization: Authorization) -> list[Route]:
    """Return the routes with handlers that do nothing without leave, while the configuration names who gives it."""
    return [replace(route, handler=_guarded(route.handler, authorization)) for route in routes]


def _guarded(handler: Handler, authorization: Authorization) -> Handler:
    async def guard(request: ApiRequest) -> web.StreamResponse:
        return await (_asked(handler, authorization, request) if authorization.names else handler(request))

    return guard


async def _asked(handler: Handler, authorization: Authorization, request: ApiRequest) -> web.StreamResponse:
    """Answer a request if the plugins let it through, and its answer.

    Of a stream they are shown that it was asked for; what they say of its answer comes too late and is logged.
    """
    secret = request.path.endswith("/auth")  # a login, and what it is answered
    json = request.content_type == "application/json" and not secret
    request.strict = True
    asked = Asked(
        request.method, request.raw_path, request.headers, await read_body(request) if json else b"",
        request.connection.peer,
    )  # fmt: skip
    await authorization.allow_request(asked)
    try:
        response = await handler(request)
    except (EngineError, pydantic.ValidationError, web.HTTPException):
        raise  # an error tells nothing that a plugin could keep
    shown = b""
    if isinstance(response, web.Response) and isinstance(response.body, bytes) and not secret:
        shown = response.body if response.content_type == "application/json" else b""
    try:
        await authorization.allow_answer(asked, response.status, response.headers, shown)
    except EngineError as error:
        if not response.prepared:
            raise
        log.error("%s %s has been answered, though: %s", request.method, request.path, error)
    return response
