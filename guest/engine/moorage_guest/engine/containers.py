"""The containers of this daemon: who there is, who runs, and the services they need.

Verbs live in the modules named for them (`create`, `lifecycle`, `ending`, `restore`, …) and work on this object. It
belongs to the event loop's thread.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moorage_guest.api.types import EndpointSettings
from moorage_guest.engine.names import Names, not_found
from moorage_guest.engine.record import KIND, Container
from moorage_guest.engine.settings import EngineSettings
from moorage_guest.engine.shims import Agent, Shim, ShimGone
from moorage_guest.engine.startoptions import Difference, StartOptions
from moorage_guest.engine.states import Status
from moorage_guest.engine.waits import Waits
from moorage_guest.errors import EngineError, InvalidParameter, NotFound
from moorage_guest.events import EventBus
from moorage_guest.images.layers import Layers
from moorage_guest.images.store import Images
from moorage_guest.logs.pump import Pump
from moorage_guest.net.networks import Networks
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.store import Store
from moorage_guest.volumes import Volumes

if TYPE_CHECKING:
    from moorage_guest.engine.execs import Exec
    from moorage_guest.engine.output import Output

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Running:
    """What the daemon holds of a container that has a shim: before its start, while it runs, until it is taken down."""

    shim: Shim
    output: "Output | None" = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the end has been dealt with completely."""
    attached: bool = False
    """Whether a client was given to the shim before the output was opened."""
    attaching: int = 0
    """Clients on their way to the shim."""


