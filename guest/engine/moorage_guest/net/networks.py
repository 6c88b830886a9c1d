"""Networks as the rest of the engine uses them: asynchronous, with events; the work is done on one thread of its own.

Per container: `allocate` before it starts, `release` when it has ended, `connect` and `disconnect` while it runs. Every
call may be repeated after a crash: the kernel's state and the records are brought together at `start`.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from moorage_guest.api.types import EndpointSettings
from moorage_guest.errors import EngineError, Forbidden, InvalidParameter, NotFound, SystemError_
from moorage_guest.events import EventBus
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.net import requests
from moorage_guest.net.config import NetConfig
from moorage_guest.net.fabric import Fabric
from moorage_guest.net.netlink import RouteSocket
from moorage_guest.net.records import NetworkRecord
from moorage_guest.net.restore import restore, sync_netd
from moorage_guest.net.sandboxes import (
    Remains,
    Sandbox,
    Sandboxes,
    SandboxRequest,
    endpoint_settings,
    remove_links,
)
from moorage_guest.net.selection import Selection, created_before
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("label", "label!", "until")


class Networks:
    """All networks of one daemon. `start` once before anything else; `close` leaves everything running."""

    def __init__(
        self,
        store: Store,
        events: EventBus,
        data: DataRoot,
        exec_root: ExecRoot,
        config: NetConfig,
        start_netd: Callable[[], Awaitable[Path]],
        ids: IdMap = SAME,
    ) -> None:
        self._events = events
        self._config = config
        self._start_netd = start_netd
        self._thread = ThreadPoolExecutor(1, "networks")
        self._reaper = ThreadPoolExecutor(1, "links")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._make = partial(Fabric, config, store, data, exec_root, self._netd_path, ids)
        self._fabric_: Fabric | None = None
        self._sandboxes_: Sandboxes | None = None
        self._remains = Remains()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reaping: asyncio.Task[None] | None = None
        self._watch: socket.socket | None = None
        self.warnings: list[str] = []
        """What people should know about networks since the start, for ``GET /info``."""

    @property
    def _fabric(self) -> Fabric:
        if self._fabric_ is None:
            raise SystemError_("networks are not started")
        return self._fabric_

    @property
    def _sandboxes(self) -> Sandboxes:
        if self._sandboxes_ is None:
            raise SystemError_("networks are not started")
        return self._sandboxes_

    async def _run(self, work: Callable[[], T]) -> T:
        """Run on the network thread. A cancelled caller does not stop work that has begun: it is finished first."""
        task = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await asyncio.shield(task)
            raise

    # -- life

    async def start(self, live: Collection[str]) -> None:
        """Take everything back; ``live`` are the ids of containers that run. netd is brought up to date meanwhile."""
        self._loop = asyncio.get_running_loop()

        def begin() -> list[str]:
            self._fabric_ = self._make()
            self._sandboxes_ = Sandboxes(self._fabric_)
            return restore(self._fabric_, self._sandboxes_, live)

        self.warnings = await self._run(begin)
        self._background(self._sync_netd())

    async def close(self) -> None:
        """Stop working; bridges, namespaces, rules, netd and its sockets stay as they are. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._reaping is not None:
            await asyncio.gather(self._reaping, return_exceptions=True)
        self._unwatch()
        if self._fabric_ is not None:
            await self._run(self._fabric_.close)
            self._fabric_ = None
        self._thread.shutdown(wait=False)
        self._reaper.shutdown(wait=False)

    async def settled(self) -> None:
        """Wait until everything that was begun in the background is done."""
        while self._tasks or self._reaping is not None:
            waiting = [*self._tasks, *([self._reaping] if self._reaping is not None else [])]
            await asyncio.gather(*waiting, return_exceptions=True)

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- netd

    def _netd_path(self) -> Path:
        """On the network thread: have netd running, return its socket."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._start_and_watch(), self._loop).result(30)

    async def _start_and_watch(self) -> Path:
        path = await self._start_netd()
        self._unwatch()
        watch = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        watch.setblocking(False)
        try:
            watch.connect(str(path))
        except OSError:
            watch.close()
            raise
        self._watch = watch
        asyncio.get_running_loop().add_reader(watch, self._netd_ended)
        return path

    def _unwatch(self) -> None:
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch)
            self._watch.close()
            self._watch = None

    def _netd_ended(self) -> None:
        """netd is gone: its sockets with it, the kernel's rules not. Have a new one take over at once."""
        self._unwatch()
        fabric = self._fabric

        def reconnect() -> None:
            fabric.netd.close()
            if any(s.resolver or any(p.host_port for p in s.ports) for s in fabric.sandboxes.values()):
                fabric.netd.connect()

        async def recover() -> None:
            pause = 0.5
            while True:
                try:
                    await self._run(reconnect)
                    return
                except Exception as error:
                    log.error("netd could not be started again (%s): next attempt in %.1f s", error, pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 30.0)

        log.warning("netd has ended")
        self._background(recover())

    async def _sync_netd(self) -> None:
        fabric = self._fabric
        try:
            await self._run(lambda: sync_netd(fabric))
        except Exception:
            log.exception("netd could not be brought up to date")

    # -- containers

    async def allocate(self, request: SandboxRequest) -> Sandbox:
        """Make a container's namespace before it starts.

        Raises the error to answer the start with; nothing is left then. What the container had before is dropped first.
        """
        sandboxes = self._sandboxes
        try:
            sandbox = await self._run_with_addresses(lambda: sandboxes.allocate(request))
        except EngineError as error:
            raise type(error)(f"failed to set up container networking: {error}") from error
        for settings in sandbox.endpoints.values():
            self._network_event("connect", settings.network_id, request.container_id)
        return sandbox

    async def _run_with_addresses(self, work: Callable[[], T]) -> T:
        """Run what takes addresses; once more when they were those of a container whose links are just going."""
        going = self._reaping
        try:
            return await self._run(work)
        except Forbidden:
            going = self._reaping or going
            if going is None:
                raise
        await asyncio.wait({going})
        return await self._run(work)

    async def release(self, container_id: str) -> None:
        """Take a container's namespace apart after it has ended; quiet when there is none.

        Its links go in the background, and its addresses are free when they have gone.
        """
        fabric, sandboxes = self._fabric, self._sandboxes
        if container_id not in fabric.sandboxes:
            return
        remains = await self._run(lambda: sandboxes.release(container_id))
        for endpoint in remains.endpoints:
            self._network_event("disconnect", endpoint.network_id, container_id)
        self._remains.links += remains.links
        self._remains.endpoints += remains.endpoints
        if self._reaping is None:
            self._reaping = asyncio.get_running_loop().create_task(self._reap())

    async def _reap(self) -> None:
        """Remove links in the background, all that have come together in one go: the kernel takes 20 ms for any number."""
        loop = asyncio.get_running_loop()
        fabric = self._fabric
        try:
            while self._remains.links or self._remains.endpoints:
                remains, self._remains = self._remains, Remains()
                try:
                    await loop.run_in_executor(self._reaper, _remove_links, remains.links)
                except OSError:
                    log.exception("links could not be removed")
                await self._run(lambda remains=remains: fabric.give_back(remains.endpoints))  # type: ignore[misc]
        finally:
            self._reaping = None

    def host_gateways(self) -> list[str]:
        """Return what host-gateway stands for: addresses of the host as containers see it."""
        return self._sandboxes.naming.host_gateways()

    async def write_host_files(self, request: SandboxRequest, *, host_network: bool) -> None:
        """Write hosts, hostname and resolv.conf of a container with network mode host or none."""
        write = partial(
            self._sandboxes.naming.write_host_files,
            request.container_id,
            request.hostname,
            request.domainname,
            request.host_config,
            host_network=host_network,
        )
        await self._run(write)

    async def connect(self, container_id: str, network: str, settings: EndpointSettings | None) -> EndpointSettings:
        """Plug a running container into a network; returns the filled settings."""
        record, sandboxes = self._joinable(network), self._sandboxes
        self._sandbox_of(container_id)
        wanted = settings or EndpointSettings()
        endpoint = await self._run_with_addresses(lambda: sandboxes.connect(container_id, record, wanted))
        self._network_event("connect", record.id, container_id)
        return endpoint_settings(endpoint)

    async def disconnect(self, container_id: str, network: str) -> None:
        """Unplug a running container from a network."""
        record, sandboxes = self.find(network), self._sandboxes
        self._sandbox_of(container_id)
        await self._run(lambda: sandboxes.disconnect(container_id, record))
        self._network_event("disconnect", record.id, container_id)

    async def rename(self, container_id: str, name: str) -> None:
        """Let a running container answer to its new name; quiet when it has no sandbox."""
        sandboxes = self._sandboxes
        await self._run(lambda: sandboxes.rename(container_id, name))

    def sandbox(self, container_id: str) -> Sandbox | None:
        """Return what a running container has, or None."""
        record = self._fabric.sandboxes.get(container_id)
        return None if record is None else self._sandboxes.view(record)

    def ports(self, container_id: str) -> dict[str, list[dict[str, str]] | None]:
        """Return the published and exposed ports of a running container; {} for others."""
        sandbox = self.sandbox(container_id)
        return sandbox.ports if sandbox is not None else {}

    def check(self, network: str, settings: EndpointSettings | None) -> NetworkRecord:
        """Return the network if a container may join it with these settings; raises what to answer otherwise."""
        self.check_settings(network, settings)
        return self._joinable(network)

    def check_settings(self, network: str, settings: EndpointSettings | None) -> None:
        """Raise InvalidParameter when settings do not fit a network, also one that containers have from the start."""
        requests.check_endpoint(self.find(network), settings or EndpointSettings())

    def _joinable(self, network: str) -> NetworkRecord:
        record = self.find(network)
        if record.driver == "host":
            raise InvalidParameter("container cannot be disconnected from host network or connected to host network")
        if record.driver == "null":
            raise InvalidParameter(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        return record

    def _sandbox_of(self, container_id: str) -> None:
        if container_id not in self._fabric.sandboxes:
            raise NotFound(f"container {container_id} has no network sandbox")

    # -- networks

    def find(self, reference: str) -> NetworkRecord:
        """Return a network by id, name or prefix of its id; raises NotFound."""
        return self._fabric.find("bridge" if reference == "default" else reference)

    async def create(self, request: requests.NetworkCreate) -> str:
        """Create a network and return its id."""
        fabric = self._fabric
        record = await self._run(lambda: fabric.create(request))
        self._events.publish("network", "create", record.id, {"name": record.name, "type": record.driver})
        return record.id

    async def remove(self, reference: str) -> None:
        """Remove a network that no running container uses."""
        fabric = self._fabric
        record = await self._run(lambda: fabric.remove(reference))
        self._events.publish("network", "destroy", record.id, {"name": record.name, "type": record.driver})

    async def prune(self, filters: Mapping[str, list[str]]) -> list[str]:
        """Remove all networks that nobody uses and that match; returns their names."""
        selection = Selection(filters, PRUNE_FILTERS)
        before = created_before(filters)
        removed: list[str] = []
        for record in list(self._fabric.networks.values()):
            if record.name in requests.PREDEFINED or self._fabric.users(record.id):
                continue
            if not selection.labels(record.labels) or (before is not None and not before(record.created)):
                continue
            try:
                await self.remove(record.id)
            except (InvalidParameter, NotFound, SystemError_) as error:
                log.warning("network %s is not pruned: %s", record.name, error)
                continue
            removed.append(record.name)
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return removed

    def matching(self, filters: Mapping[str, list[str]], *, containers: bool = False) -> list[dict[str, Any]]:
        """Return the API's view of the networks that match."""
        chosen = Selection(filters, FILTERS)
        result = []
        for record in sorted(self._fabric.networks.values(), key=lambda r: r.created, reverse=True):
            predefined = record.name in requests.PREDEFINED
            if (
                chosen.exact("driver", record.driver)
                and chosen.exact("scope", "local")
                and chosen.exact("type", "builtin" if predefined else "custom", ("builtin", "custom"))
                and chosen.part("id", record.id)
                and chosen.part("name", record.name)
                and chosen.labels(record.labels)
                and chosen.truth("dangling", not predefined and not self._fabric.users(record.id))
            ):
                result.append(self.view(record, containers=containers))
        return result

    def inspect(self, reference: str) -> dict[str, Any]:
        """Return the API's view of one network."""
        return self.view(self.find(reference), containers=True)

    def view(self, record: NetworkRecord, *, containers: bool) -> dict[str, Any]:
        """Return the API's Network object."""
        attached: dict[str, Any] = {}
        if containers:
            for sandbox in self._fabric.users(record.id):
                endpoint = sandbox.endpoint(record.id)
                if endpoint is not None:
                    attached[sandbox.container_id] = {
                        "Name": sandbox.name,
                        "EndpointID": endpoint.id,
                        "MacAddress": endpoint.mac,
                        "IPv4Address": endpoint.ipv4,
                        "IPv6Address": endpoint.ipv6,
                    }
        return {
            "Name": record.name,
            "Id": record.id,
            "Created": record.created,
            "Scope": "local",
            "Driver": record.driver,
            "EnableIPv4": record.ipv4,
            "EnableIPv6": record.ipv6,
            "IPAM": {
                "Driver": record.ipam_driver,
                "Options": record.ipam_options,
                "Config": [
                    _ipam_view(subnet)
                    for subnet in sorted((*record.subnets, *record.idle_subnets), key=lambda each: each.version)
                ],
            },
            "Internal": record.internal,
            "Attachable": record.attachable,
            "Ingress": False,
            "ConfigFrom": {"Network": record.config_from},
            "ConfigOnly": record.config_only,
            "Containers": attached,
            "Options": record.options,
            "Labels": record.labels,
        }

    def _network_event(self, action: str, network_id: str, container_id: str) -> None:
        record = self._fabric.networks.get(network_id)
        if record is not None:
            attributes = {"container": container_id, "name": record.name, "type": record.driver}
            self._events.publish("network", action, record.id, attributes)


def _ipam_view(subnet: Any) -> dict[str, Any]:
    view: dict[str, Any] = {"Subnet": subnet.subnet}
    if subnet.ip_range:
        view["IPRange"] = subnet.ip_range
    if subnet.gateway:
        view["Gateway"] = subnet.gateway
    if subnet.aux:
        view["AuxiliaryAddresses"] = subnet.aux
    return view


def _remove_links(names: list[str]) -> None:
    with RouteSocket() as route:
        remove_links(route, names)
