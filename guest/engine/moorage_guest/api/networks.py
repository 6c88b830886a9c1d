"""Routes of networks. Joining and leaving is the containers' business, since it changes their records."""

from typing import Protocol

from moorage_guest import web
from moorage_guest.api.server import (
    ApiRequest,
    Route,
    empty_response,
    filters,
    json_body,
    json_response,
)
from moorage_guest.api.types import EndpointSettings
from moorage_guest.errors import InvalidParameter, NotFound
from moorage_guest.net.networks import FILTERS, PRUNE_FILTERS, Networks
from moorage_guest.net.requests import NetworkConnect, NetworkCreate, NetworkDisconnect


class NetworkedContainers(Protocol):
    """Who changes a container's networks, whatever its state."""

    async def network_connect(self, container: str, network: str, settings: EndpointSettings | None) -> None:
        """Join, now if it runs and at every start."""

    async def network_disconnect(self, container: str, network: str, *, force: bool) -> None:
        """Leave, now if it runs and for good."""


def routes(networks: Networks, containers: NetworkedContainers) -> list[Route]:
    """Return the operations of networks."""

    async def list_(request: ApiRequest) -> web.StreamResponse:
        # Up to API 1.27 the list carries what inspect has.
        chosen = filters(request, FILTERS)
        return json_response(networks.matching(chosen, containers=request.api_version < (1, 28)))

    async def inspect(request: ApiRequest) -> web.StreamResponse:
        scope = request.query.get("scope", "")
        record = networks.find(request.match_info["id"])
        if scope not in ("", "local"):
            raise NotFound(f"network {request.match_info['id']} not found")
        return json_response(networks.view(record, containers=True))

    async def create(request: ApiRequest) -> web.StreamResponse:
        body = await json_body(request, NetworkCreate)
        network_id = await networks.create(body)
        return json_response({"Id": network_id, "Warning": ""}, status=201)

    async def remove(request: ApiRequest) -> web.StreamResponse:
        await networks.remove(request.match_info["id"])
        return empty_response()

    async def connect(request: ApiRequest) -> web.StreamResponse:
        body = await json_body(request, NetworkConnect)
        if not body.container:
            raise InvalidParameter("invalid container name or ID: value is empty")
        record = networks.find(request.match_info["id"])
        await containers.network_connect(body.container, record.id, body.endpoint_config)
        return empty_response(200)

    async def disconnect(request: ApiRequest) -> web.StreamResponse:
        body = await json_body(request, NetworkDisconnect)
        if not body.container:
            raise InvalidParameter("invalid container name or ID: value is empty")
        await containers.network_disconnect(body.container, request.match_info["id"], force=body.force)
        return empty_response(200)

    async def prune(request: ApiRequest) -> web.StreamResponse:
        removed = await networks.prune(filters(request, PRUNE_FILTERS))
        return json_response({"NetworksDeleted": removed or None})

    return [
        Route("GET", "/networks", list_),
        Route("GET", "/networks/", list_),
        Route("POST", "/networks/create", create),
        Route("POST", "/networks/prune", prune),
        Route("GET", "/networks/{id}", inspect),
        Route("DELETE", "/networks/{id}", remove),
        Route("POST", "/networks/{id}/connect", connect),
        Route("POST", "/networks/{id}/disconnect", disconnect),
    ]
