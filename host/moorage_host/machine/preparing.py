"""Makes the saved state while the machine is off: boots it to where it is held, at the lowest priority, and saves it there.

No start waits for it then, and one that comes meanwhile ends it. The data disk is opened, so that no other machine has it, and not
mounted. What the state is valid for is saved.py's business, when to make it control.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import time
from xml.sax.saxutils import escape

from moorage_host.errors import ErrorCode, HostError
from moorage_host.machine import console, domain_xml, saved
from moorage_host.machine.connection import Connection
from moorage_host.machine.library import libvirt, libvirt_qemu

logger = logging.getLogger(__name__)

HOLDS = 900.0  # seconds until the guest must be held: it gets what processor time is left over
POLL = 0.25
LOWEST = 19  # as nice counts


class Preparation:
    """One making of the saved state. `domain` is what the next start will restore."""

    def __init__(
        self, connection: Connection, state: saved.SavedState, domain: domain_xml.Domain, wanted_key: str
    ) -> None:
        self._connection = connection
        self._state = state
        self._domain = domain
        self._key = wanted_key
        self._saving = False

    @property
    def nearly_done(self) -> bool:
        """Whether the guest is held: to let it be saved, and restore it, takes less than any boot."""
        return self._saving

    async def run(self) -> None:
        """Make the state; a failure is logged and counted. However it ends, also by cancellation, no machine runs then."""
        self._state.begin_preparing()
        try:
            await self._connection.call(self._create)
            await self._held()
            self._saving = True
            if await self._connection.call(self._save, deadline=saved.DEADLINE):
                await asyncio.to_thread(self._state.keep, self._key)
                return
            self._state.failed(self._key)
        except (HostError, libvirt.libvirtError) as error:
            logger.warning("no saved start: %s", error)
            self._state.failed(self._key)
        finally:
            await asyncio.shield(end(self._connection, self._state, self._domain.uuid))

    async def _held(self) -> None:
        """Until the guest has said that it is held. Raises HostError."""
        deadline = time.monotonic() + HOLDS
        while not console.said(self._state.staged_console, console.HELD):
            if time.monotonic() > deadline:
                raise HostError(f"the guest was not held within {HOLDS:.0f} s", code=ErrorCode.TIMEOUT)
            if not await self._connection.call(self._runs):
                raise HostError("the machine went off while it was prepared")
            await asyncio.sleep(POLL)

    # -- in libvirt's thread

    def _create(self, connection: libvirt.virConnect) -> None:
        """Start the machine for once, whatever its definition says; its console goes into a file of its own."""
        xml = domain_xml.render(dataclasses.replace(self._domain, console_log=self._state.staged_console))
        domain = connection.createXML(xml, 0)
        answer = libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "query-cpus-fast"}), 0)
        for processor in json.loads(answer)["return"]:
            with contextlib.suppress(OSError):  # another user's
                os.setpriority(os.PRIO_PROCESS, processor["thread-id"], LOWEST)

    def _runs(self, connection: libvirt.virConnect) -> bool:
        with contextlib.suppress(libvirt.libvirtError):
            return bool(connection.lookupByUUIDString(self._domain.uuid).isActive())
        return False

    def _save(self, connection: libvirt.virConnect) -> bool:
        if not saved.save(connection.lookupByUUIDString(self._domain.uuid), self._state.staged):
            return False
        # The machine that is restored goes on with the console where users look for it.
        xml = connection.saveImageGetXMLDesc(str(self._state.staged), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
        other, own = (_quoted(str(path)) for path in (self._state.staged_console, self._domain.console_log))
        connection.saveImageDefineXML(str(self._state.staged), xml.replace(other, own), libvirt.VIR_DOMAIN_SAVE_RUNNING)
        return True


class Preparations:
    """At most one preparation at a time, in the background. To be used in the event loop alone."""

    def __init__(self) -> None:
        self._current: tuple[Preparation, asyncio.Task[None]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a machine is being prepared now."""
        return self._current is not None and not self._current[1].done()

    def begin(self, preparation: Preparation | None) -> None:
        """Let a preparation run unless one does; None is quietly nothing."""
        if preparation is not None and not self.busy:
            self._current = (preparation, asyncio.create_task(preparation.run(), name="saved state"))

    async def end(self) -> None:
        """Return when no machine is being prepared any more: what takes long is cut short. Idempotent."""
        current, self._current = self._current, None
        if current is None:
            return
        preparation, task = current
        if not preparation.nearly_done:
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the end of a preparation", exc_info=error)


async def end(connection: Connection, state: saved.SavedState, identity: str) -> None:
    """End a preparation, also one of an earlier backend, and remove what it has not finished. Quiet when there is none."""
    if not state.preparing:
        return

    def cut(opened: libvirt.virConnect) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            opened.lookupByUUIDString(identity).destroy()

    await connection.call(cut, deadline=saved.DEADLINE)
    state.end_preparing()


def _quoted(path: str) -> str:
    return escape(path, {"'": "&apos;", '"': "&quot;"})
