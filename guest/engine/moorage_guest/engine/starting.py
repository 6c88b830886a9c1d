"""Starting a container: everything it needs made ready side by side, then handed to its shim.

What happens when it ends is in `ending`.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage_contract.daemon_config.kinds import STOCK_RUNTIMES

from moorage_guest.engine import attach, health, namespaces, unmanaged
from moorage_guest.engine.containers import Containers, Running
from moorage_guest.engine.mounts import below, bind_source, oci_mounts
from moorage_guest.engine.names import not_found
from moorage_guest.engine.output import Output
from moorage_guest.engine.record import Container, MountRecord
from moorage_guest.engine.settings import RuntimeProgram
from moorage_guest.engine.shims import OciError, ShimError, ShimGone, ShimRequest
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict, EngineError, InvalidParameter, NotModified, SystemError_
from moorage_guest.idmap import IdMap
from moorage_guest.images.archive import make_folders
from moorage_guest.oci import cgroups
from moorage_guest.oci.spec import SpecRequest, build_spec

if TYPE_CHECKING:
    from moorage_guest.oci.spec import MountPoint

log = logging.getLogger(__name__)

#: Words of dockerd around what the runtime says; clients look for the part inside to choose their exit status.
_START_FAILED = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: {}: unknown"
)


async def start(engine: Containers, container: Container) -> None:
    """Start a container that does not run. Raises NotModified when it does, or the API's error when it cannot."""
    async with container.lock:
        check_startable(engine, container)
        container.restart_count = 0
        container.restart_delay_ns = 0
        container.manually_stopped = False
        await start_locked(engine, container)


def check_startable(engine: Containers, container: Container) -> None:
    """Raise the API's error when a container cannot be started in its state."""
    if container.status == Status.PAUSED:
        raise Conflict("cannot start a paused container, try unpause instead")
    if container.status == Status.RUNNING:
        raise NotModified("container is already running")
    if container.removing or container.status in (Status.REMOVING, Status.DEAD):
        raise Conflict("container is marked for removal and cannot be started")
    unmanaged.check_managed(container)
    if engine.get(container.id) is None:
        raise not_found(container.id)


def runtime_name(engine: Containers, container: Container) -> str:
    """Return the name of the runtime that a container is to be run by."""
    return container.host_config.runtime or engine.settings.default_runtime


def check_runtime(engine: Containers, container: Container) -> None:
    """Raise InvalidParameter when a container's runtime is not configured (any more), or its program not there."""
    name = runtime_name(engine, container)
    runtime = engine.settings.runtimes.get(name)
    if runtime is None:
        raise InvalidParameter(f"unknown or invalid runtime name: {name}")
    path = runtime.path
    if name not in STOCK_RUNTIMES and shutil.which(path) is None:
        missing = f"stat {path}: no such file or directory" if "/" in path else "executable file not found in $PATH"
        raise InvalidParameter(
            f'error while looking up the specified runtime path: exec: "{path}": {missing}; '
            f"check the runtime '{name}' in daemon.json"
        )


async def prepared_shim(engine: Containers, container: Container) -> Running:
    """Return the shim of a container, forked now unless a client's attach already had it forked."""
    running = engine.running.get(container.id)
    if running is not None and not running.shim.closed.is_set():
        return running
    config = container.config
    runtime = engine.settings.runtimes.get(runtime_name(engine, container), RuntimeProgram())
    request = ShimRequest(
        container_id=container.id, tty=config.tty, open_stdin=config.open_stdin, stdin_once=config.stdin_once,
        runtime=runtime.path, runtime_args=runtime.arguments,
        labels={
            "name": container.name, "stop_signal": config.stop_signal or "SIGTERM", "options": engine.options.digest,
        },
        spill_bytes=engine.settings.log_spill_size, spill_folder=engine.data_root.container(container.id),
    )  # fmt: skip
    engine.differences.pop(container.id, None)
    spawning = asyncio.ensure_future(engine.agent.spawn_shim(request))
    try:
        running = Running(await asyncio.shield(spawning))
    except asyncio.CancelledError:
        # The agent has been told and forks it all the same: nobody else would end it.
        with contextlib.suppress(ShimError):
            await (await spawning).shutdown(force=True)
        raise
    engine.running[container.id] = running
    watch(engine, container, running)
    return running


