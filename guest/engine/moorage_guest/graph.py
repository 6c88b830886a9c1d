"""The daemon's parts, put together once: who gets whom, started and ended in order."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from moorage_contract.daemon_config import DaemonConfig, as_json, fingerprint

from moorage_guest import sysinfo
from moorage_guest.api import (
    again,
    build,
    buildkit,
    container_streams,
    containers,
    exec,
    images,
    leave,
    networks,
    off,
    system,
    transfers,
    volumes,
)
from moorage_guest.api.lasting import taken_up
from moorage_guest.api.server import ApiServer, Route
from moorage_guest.diskusage import disk_usage
from moorage_guest.engine import restore, startoptions
from moorage_guest.engine.buildsteps import ContainerSteps
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.shims import Agent
from moorage_guest.engineconfig import SettingsError, engine_settings, net_config, registry_settings
from moorage_guest.events import EventBus
from moorage_guest.images import registry
from moorage_guest.images.buildcache import BuildCache
from moorage_guest.images.layers import Layers
from moorage_guest.images.store import Images
from moorage_guest.info import engine_id, engine_info, masked_proxy
from moorage_guest.liveconfig import ConfigFileError, LiveConfig
from moorage_guest.logs.pump import Pump
from moorage_guest.memory import Spare
from moorage_guest.net.networks import Networks
from moorage_guest.paths import DataRoot, ExecRoot, plugin_folders
from moorage_guest.plugins import volumedriver
from moorage_guest.plugins.authorization import Authorization, NoSuchPlugin
from moorage_guest.plugins.client import Plugins
from moorage_guest.remap import Remapped
from moorage_guest.room import shortages
from moorage_guest.store import Store
from moorage_guest.volumes import Volumes

log = logging.getLogger(__name__)


class Graph:
    """Everything but the listening sockets. `start`, then serve; `shut_down` on a signal; `close` always."""

    def __init__(
        self, config: LiveConfig, data_root: DataRoot, exec_root: ExecRoot, agent: Agent, remap: Remapped | None = None
    ) -> None:
        remap = remap or Remapped()
        self.config = config
        self.data_root = data_root
        self.exec_root = exec_root
        self.agent = agent
        self.store = Store(data_root.database)
        self.events = EventBus(exec_root.root / "events.jsonl")
        self.identity = engine_id(self.store, data_root.engine_id)
        self.pump = Pump()
        self.images = Images(data_root, self.store, self.events, remap.ids)
        self.layers = Layers(data_root, self.store, self.images)
        self.build_cache = BuildCache(data_root.build_cache, self.store, self.images)
        self.plugins = Plugins(plugin_folders(data_root, exec_root))
        self.authorization = Authorization(self.plugins)
        self.volumes = Volumes(self.store, self.events, data_root, self.plugins, remap.ids)
        self.networks = Networks(
            self.store,
            self.events,
            data_root,
            exec_root,
            net_config(config.current),
            agent.spawn_netd,
            remap.ids,
        )
        self.containers = Containers(
            store=self.store,
            events=self.events,
            agent=agent,
            pump=self.pump,
            images=self.images,
            layers=self.layers,
            networks=self.networks,
            volumes=self.volumes,
            data_root=data_root,
            exec_root=exec_root,
            settings=engine_settings(config.current),
            options=startoptions.StartOptions(
                exec_root.options, {**fingerprint(config.current), "userns-remap": remap.name}
            ),
        )
        self.images.in_use = self.containers.images_in_use
        self.images.is_running = lambda container_id: container_id in self.containers.running
        self.images.configure(registry_settings(config.current))
        self._build_steps = ContainerSteps(self.containers)
        self.spare = Spare()
        self.buildkit = buildkit.BuildKit(
            self.images,
            self.layers,
            self._build_steps,
            self.build_cache,
            spawn=self.containers.task,
            worker_id=self.identity,
            host_gateways=self.networks.host_gateways,
            on_gone=self.spare.soon,
        )
        known = again.checked(self._routes(), self.containers, self.networks)
        self.server = ApiServer(leave.guarded(known, self.authorization), holder=agent)
        self.server.on_streamed = self.spare.soon

    def _routes(self) -> list[Route]:
        self._system = system.SystemService(
            events=self.events,
            info=self.info,
            disk_usage=self.disk_usage,
            login=self.login,
            builder_version=lambda: "2" if self.config.current.features.get("buildkit", True) else "1",
            agent=self.agent,
            components=_components,
        )
        return [
            *system.routes(self._system),
            *off.checkpoints(),
            *containers.routes(self.containers),
            *exec.routes(self.containers),
            *images.routes(self.images, self.agent),
            *build.routes(self.images, self.layers, self._build_steps, self.build_cache, self.buildkit),
            *buildkit.routes(self.buildkit),
            *networks.routes(self.networks, self.containers),
            *volumes.routes(self.volumes),
            *off.routes(lambda: self.config.current.live_restore),
        ]

    async def start(self) -> None:
        """Take back what runs, then free what nobody holds.

        Raises StoreError or OSError when the roots are unusable, NoSuchPlugin when nobody can be asked for leave.
        """
        self.pump.start()
        await self.images.start()
        await self.build_cache.start()
        await restore.start(self.containers, self._resume_streams)
        self.containers.task(self._build_steps.clear(), "removal of what builds left")
        if self.store.recovered is None:
            await self.images.sweep()
        await self.authorization.use(self.config.current.authorization_plugins)

    async def _resume_streams(self) -> None:
        """Go on with the answers that an earlier daemon left at the agent; returns when each has begun to watch."""
        streams = container_streams.Streams(self.containers)
        for record, lasting in await self.agent.lasting():
            log.debug("going on with %s for a client of the last daemon", record.get("op"))
            record, operation = await taken_up(record, lasting), record.get("op")
            if operation == "events":
                going_on = self._system.resume_events(record, lasting)
            elif operation in transfers.OPERATIONS:
                going_on = transfers.resume(self.images, record, lasting)
            else:
                going_on = streams.resume(record, lasting)
            self.containers.task(going_on, f"lasting {operation}")
        await asyncio.sleep(0)

    def reload(self) -> None:
        """Put reloadable settings of daemon.json in force, all or none; a fault is logged and the old ones stay."""
        try:
            changed = self.config.reload()
            settings = engine_settings(self.config.current)
        except (ConfigFileError, SettingsError) as error:
            log.error("Failed to reload the configuration: %s", error)
            return
        self.containers.settings = settings
        self.images.configure(registry_settings(self.config.current))
        current = self.config.current
        if changed.get("authorization-plugins") is not None:
            self.containers.task(self._use_authorization(current.authorization_plugins), "authorization plugins")
        logging.getLogger().setLevel(logging.DEBUG if current.debug else logging.INFO)
        log.debug("Reset Max Concurrent Downloads: %d", current.max_concurrent_downloads)
        log.debug("Reset Max Concurrent Uploads: %d", current.max_concurrent_uploads)
        log.debug("Reset Shutdown Timeout: %d", current.shutdown_timeout)
        self.events.publish("daemon", "reload", self.identity, _reload_attributes(current))
        proxies = {
            key: masked_proxy(value)
            for key, value in (("http-proxy", current.http_proxy), ("https-proxy", current.https_proxy))
            if value
        }
        log.info(
            "Reloaded configuration: %s", _text({**changed, **proxies}) if changed or proxies else "nothing changed"
        )

    async def _use_authorization(self, names: tuple[str, ...]) -> None:
        try:
            await self.authorization.use(names)
        except NoSuchPlugin as error:
            log.error("Failed to reload the configuration: %s; those before go on", error)

    async def shut_down(self) -> None:
        """Stop answering; with live restore off, stop the containers too."""
        self.images.stopping = True
        await self.server.close()
        await self.buildkit.close()
        await restore.shut_down(self.containers)

    async def close(self) -> None:
        """End threads and connections. Containers, networks and mounts stay."""
        self.spare.close()
        await self.server.close()
        await self.buildkit.close()
        await self.containers.close()
        await self.pump.stop()
        await self.networks.close()
        await self.layers.close()
        await self.images.close()
        self.events.close()
        self.store.close()

    # -- answers that need everybody -----------------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """Return the answer of GET /info."""
        warnings = [*self.networks.warnings, *shortages(self.data_root.root, self.exec_root.root)]
        warnings += [f"container {key} is unmanaged: {reason}" for key, reason in self.containers.unmanaged.items()]
        warnings += startoptions.warnings(self.containers.outdated())
        if self.store.set_aside is not None:
            warnings.append(f"the state database was damaged and was set aside as {self.store.set_aside}")
        if self.store.recovered is not None:
            warnings.append(f"the state database was made anew from its copy: {self.store.recovered} records")
        answer = await asyncio.to_thread(
            engine_info,
            self.config.current,
            identity=self.identity,
            counts=self.containers.counts(),
            images=len(self.images.all()),
            driver="overlay2",
            driver_status=[["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
            data_root=self.data_root.root,
            remapped=bool(self.layers.ids),
            listeners=self.events.listeners,
            tasks=len(asyncio.all_tasks()),
            warnings=warnings,
        )
        answer["Plugins"]["Authorization"] = list(self.authorization.names) or None
        answer["Plugins"]["Volume"] += self.plugins.known(volumedriver.ABILITY)
        return answer

    async def disk_usage(self, wanted: set[str]) -> dict[str, Any]:
        """Return the answer of GET /system/df."""
        return await disk_usage(self.images, self.build_cache, self.containers, self.volumes, wanted)

    async def login(self, credentials: dict[str, Any]) -> dict[str, Any]:
        """Check registry credentials by asking the registry."""
        return await registry.login(self.images.registries, credentials)


def _components() -> list[dict[str, Any]]:
    """Return the programs beside the engine that GET /version names."""
    found = []
    for name, program in (("crun", "crun"), ("docker-init", "tini")):
        version = sysinfo.program_version(program)
        if version:
            found.append({"Name": name, "Version": version, "Details": {"GitCommit": ""}})
    return found


def _text(value: object) -> str:
    """Return a setting's value as it stands in daemon.json."""
    return json.dumps(as_json(value), separators=(",", ":"), ensure_ascii=False)


def _reload_attributes(config: DaemonConfig) -> Mapping[str, str]:
    """Return what dockerd's reload event tells of the settings in force."""
    return {
        "name": sysinfo.hostname(),
        "allow-nondistributable-artifacts": "[]",
        "runtimes": _text(config.runtimes),
        "debug": str(config.debug).lower(),
        "labels": _text(config.labels),
        "live-restore": str(config.live_restore).lower(),
        "max-concurrent-downloads": str(config.max_concurrent_downloads),
        "max-concurrent-uploads": str(config.max_concurrent_uploads),
        "max-download-attempts": str(config.max_download_attempts),
        "default-runtime": config.default_runtime,
        "insecure-registries": _text(config.insecure_registries),
        "registry-mirrors": _text(config.registry_mirrors),
        "shutdown-timeout": str(config.shutdown_timeout),
        "default-shm-size": str(config.default_shm_size),
        "default-ipc-mode": config.default_ipc_mode,
    }