class Containers:
    """See the module. `start` (in `restore`) must have run before verbs are used; `close` ends all tasks."""

    def __init__(
        self,
        *,
        store: Store,
        events: EventBus,
        agent: Agent,
        pump: Pump,
        images: Images,
        layers: Layers,
        networks: Networks,
        volumes: Volumes,
        data_root: DataRoot,
        exec_root: ExecRoot,
        settings: EngineSettings,
        options: StartOptions,
    ) -> None:
        self.store = store
        self.events = events
        self.agent = agent
        self.pump = pump
        self.images = images
        self.layers = layers
        self.ids = layers.ids
        self.networks = networks
        self.volumes = volumes
        self.data_root = data_root
        self.exec_root = exec_root
        self.settings = settings
        self.options = options
        self.names = Names()
        self.waits = Waits()
        self.running: dict[str, Running] = {}
        self.execs: dict[str, Exec] = {}
        #: Shims that no record belongs to, or whose protocol is unknown: container id → reason.
        self.unmanaged: dict[str, str] = {}
        #: Options that had another value when a running container was started: container id → differences.
        self.differences: dict[str, tuple[Difference, ...]] = {}
        #: Containers whose notes of unfinished work are to be taken away.
        self.finished: set[str] = set()
        self.shutting_down = False
        #: Set once everything that outlived the last daemon is taken back; before, containers can be looked at only.
        self.restored = asyncio.Event()
        self._containers: dict[str, Container] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- who there is --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._containers.values()))

    def __len__(self) -> int:
        return len(self._containers)

    def all(self) -> list[Container]:
        """Return all containers that users know of, newest first."""
        known = [each for each in self._containers.values() if not each.hidden]
        return sorted(known, key=lambda each: each.created_ns, reverse=True)

    def get(self, container_id: str) -> Container | None:
        """Return the container with exactly this id, or None."""
        return self._containers.get(container_id)

    def find(self, reference: str) -> Container:
        """Return a container by id, name or unambiguous prefix of its id. Raises NotFound or InvalidParameter."""
        if found := self._containers.get(reference):
            return found
        name = reference.removeprefix("/")
        if (container_id := self.names.get(name)) and (found := self._containers.get(container_id)):
            return found
        if not reference:
            raise not_found(reference)
        if "/" in name and (found := self._linked(name)) is not None:
            return found
        matches = [each for key, each in self._containers.items() if key.startswith(reference)]
        if len(matches) > 1:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {reference}")
        if not matches:
            raise not_found(reference)
        return matches[0]

    def _linked(self, name: str) -> Container | None:
        """Return the container that another one has linked, by ``container/alias``."""
        parent, _, alias = name.rpartition("/")
        container_id = self.names.get(parent)
        parent_container = self._containers.get(container_id or parent)
        for link in parent_container.host_config.links if parent_container is not None else ():
            target, _, given = link.partition(":")
            if (given or target).rsplit("/", 1)[-1] == alias:
                return self._containers.get(self.names.get(target.removeprefix("/")) or target)
        return None

    def add(self, container: Container) -> None:
        """Take a container in; its name must be reserved."""
        self._containers[container.id] = container

    def images_in_use(self) -> Mapping[str, list[str]]:
        """Return the containers that use each image, for the Images service."""
        used: dict[str, list[str]] = {}
        for container in self._containers.values():
            used.setdefault(container.image_id, []).append(container.id)
        return used

    def counts(self) -> dict[str, int]:
        """Return the numbers that GET /info shows."""
        states = [each.status for each in self._containers.values() if not each.hidden]
        paused = states.count(Status.PAUSED)
        running = states.count(Status.RUNNING) + states.count(Status.RESTARTING)
        return {
            "Containers": len(states),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(states) - running - paused,
        }

    def outdated(self) -> dict[str, tuple[Difference, ...]]:
        """Return the running containers that were started under other options, by name."""
        return {
            each.name: self.differences[each.id]
            for each in self._containers.values()
            if each.status.alive and not each.unmanaged and each.id in self.differences
        }

    # -- primitives of the verbs ---------------------------------------------------------------------------------------

    async def save(self, container: Container) -> None:
        """Write a container's record; durable when this returns. Quiet for one that is being removed."""
        if container.status != Status.REMOVING:
            await asyncio.to_thread(self.store.put, KIND, container.id, container.to_record())

    def publish(self, container: Container, action: str, *, time_ns: int | None = None, **attributes: str) -> None:
        """Publish an event about a container, unless it is a hidden one."""
        if container.hidden:
            return
        self.events.publish("container", action, container.id, container.attributes(**attributes), time_ns=time_ns)

    def task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run work beside; a failure is logged. Ends with `close`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def discard(self, container: Container) -> None:
        """Forget a container and everything made for it, whatever of it there is; failures are logged."""
        for mount in container.mounts:
            if mount.kind != "volume":
                continue
            with _logged(f"volume {mount.name} of container {container.id}"):
                await self.volumes.unreference(mount.name, container.id)
                if mount.anonymous:
                    with contextlib.suppress(NotFound):
                        await self.volumes.remove(mount.name)
        with _logged(f"layer of container {container.id}"):
            await self.layers.remove_rw(container.id)
        await asyncio.to_thread(shutil.rmtree, self.data_root.container(container.id), ignore_errors=True)
        with _logged(f"record of container {container.id}"):
            await asyncio.to_thread(self.store.delete, KIND, container.id)
        self.forget(container)

    def forget(self, container: Container) -> None:
        """Take a container out of memory and free its name."""
        self._containers.pop(container.id, None)
        self.names.release(container.name, container.id)
        for exec_id in container.exec_ids:
            self.execs.pop(exec_id, None)

    def network_id(self, reference: str) -> str:
        """Return a network's id by name or id, "" when there is none."""
        try:
            return self.networks.find(reference).id
        except EngineError:
            return ""

    async def network_connect(self, reference: str, network: str, settings: EndpointSettings | None) -> None:
        """Put a container into a network, now if it runs and at every start."""
        from moorage_guest.engine import memberships

        await self.restored.wait()
        await memberships.connect(self, self.find(reference), network, settings)

    async def network_disconnect(self, reference: str, network: str, *, force: bool) -> None:
        """Take a container out of a network for good; with force also one that is gone."""
        from moorage_guest.engine import memberships

        await self.restored.wait()
        await memberships.disconnect(self, reference, network, force=force)

    # -- end -----------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End all tasks and let go of shims; containers go on."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for running in self.running.values():
            running.shim.close()
        self.running.clear()

    async def shim_of(self, container: Container) -> Shim:
        """Return the shim of a live container. Raises ShimGone."""
        running = self.running.get(container.id)
        if running is None:
            raise ShimGone(f"no shim answers for container {container.id}")
        return running.shim


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        log.warning("cannot clean up the %s", what, exc_info=True)
