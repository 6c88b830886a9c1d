"""A container's membership in networks: joined and left at any time, running or not."""

import logging

from moorage_guest.api.types import EndpointSettings
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.record import Container
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict, EngineError, Forbidden, InvalidParameter, NotFound

log = logging.getLogger(__name__)


async def connect(engine: Containers, container: Container, network: str, settings: EndpointSettings | None) -> None:
    """Join a network. Raises the API's errors."""
    record = engine.networks.check(network, settings)
    if container.removing or container.status in (Status.REMOVING, Status.DEAD):
        raise Conflict(f'Container {container.id} is marked for removal and cannot be "connect".')
    mode = container.network_mode
    if mode.startswith("container:"):
        raise Forbidden(
            "container sharing network namespace with another container or host cannot be connected to any other network"
        )
    if mode == "host":
        raise InvalidParameter("container cannot be disconnected from host network or connected to host network")
    if mode == "none":
        raise InvalidParameter(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )
    wanted = (settings or EndpointSettings()).model_copy(deep=True)
    async with container.lock:
        if record.name in container.endpoints and container.status.alive:
            raise Forbidden(f"endpoint with name {container.name} already exists in network {record.name}")
        if container.status.alive:
            container.endpoints[record.name] = await engine.networks.connect(container.id, record.id, wanted)
            container.ports = dict(engine.networks.ports(container.id))
        else:
            container.endpoints[record.name] = wanted.model_copy(update={"network_id": record.id})
        container.wanted_endpoints[record.name] = wanted
        await engine.save(container)


async def disconnect(engine: Containers, reference: str, network: str, *, force: bool) -> None:
    """Leave a network. Raises the API's errors; with force quiet about a container that is gone.

    A container that does not run, with force any, may also leave a network that is there no more, by the name it had.
    """
    network_id = engine.network_id(network)
    try:
        container = engine.find(reference)
    except NotFound:
        if force:
            await engine.networks.disconnect(reference, engine.networks.find(network).id)
            return
        raise
    if container.network_mode == "host":
        raise InvalidParameter("container cannot be disconnected from host network or connected to host network")
    async with container.lock:
        if not network_id and container.status.alive and not force:
            engine.networks.find(network)
        name = engine.networks.find(network).name if network_id else network
        found = (n for n, e in container.endpoints.items() if n == name or (network_id and e.network_id == network_id))
        key = next(found, None)
        if key is None:
            raise NotFound(f"container {container.id} is not connected to network {name}")
        if container.status.alive and network_id:
            await engine.networks.disconnect(container.id, network_id)
            container.ports = dict(engine.networks.ports(container.id))
        container.endpoints.pop(key, None)
        container.wanted_endpoints.pop(key, None)
        await engine.save(container)


async def settle(engine: Containers, container: Container, *, outdated: bool) -> bool:
    """Make the record of a live container and its network sandbox agree; returns whether they did not.

    ``outdated``: the record is that of an earlier run, so that addresses and ports are others.
    A daemon killed while the container joined a network leaves it in there without a record, which is undone: the client
    was told nothing. One killed while it left has done it already.
    """
    sandbox = engine.networks.sandbox(container.id) if container.own_network else None
    if sandbox is None:
        return False
    if set(sandbox.endpoints) == set(container.endpoints):
        if not outdated and sandbox.ports == container.ports:
            return False
        container.endpoints = dict(sandbox.endpoints)
        container.ports = dict(sandbox.ports)
        return True
    for name in set(sandbox.endpoints) - set(container.endpoints):
        log.warning("container %s had not quite joined network %s: it leaves it again", container.id, name)
        try:
            await engine.networks.disconnect(container.id, sandbox.endpoints[name].network_id)
        except EngineError as error:
            log.warning("container %s stays in network %s: %s", container.id, name, error)
            container.endpoints[name] = sandbox.endpoints[name]
    for name in set(container.endpoints) - set(sandbox.endpoints):
        container.endpoints.pop(name)
        container.wanted_endpoints.pop(name, None)
    container.ports = dict(engine.networks.ports(container.id))
    return True