async def start_locked(engine: Containers, container: Container) -> None:
    """Start under the container's lock; on failure everything is taken down and the state says why."""
    from moorage_guest.engine import ending

    container.stop_requested = False
    try:
        await _start(engine, container)
    except asyncio.CancelledError:
        await asyncio.shield(ending.take_down(engine, container))
        raise
    except Exception as error:
        failure, code = _worded(container, error)
        await ending.take_down(engine, container)
        await asyncio.to_thread(cgroups.remove, container.cgroup_path)
        await ending.start_failed(engine, container, str(failure), code)
        raise failure from error
    engine.publish(container, "start")
    if engine.running[container.id].shim.closed.is_set():
        log.warning("the shim of container %s died right after the start", container.id)


async def _start(engine: Containers, container: Container) -> None:
    check_runtime(engine, container)
    shim_task = asyncio.ensure_future(prepared_shim(engine, container))
    files_task = asyncio.ensure_future(_files(engine, container))
    place_task = asyncio.ensure_future(namespaces.enter(engine, container))
    await asyncio.gather(shim_task, files_task, place_task, return_exceptions=True)
    running, files, place = shim_task.result(), files_task.result(), place_task.result()
    output_task = asyncio.ensure_future(Output.open(engine, container, running.shim))
    request = SpecRequest(
        container_id=container.id, config=container.config, host_config=container.host_config, rootfs=files.rootfs,
        mounts=[*place.mounts, *files.mounts], netns_path=place.netns, hostname=place.hostname,
        domainname=container.config.domainname, extra_env=(*place.environment, *container.secret_env),
        cgroup_parent=container.host_config.cgroup_parent or engine.settings.cgroup_parent, joined=place.joined,
        shm_path=place.shm_path, ids=engine.ids, userns_path=place.userns, defaults=engine.settings.spec_defaults(),
    )  # fmt: skip
    bundle = engine.exec_root.shim(container.id)
    spec_task = asyncio.ensure_future(asyncio.to_thread(_write_bundle, request, bundle))
    await asyncio.gather(output_task, spec_task, return_exceptions=True)
    if output_task.exception() is None:
        running.output = output_task.result()
    output = output_task.result()
    spec_task.result()
    await attach.settle(running)
    try:
        started = await running.shim.run(bundle, request.owner)
    finally:
        await output.begin()
    container.move(
        Status.RUNNING, pid=started.pid, started_ns=started.started_ns, exit_code=0, error="", oom_killed=False
    )
    container.cgroup_path = str(spec_task.result()["linux"]["cgroupsPath"])
    await engine.save(container)
    health.begin(engine, container)


def watch(engine: Containers, container: Container, running: Running) -> None:
    """Follow what a shim reports from its first moment until its container's end has been dealt with."""
    from moorage_guest.engine import ending

    running.tasks.add(engine.task(ending.follow(engine, container, running), f"follow {container.id[:12]}"))


@dataclass(frozen=True)
class Files:
    """A container's root and what is mounted below it."""

    rootfs: Path
    mounts: "list[MountPoint]"


async def _files(engine: Containers, container: Container) -> Files:
    rootfs, *sources = await asyncio.gather(
        engine.layers.mount(container.id), *(source_of(engine, container, mount) for mount in container.mounts)
    )
    assert rootfs is not None
    if container.mounts:
        await asyncio.to_thread(
            _make_mount_points, rootfs, list(zip(container.mounts, sources, strict=True)), engine.ids
        )
    mounts = oci_mounts(zip(container.mounts, sources, strict=True))
    container.mounts = [_placed(engine, each) for each in container.mounts]
    return Files(rootfs, mounts)


