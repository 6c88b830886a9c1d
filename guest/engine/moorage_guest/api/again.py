"""Requests whose daemon was killed before it answered: what the next daemon does with them.

Most are simply done again. What the killed daemon had finished is recognised where doing it again would fail or do harm; what
cannot be done twice is refused in a sentence. Each request is tried by a few daemons at most, in case it is what ends them.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from moorage_guest import web
from moorage_guest.api.kept import CUT_SHORT
from moorage_guest.api.server import ApiRequest, Route, empty_response, json_object, json_response, query_bool
from moorage_guest.api.times import parse_time_ns
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.execs import find as find_exec
from moorage_guest.engine.record import Container
from moorage_guest.engine.signals import parse_signal
from moorage_guest.engine.states import Status
from moorage_guest.errors import EngineError, NotFound, Unavailable
from moorage_guest.events import Event
from moorage_guest.net.networks import Networks

#: Daemons that may begin a request before it is held to be what kills them.
MOST_TRIES = 10

#: What would make something twice, and whose answer normally has begun at once anyway.
_ONCE = {
    ("POST", "/commit"), ("POST", "/build"), ("POST", "/images/load"), ("PUT", "/containers/{id}/archive"),
}  # fmt: skip

#: Signals that end a process: sending one again changes nothing.
_ENDING = {parse_signal(name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT")}


def once(route: Route, request: ApiRequest) -> bool:
    """Whether a request must not be done a second time."""
    key = (route.method, route.path)
    if key == ("POST", "/images/create"):
        return bool(request.query.get("fromSrc"))
    if key == ("POST", "/containers/{id}/kill"):
        name = request.query.get("signal", "")
        return bool(name) and parse_signal(name) not in _ENDING
    return key in _ONCE


def checked(routes: list[Route], engine: Containers, networks: Networks) -> list[Route]:
    """Return the routes with handlers that know what to do with a request that a daemon before has begun."""
    done = _Done(engine, networks).table
    return [_checked(route, engine, done.get((route.method, route.path))) for route in routes]


def _checked(route: Route, engine: Containers, look: "_Look | None") -> Route:
    handler = route.handler

    async def check(request: ApiRequest) -> web.StreamResponse:
        if not request.tries:
            return await handler(request)
        if request.tries > MOST_TRIES or once(route, request):
            raise Unavailable(CUT_SHORT)
        if look is None:
            return await handler(request)
        await engine.restored.wait()
        before = await look(request)
        if before is not None:
            return before
        return await handler(request)

    return replace(route, handler=check)


_Look = Callable[[ApiRequest], Awaitable[web.StreamResponse | None]]


class _Done:
    """Looks whether what a request asks for has been done since it was begun; None when it has not."""

    def __init__(self, engine: Containers, networks: Networks) -> None:
        self._engine = engine
        self._networks = networks
        self.table: dict[tuple[str, str], _Look] = {
            ("POST", "/containers/create"): self._created,
            ("POST", "/containers/{id}/start"): self._started,
            ("POST", "/containers/{id}/restart"): self._started,
            ("POST", "/containers/{id}/stop"): self._ended,
            ("POST", "/containers/{id}/kill"): self._ended,
            ("POST", "/containers/{id}/wait"): self._waited,
            ("POST", "/containers/{id}/pause"): self._paused,
            ("POST", "/containers/{id}/unpause"): self._unpaused,
            ("POST", "/containers/{id}/rename"): self._renamed,
            ("DELETE", "/containers/{id:.+}"): self._removed,
            ("POST", "/exec/{id}/start"): self._exec_started,
            ("POST", "/networks/create"): self._network_made,
            ("POST", "/networks/{id}/connect"): self._connected,
            ("POST", "/networks/{id}/disconnect"): self._disconnected,
            ("DELETE", "/networks/{id}"): self._network_gone,
            ("DELETE", "/volumes/{name}"): self._volume_gone,
            ("DELETE", "/images/{name:.+}"): self._image_gone,
        }

    def _container(self, request: ApiRequest) -> Container | None:
        try:
            return self._engine.find(request.match_info["id"])
        except EngineError:
            return None

    async def _created(self, request: ApiRequest) -> web.StreamResponse | None:
        for container in self._engine.all():
            if container.token == request.token:
                return json_response({"Id": container.id, "Warnings": []}, status=201)
        return None

    def _told(self, request: ApiRequest, *actions: str) -> Event | None:
        """Return the first such event since the request of the container that it names, which may be no more."""
        reference = request.match_info["id"].removeprefix("/")
        for event in self._engine.events.history(request.begun_ns):
            if event.type != "container" or event.action not in actions:
                continue
            if event.actor_id.startswith(reference) or event.attributes.get("name") == reference:
                return event
        return None

    async def _started(self, request: ApiRequest) -> web.StreamResponse | None:
        """A container that has run and ended meanwhile must not run a second time."""
        container = self._container(request)
        if container is None:
            begun = self._told(request, "start", "die", "destroy") is not None
        else:
            begun = container.state.started_ns >= request.begun_ns
        return empty_response() if begun else None

    async def _ended(self, request: ApiRequest) -> web.StreamResponse | None:
        container = self._container(request)
        if container is None:
            ended = self._told(request, "die", "destroy") is not None
        else:
            ended = not container.status.alive and container.state.finished_ns >= request.begun_ns
        return empty_response() if ended else None

    async def _waited(self, request: ApiRequest) -> web.StreamResponse | None:
        """A container that ended meanwhile, and went with that: its exit code is in its last event."""
        if self._container(request) is not None:
            return None
        last = self._told(request, "die")
        return json_response({"StatusCode": int(last.attributes.get("exitCode", "0"))}) if last is not None else None

    async def _removed(self, request: ApiRequest) -> web.StreamResponse | None:
        if query_bool(request, "link"):  # an alias is no container: nobody knows whether there was such a link
            raise Unavailable(CUT_SHORT)
        gone = self._container(request) is None and self._told(request, "destroy") is not None
        return empty_response() if gone else None

    async def _paused(self, request: ApiRequest) -> web.StreamResponse | None:
        container = self._container(request)
        return empty_response() if container is not None and container.status == Status.PAUSED else None

    async def _unpaused(self, request: ApiRequest) -> web.StreamResponse | None:
        container = self._container(request)
        return empty_response() if container is not None and container.status == Status.RUNNING else None

    async def _renamed(self, request: ApiRequest) -> web.StreamResponse | None:
        """Done if the old name, or the name that the container had, is no more and the new one is there."""
        name = request.query.get("name", "").removeprefix("/")
        container = self._container(request)
        if container is not None:
            return empty_response() if container.name == name else None
        try:
            self._engine.find(name)
        except EngineError:
            return None
        return empty_response()

    async def _exec_started(self, request: ApiRequest) -> web.StreamResponse | None:
        if not find_exec(self._engine, request.match_info["id"]).started:
            return None
        if (await json_object(request, required=False)).get("Detach"):
            return empty_response(200)
        raise Unavailable(CUT_SHORT)

    async def _network_made(self, request: ApiRequest) -> web.StreamResponse | None:
        name = str((await json_object(request)).get("Name", ""))
        for network in self._networks.matching({"name": [name]}):
            if network["Name"] == name and parse_time_ns(network["Created"]) >= request.begun_ns - 1000:
                return json_response({"Id": network["Id"], "Warning": ""}, status=201)
        return None

    async def _network_gone(self, request: ApiRequest) -> web.StreamResponse | None:
        try:
            self._networks.find(request.match_info["id"])
        except NotFound:
            return empty_response()
        return None

    async def _volume_gone(self, request: ApiRequest) -> web.StreamResponse | None:
        return None if self._engine.volumes.has(request.match_info["name"]) else empty_response()

    async def _image_gone(self, request: ApiRequest) -> web.StreamResponse | None:
        """Its name or itself is no more; what exactly went with it, the daemon before would have told."""
        try:
            self._engine.images.resolve(request.match_info["name"])
        except EngineError:
            return json_response([])
        return None

    async def _connected(self, request: ApiRequest) -> web.StreamResponse | None:
        return empty_response(200) if await self._is_member(request) else None

    async def _disconnected(self, request: ApiRequest) -> web.StreamResponse | None:
        return empty_response(200) if await self._is_member(request) is False else None

    async def _is_member(self, request: ApiRequest) -> bool | None:
        """Whether the container is in the network; None when there is no such container."""
        body = await json_object(request)
        try:
            container = self._engine.find(str(body.get("Container", "")))
        except EngineError:
            return None
        return self._networks.find(request.match_info["id"]).name in container.endpoints
