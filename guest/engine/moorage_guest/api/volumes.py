"""Routes of volumes."""

from pydantic import Field

from moorage_guest import web
from moorage_guest.api.server import (
    ApiRequest,
    Route,
    empty_response,
    filters,
    json_body,
    json_response,
    query_bool,
)
from moorage_guest.api.types import ApiModel, Map
from moorage_guest.errors import InvalidParameter, Unavailable
from moorage_guest.volumes import FILTERS, PRUNE_FILTERS, Volumes


class VolumeCreate(ApiModel):
    """Body of POST /volumes/create."""

    name: str = ""
    driver: str = ""
    driver_opts: Map[str] = Field(default_factory=dict)
    labels: Map[str] = Field(default_factory=dict)
    cluster_volume_spec: dict[str, object] | None = None


def routes(volumes: Volumes) -> list[Route]:
    """Return the operations of volumes."""

    async def list_(request: ApiRequest) -> web.StreamResponse:
        found, warnings = await volumes.listed(filters(request, FILTERS))
        return json_response({"Volumes": [volume.to_api() for volume in found], "Warnings": warnings or None})

    async def create(request: ApiRequest) -> web.StreamResponse:
        body = await json_body(request, VolumeCreate)
        if body.cluster_volume_spec is not None:
            raise Unavailable(_NO_SWARM)
        volume = await volumes.create(
            body.name or None, body.driver, body.driver_opts, body.labels, token=request.token
        )
        return json_response(volume.to_api(), status=201)

    async def inspect(request: ApiRequest) -> web.StreamResponse:
        return json_response((await volumes.look(request.match_info["name"])).to_api())

    async def update(request: ApiRequest) -> web.StreamResponse:
        raise Unavailable(_NO_SWARM)

    async def remove(request: ApiRequest) -> web.StreamResponse:
        await volumes.remove(request.match_info["name"], force=query_bool(request, "force"))
        return empty_response()

    async def prune(request: ApiRequest) -> web.StreamResponse:
        chosen = filters(request, PRUNE_FILTERS)
        # Until API 1.42 prune took named volumes as well.
        old = request.api_version < (1, 42)
        if old and "all" in chosen:
            raise InvalidParameter("invalid filter 'all'")
        removed, freed = await volumes.prune(chosen, all_by_default=old)
        return json_response({"VolumesDeleted": removed, "SpaceReclaimed": freed})

    return [
        Route("GET", "/volumes", list_),
        Route("POST", "/volumes/create", create),
        Route("POST", "/volumes/prune", prune, since=(1, 25)),
        Route("GET", "/volumes/{name}", inspect),
        Route("PUT", "/volumes/{name}", update, since=(1, 42)),
        Route("DELETE", "/volumes/{name}", remove),
    ]


_NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and '
    "try again."
)
