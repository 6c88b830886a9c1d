"""Routes of containers; those that stream are in `container_streams`, `docker cp` is in `archive`."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moorage_guest import web
from moorage_guest.api import archive, container_streams
from moorage_guest.api.oldclients import adapt_create
from moorage_guest.api.server import (
    ApiRequest,
    Route,
    empty_response,
    filters,
    json_object,
    json_response,
    query_bool,
    query_int,
    stream_response,
)
from moorage_guest.api.times import parse_time_ns
from moorage_guest.api.types import ContainerConfig, HostConfig, NetworkingConfig
from moorage_guest.engine import commit, create, inspect, lifecycle, processes, removal, starting
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.record import Container
from moorage_guest.errors import Conflict, InvalidParameter

PRUNE_FILTERS = ("label", "label!", "until")


def routes(engine: Containers) -> list[Route]:
    """Return the routes of this area."""
    handlers = _Handlers(engine)
    own = [
        Route("GET", "/containers/json", handlers.list),
        Route("POST", "/containers/create", handlers.create),
        Route("POST", "/containers/prune", handlers.prune, since=(1, 25)),
        Route("GET", "/containers/{id:.+}/json", handlers.inspect),
        Route("GET", "/containers/{id}/top", handlers.top),
        Route("GET", "/containers/{id}/changes", handlers.changes),
        Route("GET", "/containers/{id}/export", handlers.export),
        Route("POST", "/containers/{id}/start", handlers.start),
        Route("POST", "/containers/{id}/stop", handlers.stop),
        Route("POST", "/containers/{id}/restart", handlers.restart),
        Route("POST", "/containers/{id}/kill", handlers.kill),
        Route("POST", "/containers/{id}/update", handlers.update),
        Route("POST", "/containers/{id}/rename", handlers.rename),
        Route("POST", "/containers/{id}/pause", handlers.pause),
        Route("POST", "/containers/{id}/unpause", handlers.unpause),
        Route("POST", "/containers/{id}/resize", handlers.resize),
        Route("DELETE", "/containers/{id:.+}", handlers.remove),
        Route("POST", "/commit", handlers.commit),
        *container_streams.routes(engine),
        *archive.routes(engine),
    ]
    return [after_restore(engine, route, wait_always=route.path not in _AT_ONCE) for route in own]


#: What is answered while containers are still being taken back; with live restore off they are about to be stopped.
_AT_ONCE = ("/containers/json", "/containers/{id:.+}/json", "/containers/{id}/wait")


def after_restore(engine: Containers, route: Route, *, wait_always: bool = True) -> Route:
    """Return the route with a handler that waits until all containers are taken back, if only with live restore off."""
    handler = route.handler

    async def wait_first(request: ApiRequest) -> web.StreamResponse:
        if not engine.restored.is_set() and (wait_always or not engine.settings.live_restore):
            await engine.restored.wait()
        return await handler(request)

    return replace(route, handler=wait_first)


class _CreateBody(ContainerConfig):
    """Body of create: the portable configuration with two more objects in it."""

    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None


class _UpdateBody(HostConfig):
    """Body of update: limits and restart policy at the top level."""


class _Handlers:
    def __init__(self, engine: Containers) -> None:
        self._engine = engine

    def _container(self, request: ApiRequest) -> Container:
        return self._engine.find(request.match_info["id"])

    async def list(self, request: ApiRequest) -> web.StreamResponse:
        wanted = filters(request, inspect.FILTERS)
        limit = query_int(request, "limit", 0) or 0
        found = await inspect.list_containers(
            self._engine,
            everything=query_bool(request, "all"),
            limit=limit,
            size=query_bool(request, "size"),
            filters=wanted,
        )
        return json_response(found)

    async def create(self, request: ApiRequest) -> web.StreamResponse:
        raw = await json_object(request)
        if not raw:
            raise InvalidParameter("config cannot be empty in order to create a container")
        body = _CreateBody.model_validate(raw)
        _check_entrypoint(raw)
        _check_numbers(raw)
        config = ContainerConfig.model_validate(
            {name: getattr(body, name) for name in ContainerConfig.model_fields}, from_attributes=True
        )
        host = _host_config(raw, body.host_config)
        networking = body.networking_config or NetworkingConfig()
        warnings = adapt_create(
            request.api_version, config, host, networking, cgroup1=self._engine.settings.cgroup_version == "1"
        )
        made = await create.create(
            self._engine,
            create.CreateRequest(
                name=request.query.get("name", ""),
                config=config,
                host_config=host,
                networking=networking,
                platform=request.query.get("platform", "") if request.api_version >= (1, 41) else "",
                read_only_non_recursive=request.api_version < (1, 44),
                token=request.token,
            ),
        )
        return json_response({"Id": made.container.id, "Warnings": [*warnings, *made.warnings]}, status=201)

    async def inspect(self, request: ApiRequest) -> web.StreamResponse:
        container = self._container(request)
        if container.ending:
            async with container.lock:
                pass
        answer = await inspect.inspect(self._engine, container, size=query_bool(request, "size"))
        return json_response(answer)

    async def top(self, request: ApiRequest) -> web.StreamResponse:
        return json_response(
            await processes.top(self._engine, self._container(request), request.query.get("ps_args", "-ef"))
        )

    async def changes(self, request: ApiRequest) -> web.StreamResponse:
        container = self._container(request)
        found = await self._engine.layers.changes(container.id)
        return json_response([{"Path": path, "Kind": kind} for path, kind in found])

    async def export(self, request: ApiRequest) -> web.StreamResponse:
        container = self._container(request)
        if container.removing:
            raise Conflict(f"You cannot export container {container.id} which is being removed")
        async with contextlib.aclosing(self._engine.layers.export(container.id)) as chunks:
            first = await anext(chunks, b"")
            response = await stream_response(request, "application/octet-stream")
            await response.write(first)
            async for chunk in chunks:
                await response.write(chunk)
            await response.write_eof()
        self._engine.publish(container, "export")
        return response

    async def start(self, request: ApiRequest) -> web.StreamResponse:
        await starting.start(self._engine, self._container(request))
        return empty_response()

    async def stop(self, request: ApiRequest) -> web.StreamResponse:
        container = self._container(request)
        await lifecycle.stop(
            self._engine, container, signal=request.query.get("signal", ""), timeout=query_int(request, "t")
        )
        return empty_response()

    async def restart(self, request: ApiRequest) -> web.StreamResponse:
        container = self._container(request)
        await lifecycle.restart(
            self._engine, container, signal=request.query.get("signal", ""), timeout=query_int(request, "t")
        )
        return empty_response()

    async def kill(self, request: ApiRequest) -> web.StreamResponse:
        await lifecycle.kill(self._engine, self._container(request), request.query.get("signal", ""))
        return empty_response()

    async def update(self, request: ApiRequest) -> web.StreamResponse:
        raw = await json_object(request)
        _check_numbers(raw)
        body = _UpdateBody.model_validate(raw)
        if request.api_version < (1, 40):
            body.pids_limit = None
        container = self._container(request)
        return json_response({"Warnings": await lifecycle.update(self._engine, container, body)})

    async def rename(self, request: ApiRequest) -> web.StreamResponse:
        await lifecycle.rename(self._engine, self._container(request), request.query.get("name", ""))
        return empty_response()

    async def pause(self, request: ApiRequest) -> web.StreamResponse:
        await lifecycle.pause(self._engine, self._container(request))
        return empty_response()

    async def unpause(self, request: ApiRequest) -> web.StreamResponse:
        await lifecycle.unpause(self._engine, self._container(request))
        return empty_response()

    async def resize(self, request: ApiRequest) -> web.StreamResponse:
        rows, columns = terminal_size(request)
        await lifecycle.resize(self._engine, self._container(request), rows, columns)
        return empty_response(200)

    async def remove(self, request: ApiRequest) -> web.StreamResponse:
        if query_bool(request, "link"):
            await removal.remove_link(self._engine, request.match_info["id"])
            return empty_response()
        container = self._container(request)
        await removal.remove(
            self._engine, container, force=query_bool(request, "force"), volumes=query_bool(request, "v")
        )
        return empty_response()

    async def prune(self, request: ApiRequest) -> web.StreamResponse:
        wanted = filters(request, PRUNE_FILTERS)
        test = inspect.prune_test(wanted, until_ns(wanted))
        removed, freed = await removal.prune(self._engine, [each for each in self._engine.all() if test(each)])
        return json_response({"ContainersDeleted": removed or None, "SpaceReclaimed": freed})

    async def commit(self, request: ApiRequest) -> web.StreamResponse:
        body = await json_object(request, required=False)
        container = self._engine.find(request.query.get("container", ""))
        repository, tag = request.query.get("repo", ""), request.query.get("tag", "")
        image_id = await commit.commit(
            self._engine,
            container,
            config=body,
            reference=f"{repository}:{tag}" if repository and tag else repository,
            comment=request.query.get("comment", ""),
            author=request.query.get("author", ""),
            changes=request.query.getall("changes", []),
            pause=query_bool(request, "pause", True),
        )
        return json_response({"Id": image_id}, status=201)


def _host_config(raw: Mapping[str, Any], inner: HostConfig | None) -> HostConfig:
    """Return HostConfig with what very old clients put beside it, where it does not say something itself."""
    outer = HostConfig.model_validate(raw)
    if inner is None:
        return outer
    for name in ("memory", "memory_swap", "cpu_shares", "cpuset_cpus", "volume_driver"):
        if not getattr(inner, name):
            setattr(inner, name, getattr(outer, name))
    return inner


def _check_entrypoint(raw: Mapping[str, Any]) -> None:
    for name in ("Cmd", "Entrypoint"):
        value = raw.get(name)
        if value is not None and not isinstance(value, (str, list)):
            raise InvalidParameter(f"invalid JSON: {name}: it has to be an array of strings or a string")


def _check_numbers(value: Any) -> None:
    """Refuse numbers that no field of the API can hold."""
    if isinstance(value, dict):
        for each in value.values():
            _check_numbers(each)
    elif isinstance(value, list):
        for each in value:
            _check_numbers(each)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidParameter(f"invalid JSON: json: cannot unmarshal number {value} into Go value of type int64")


def terminal_size(request: ApiRequest) -> tuple[int, int]:
    """Read ``h`` and ``w``. Raises InvalidParameter."""
    values = []
    for name in ("h", "w"):
        text = request.query.get(name, "")
        if not text.isascii() or not text.isdigit() or int(text) > 65535:
            raise InvalidParameter(f'invalid resize {"height" if name == "h" else "width"} "{text}"')
        values.append(int(text))
    return values[0], values[1]


def until_ns(wanted: Mapping[str, list[str]]) -> int | None:
    """Read the filter ``until``: unix seconds, RFC 3339, or a duration before now. Raises InvalidParameter."""
    values = wanted.get("until", [])
    if not values:
        return None
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return parse_time_ns(values[0])
