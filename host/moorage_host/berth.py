"""The machine that the settings ask for: made when it is first needed, and anew when they come to name another libvirt."""

from __future__ import annotations

import asyncio

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder
from moorage_host.link import remote_uri
from moorage_host.machine.connection import Connection, choose_uri
from moorage_host.machine.machine import Machine
from moorage_host.paths import Paths
from moorage_host.settings import Settings


class Berth:
    """Where the one machine is. To be used in the event loop alone; a machine that is given is never replaced."""

    def __init__(self, paths: Paths, machine: Machine | None) -> None:
        self._paths = paths
        self.machine = machine
        self._setting = ""  # the libvirt_uri that it was made for
        self._closing: set[asyncio.Task[None]] = set()

    def machine_for(self, found: Settings, *, running: bool) -> Machine:
        """The machine; one that is `running` stays where it is. Raises HostError for a libvirt URI that cannot be served."""
        moved = self._setting not in ("", found.libvirt_uri) and not running
        if self.machine is None or moved:
            private_folder(self._paths.state)
            uri = choose_uri(found.libvirt_uri, self._paths.embedded_root)
            connection = Connection(uri, self._paths.embedded_root)
            if self.machine is not None:
                closing = asyncio.create_task(asyncio.to_thread(self.machine.connection.close), name="closing libvirt")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self.machine, self._setting = Machine(self._paths, connection), found.libvirt_uri
        return self.machine

    async def close(self) -> None:
        """Close the connection to libvirt; the machine goes on."""
        if self.machine is not None:
            await asyncio.to_thread(self.machine.connection.close)


def may_change(old: Settings, new: Settings, *, present: bool) -> None:
    """Refuse settings that would lose sight of the machine where one is `present`, and a libvirt URI that cannot be served."""
    if new.name != old.name and present:
        raise HostError(
            "the name cannot change while there is a machine", hint="moorage delete", code=ErrorCode.CONFLICT
        )
    if new.libvirt_uri != old.libvirt_uri and not remote_uri.same_place(new.libvirt_uri, old.libvirt_uri) and present:
        raise HostError(
            "a machine cannot move to another host",
            hint="moorage delete removes it with its disk; the next start makes one where libvirt_uri says",
            code=ErrorCode.CONFLICT,
        )