def _placed(engine: Containers, mount: MountRecord) -> MountRecord:
    """Return a mount with the place that a plugin has now given its volume."""
    volume = engine.volumes.get(mount.name) if mount.kind == "volume" else None
    return mount if volume is None or volume.local else replace(mount, source=volume.source)


def _make_mount_points(rootfs: Path, mounts: Sequence[tuple[MountRecord, Path | None]], ids: IdMap) -> None:
    """Make the folders to mount on as dockerd does, readable by all: crun's own would have the sticky bit in the image."""
    taken = ["/dev", "/proc", "/sys"]
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for mount, source in sorted(mounts, key=lambda each: each[0].destination):
            inside = any(f"{mount.destination}/".startswith(f"{each}/") for each in taken)
            taken.append(mount.destination)
            if not inside and (source is None or source.is_dir()):
                with contextlib.suppress(OSError):  # what cannot be mounted on, the runtime words better
                    make_folders(root, mount.destination, ids.root)
    finally:
        os.close(root)


async def source_of(engine: Containers, container: Container, mount: MountRecord) -> Path | None:
    """Return what stands behind a mount, made ready to be bound; None for a tmpfs."""
    if mount.kind == "volume":
        mountpoint = await engine.volumes.acquire(mount.name, container.id, mount.seen())
        return await asyncio.to_thread(below, mountpoint, mount.subpath) if mount.subpath else mountpoint
    if mount.kind == "bind":
        return await asyncio.to_thread(bind_source, mount, engine.ids)
    if mount.kind == "image":
        key = f"{container.id}-{mount.destination.strip('/').replace('/', '-')}"
        image = engine.images.resolve(mount.source)
        await engine.layers.create_rw(key, image.id, {})
        return await asyncio.to_thread(below, await engine.layers.mount(key), mount.subpath)
    return None


def _write_bundle(request: SpecRequest, bundle: Path) -> dict[str, Any]:
    spec = build_spec(request)
    descriptor = os.open(bundle / "config.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(spec, file, separators=(",", ":"))
    return spec


def _worded(container: Container, error: Exception) -> tuple[EngineError, int]:
    """Return the error for the client and the exit code that the container then has."""
    if isinstance(error, OciError):
        return runtime_error(_START_FAILED, "crun create failed", container.path, error), exit_code_of(error)
    if isinstance(error, ShimGone):
        return SystemError_(f"the shim of container {container.id} died during the start"), 128
    if isinstance(error, EngineError):
        return error, 128
    if isinstance(error, OSError):
        return SystemError_(f"cannot start container {container.id}: {error}"), 128
    log.exception("start of container %s failed", container.id)
    return SystemError_(f"cannot start container {container.id}: {type(error).__name__}: {error}"), 128


def runtime_error(template: str, action: str, command: str, error: OciError) -> EngineError:
    """Word what the runtime said as dockerd's runtime would."""
    where = f'{action}: unable to start container process: exec: "{command}": '
    if error.kind == "not_found":
        missing = (
            "executable file not found in $PATH" if "/" not in command else f"stat {command}: no such file or directory"
        )
        return InvalidParameter(template.format(where + missing))
    if folder := re.search("chdir (?:to )?`(.*)`: Not a directory", str(error)):
        return SystemError_(f"Cannot mkdir: {folder[1]} is not a directory")
    if exit_code_of(error) == 126:
        return InvalidParameter(template.format(where + "permission denied"))
    return SystemError_(template.format(f"{action}: {error}"))


def exit_code_of(error: OciError) -> int:
    """Return the exit code of a process that could not be started; a folder in a program's place is 126."""
    if "open executable" in str(error).lower() and error.kind == "other":
        return 126
    return error.exit_code
