"""Swarm, checkpoints and managed plugins: features that Moorage does not have, answered as dockerd answers while they are off."""

from collections.abc import Callable

from moorage_guest import web
from moorage_guest.api.server import ApiRequest, Handler, Route, json_object, json_response
from moorage_guest.errors import EngineError, InvalidParameter, NotFound, NotImplementedByEngine, Unavailable

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
LIVE_RESTORE_AND_SWARM = "--live-restore daemon configuration is incompatible with swarm mode"
NO_SWARM = "Moorage has no swarm mode: it runs standalone containers (use Compose for several at once)"
NO_CHECKPOINTS = "Moorage makes no checkpoints of containers: stop and start them, or pause them"
NO_PLUGINS = "Moorage has no managed plugins: drivers are built in, or legacy plugins that somebody else starts"

#: Operations that only a swarm manager has.
_MANAGER_ROUTES = """
GET /swarm|POST /swarm/update|GET /swarm/unlockkey
GET /nodes|GET /nodes/{id}|DELETE /nodes/{id}|POST /nodes/{id}/update
GET /services|POST /services/create|GET /services/{id}|DELETE /services/{id}|POST /services/{id}/update|GET /services/{id}/logs
GET /tasks|GET /tasks/{id}|GET /tasks/{id}/logs
GET /secrets|POST /secrets/create|GET /secrets/{id}|DELETE /secrets/{id}|POST /secrets/{id}/update
GET /configs|POST /configs/create|GET /configs/{id}|DELETE /configs/{id}|POST /configs/{id}/update
"""


def _refuse(error: type[EngineError], text: str) -> Handler:
    async def handler(request: ApiRequest) -> web.StreamResponse:
        raise error(text)

    return handler


def routes(live_restore: Callable[[], bool]) -> list[Route]:
    """Return the routes; ``live_restore()`` says whether the daemon runs with it now."""

    async def swarm_init(request: ApiRequest) -> web.StreamResponse:
        await json_object(request)
        if live_restore():
            raise InvalidParameter(LIVE_RESTORE_AND_SWARM)
        raise NotImplementedByEngine(NO_SWARM)

    async def plugins(request: ApiRequest) -> web.StreamResponse:
        return json_response([])

    async def plugin_missing(request: ApiRequest) -> web.StreamResponse:
        raise NotFound(f'plugin "{request.match_info["name"]}" not found')

    refuse = _refuse(Unavailable, NOT_A_MANAGER)
    operations = [line.split(" ", 1) for line in _MANAGER_ROUTES.replace("\n", "|").split("|") if line]
    table = [Route(method, path, refuse) for method, path in operations]
    table += [
        Route("POST", "/swarm/init", swarm_init),
        Route("POST", "/swarm/join", swarm_init),
        Route("POST", "/swarm/leave", _refuse(Unavailable, "This node is not part of a swarm")),
        Route("POST", "/swarm/unlock", _refuse(Unavailable, "This node is not part of a swarm")),
        Route("GET", "/plugins", plugins),
        Route("GET", "/plugins/privileges", _refuse(NotImplementedByEngine, NO_PLUGINS)),
        Route("POST", "/plugins/pull", _refuse(NotImplementedByEngine, NO_PLUGINS)),
        Route("POST", "/plugins/create", _refuse(NotImplementedByEngine, NO_PLUGINS)),
        Route("GET", "/plugins/{name:.+}/json", plugin_missing),
        Route("DELETE", "/plugins/{name:.+}", plugin_missing),
    ]
    for action in ("enable", "disable", "upgrade", "push", "set"):
        table.append(Route("POST", f"/plugins/{{name:.+}}/{action}", plugin_missing))
    return table


def checkpoints() -> list[Route]:
    """Return the routes of checkpoints; they have to come before those that take anything for a container's name."""
    refuse = _refuse(NotImplementedByEngine, NO_CHECKPOINTS)
    return [
        Route("GET", "/containers/{id}/checkpoints", refuse, since=(1, 25)),
        Route("POST", "/containers/{id}/checkpoints", refuse, since=(1, 25)),
        Route("DELETE", "/containers/{id}/checkpoints/{checkpoint}", refuse, since=(1, 25)),
    ]
