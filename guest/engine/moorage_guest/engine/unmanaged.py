"""Containers that live but that this daemon has no grip on: their record is lost, or their shim speaks another protocol.

They are shown and can be stopped; nothing is done to them unasked. Stopping goes by their process, found in the shim's
own record and checked against its cgroup, so that no other process is ever hit.
"""

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from moorage_guest.api.types import ContainerConfig, HostConfig
from moorage_guest.engine.containers import Containers
from moorage_guest.engine.names import NAME
from moorage_guest.engine.record import KIND, Container, RunState
from moorage_guest.engine.shims import Shim, ShimError, ShimGone
from moorage_guest.engine.states import Status
from moorage_guest.errors import Conflict, SystemError_

log = logging.getLogger(__name__)

_KILL_DEADLINE = 30.0

#: With another value of these the engine keeps everything in another folder.
OF_DATA_ROOT = ("data-root", "userns-remap")


def note(engine: Containers, container: Container, reason: str) -> None:
    """Say that a container is unmanaged and why: in the log, in an event, in the warnings of info."""
    container.unmanaged = reason
    engine.unmanaged[container.id] = reason
    log.error("container %s is unmanaged: %s", container.id, reason)
    engine.publish(container, "unmanaged", reason=reason)
    engine.task(_watch(engine, container), f"end of unmanaged {container.id[:12]}")


async def _watch(engine: Containers, container: Container) -> None:
    """Wait until an unmanaged container has ended by itself."""
    descriptor = _open(container)
    if descriptor is not None:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(descriptor, gone.set)
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    await settle(engine, container)


def show(engine: Containers, container_id: str, reason: str) -> None:
    """Show a container of which only the shim is left; ``reason`` is what is wrong with its record, "" when there is none.

    One of another data root that has ended is left to the engine of that data root, which knows what to do.
    """
    shim = _shim_record(engine, container_id)
    elsewhere = ""
    if not reason:
        differences = engine.options.differences(options_of(engine, container_id))
        elsewhere = next((each.reason for each in differences if each.key in OF_DATA_ROOT), "")
        reason = elsewhere or "no record of it is left in the state database"
    labels = shim.get("spec", {}).get("labels", {})
    name = str(labels.get("name", ""))
    if NAME.fullmatch(name) and engine.names.get(name) is None:
        engine.names.reserve(name, container_id)
    else:
        name = engine.names.make_up(container_id)
    started_ns = int(shim.get("started_ns", 0))
    container = Container(
        id=container_id, name=name, created_ns=started_ns or time.time_ns(), image_id="",
        config=ContainerConfig(image="", stop_signal=str(labels.get("stop_signal", ""))), host_config=HostConfig(),
        state=RunState(Status.RUNNING, pid=int(shim.get("pid", 0)), started_ns=started_ns),
    )  # fmt: skip
    container.foreign = bool(elsewhere)
    if container.foreign and not lives(container):
        log.warning("container %s has ended, and %s", container_id, reason)
        engine.names.release(name, container_id)
        return
    engine.add(container)
    note(engine, container, reason)


def options_of(engine: Containers, container_id: str) -> str:
    """Return the digest of the options that a container was started under, "" when its shim does not say."""
    return str(_shim_record(engine, container_id).get("spec", {}).get("labels", {}).get("options", ""))


def lives(container: Container) -> bool:
    """Whether the first process of a container, as its record names it, runs."""
    descriptor = _open(container)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _shim_record(engine: Containers, container_id: str) -> dict[str, Any]:
    """Return what the files of a shim say: shim.json is the agent's, state.json its own."""
    found: dict[str, Any] = {}
    for name in ("shim.json", "state.json"):
        with contextlib.suppress(OSError, ValueError):
            record = json.loads((engine.exec_root.shim(container_id) / name).read_text())
            found.update(record if isinstance(record, dict) else {})
    return found


async def stop(engine: Containers, container: Container, number: int, timeout: float | None) -> None:
    """Stop an unmanaged container: a signal, SIGKILL after ``timeout`` seconds (None is never). Then it is at rest."""
    descriptor = _open(container)
    if descriptor is not None:
        try:
            signal.pidfd_send_signal(descriptor, number)
            if not await asyncio.to_thread(_gone, descriptor, timeout):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                if not await asyncio.to_thread(_gone, descriptor, _KILL_DEADLINE):
                    raise SystemError_(f"container {container.id} did not end {_KILL_DEADLINE:.0f} s after SIGKILL")
        except ProcessLookupError:
            log.debug("container %s ended by itself", container.id)
        finally:
            os.close(descriptor)
    await settle(engine, container)


def _open(container: Container) -> int | None:
    """Return a pidfd of the container's first process, None when it has ended."""
    try:
        descriptor = os.pidfd_open(container.state.pid)
    except (ProcessLookupError, ValueError, OSError):
        return None
    try:
        groups = Path(f"/proc/{container.state.pid}/cgroup").read_text()
    except OSError:
        groups = ""
    if container.id not in groups:
        os.close(descriptor)
        return None
    return descriptor


def _gone(descriptor: int, timeout: float | None) -> bool:
    return bool(select.select([descriptor], [], [], timeout)[0])


async def settle(engine: Containers, container: Container) -> None:
    """Note that an unmanaged container has ended; one without a record is forgotten. Idempotent."""
    if not container.unmanaged:
        return
    reason, container.unmanaged = container.unmanaged, ""
    if container.foreign:  # its shim keeps exit code and last output for the engine of its data root
        _forget(engine, container)
        return
    try:
        shim = await Shim.connect(engine.exec_root, container.id)
        await shim.shutdown(force=True)
    except ShimGone:
        with contextlib.suppress(ShimError):
            await engine.agent.bury(container.id)
    except ShimError as error:
        log.warning("the shim of container %s stays: %s", container.id, error)
    engine.unmanaged.pop(container.id, None)
    container.state = replace(
        container.state, status=Status.EXITED, pid=0, exit_code=137, finished_ns=time.time_ns(), error=reason
    )
    engine.publish(container, "die", exitCode="137")
    engine.waits.ended(container)
    if engine.store.get(KIND, container.id) is None or container.image_id == "":
        await engine.networks.release(container.id)
        engine.forget(container)
    else:
        await engine.save(container)


def _forget(engine: Containers, container: Container) -> None:
    engine.unmanaged.pop(container.id, None)
    container.state = replace(container.state, status=Status.EXITED, pid=0, finished_ns=time.time_ns())
    engine.publish(container, "die")
    engine.waits.ended(container)
    engine.forget(container)


def check_managed(container: Container) -> None:
    """Raise Conflict when nothing but stop can be done to the container."""
    if container.unmanaged:
        raise Conflict(
            f"container {container.id} is unmanaged: {container.unmanaged}; it can be stopped (docker stop), nothing else"
        )
