"""Routes of BuildKit: POST /grpc, on which clients ask for builds, and POST /session, on which builds ask their clients.

Both leave HTTP/1.1 for gRPC. What is needed for that is imported when the first of them comes.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moorage_contract.postponed import postponed

from moorage_guest import web
from moorage_guest.api.server import ApiRequest, Hijacked, Route, hijack
from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.images.build.runner import StepRunner
from moorage_guest.images.buildcache import BuildCache
from moorage_guest.images.layers import Layers
from moorage_guest.images.store import Images

with postponed(
    *(f"moorage_guest.buildkit.{each}" for each in ("building", "control", "grpc", "jobs", "session")),
    "moorage_guest.images.build.solve",
):
    from moorage_guest.buildkit import building, control, grpc, jobs, session
    from moorage_guest.images.build import solve

if TYPE_CHECKING:
    from multidict import MultiMapping

#: Makes a task of work that goes on beside.
Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class BuildKit:
    """The builder, there from the first client on.

    ``worker_id`` tells this engine from others, ``host_gateways()`` are the addresses of the host as containers see it,
    ``on_gone()`` is called each time that a client has gone.
    """

    def __init__(
        self,
        images: Images,
        layers: Layers,
        runner: StepRunner,
        cache: BuildCache,
        *,
        spawn: Spawn,
        worker_id: str,
        host_gateways: Callable[[], Sequence[str]],
        on_gone: Callable[[], None],
    ) -> None:
        self._images = images
        self._layers = layers
        self._runner = runner
        self._cache = cache
        self._spawn = spawn
        self._worker_id = worker_id
        self._host_gateways = host_gateways
        self._on_gone = on_gone
        self._clients: set[asyncio.Task[None]] = set()

    @functools.cached_property
    def sessions(self) -> "session.Sessions":
        """What clients offer to the builds that they ask for."""
        return session.Sessions(self._images.content.tmp)

    @functools.cached_property
    def control(self) -> "control.Control":
        """Who builds."""
        site = solve.Site(self._images, self._layers, self._runner, self._cache)
        parts = building.Building(site, self.sessions, jobs.Jobs())
        return control.Control(parts, self._worker_id, lambda: next(iter(self._host_gateways()), ""))

    @functools.cached_property
    def methods(self) -> "Mapping[str, grpc.Method]":
        """What is answered on /grpc, by path."""
        return self.control.methods()

    def serve(self, connection: Hijacked) -> None:
        """Answer a client's calls until it goes."""
        task = self._spawn(self._serve(connection), "a client that builds")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, connection: Hijacked) -> None:
        try:
            await grpc.serve(connection.socket, connection.prefix, self.methods)
        finally:
            self._on_gone()

    async def close(self) -> None:
        """End the builds of all clients, as when these go; to be called while containers can still be ended."""
        clients = [*self._clients]
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    def forget_files(self) -> None:
        """Keep no files of clients for their next builds."""
        if "sessions" in vars(self):
            self.sessions.keeper.clear()

    def serve_session(self, connection: Hijacked, headers: "MultiMapping[str]") -> None:
        """Have what a client offers until it goes."""
        session_id = headers.get(session.ID, "")
        serving = self.sessions.serve(
            connection.socket,
            connection.prefix,
            session_id=session_id,
            name=headers.get(session.NAME, ""),
            shared_key=headers.get(session.SHARED_KEY, ""),
            methods=headers.getall(session.METHOD, []),
        )
        self._spawn(serving, f"session {session_id}")


def routes(kit: BuildKit) -> list[Route]:
    """Return the routes of this area."""

    async def on_grpc(request: ApiRequest) -> web.StreamResponse:
        try:
            session.check_upgrade(request.headers.get("Upgrade", ""))
        except InvalidParameter as error:
            raise EngineError(str(error)) from None  # 500, as dockerd answers here
        hijacked = await hijack(request)
        kit.serve(hijacked)
        return hijacked.response

    async def on_session(request: ApiRequest) -> web.StreamResponse:
        headers = request.headers
        kit.sessions.check(headers.get(session.ID, ""), headers.get("Upgrade", ""))
        hijacked = await hijack(request)
        kit.serve_session(hijacked, headers)
        return hijacked.response

    return [Route("POST", "/grpc", on_grpc), Route("POST", "/session", on_session)]
