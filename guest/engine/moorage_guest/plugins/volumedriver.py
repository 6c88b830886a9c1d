"""Volume drivers that are plugins (`VolumeDriver.*`): one call for each thing that a volume can be asked for.

Which volumes there are and who uses them is kept by `moorage_guest.volumes`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moorage_guest.errors import EngineError
from moorage_guest.plugins.client import CALL, CallError, Plugin, Plugins

log = logging.getLogger(__name__)

ABILITY = "VolumeDriver"

#: Seconds for what may attach a disk at the other end of a network.
LONG = 120.0


@dataclass(frozen=True)
class Found:
    """What a driver says of a volume; the folder is known once it has been mounted, if not before."""

    name: str
    mountpoint: str = ""
    created: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)


class VolumeDriver:
    """One driver. All methods raise CallError."""

    def __init__(self, plugin: Plugin) -> None:
        self.name = plugin.name
        self._plugin = plugin
        self._scope = ""

    async def _call(self, method: str, arguments: Mapping[str, Any], timeout: float = CALL) -> dict[str, Any]:
        answer = await self._plugin.call(f"VolumeDriver.{method}", arguments, timeout)
        if answer.get("Err"):
            raise CallError(f"VolumeDriver.{method}: {answer['Err']}", answered=True)
        return answer

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        await self._call("Create", {"Name": name, "Opts": dict(options)}, LONG)

    async def remove(self, name: str) -> None:
        await self._call("Remove", {"Name": name})

    async def get(self, name: str, timeout: float = CALL) -> Found | None:
        """Return what the driver knows of a volume; None when it has none of that name, whatever it says to that.

        Raises CallError only when it could not be asked.
        """
        try:
            answer = await self._call("Get", {"Name": name}, timeout)
        except CallError as error:
            if not error.answered:
                raise
            log.debug("volume %s of driver %s: %s", name, self.name, error)
            return None
        found = answer.get("Volume")
        return _found(found) if isinstance(found, dict) and found.get("Name") else None

    async def listed(self) -> list[Found]:
        answer = await self._call("List", {})
        return [_found(each) for each in answer.get("Volumes") or () if isinstance(each, dict) and each.get("Name")]

    async def mount(self, name: str, mount_id: str) -> str:
        """Have a volume mounted for one user, and return where."""
        return str((await self._call("Mount", {"Name": name, "ID": mount_id}, LONG)).get("Mountpoint") or "")

    async def unmount(self, name: str, mount_id: str) -> None:
        await self._call("Unmount", {"Name": name, "ID": mount_id})

    async def scope(self) -> str:
        """Return "local", or "global" for volumes that other machines see, too; asked for once."""
        if not self._scope:
            self._scope = "local"
            try:
                answer = await self._call("Capabilities", {})
            except CallError as error:
                log.debug("volume driver %s does not tell what it is able to do: %s", self.name, error)
                return self._scope
            capabilities = answer.get("Capabilities")
            said = str(capabilities.get("Scope", "")).lower() if isinstance(capabilities, dict) else ""
            if said in ("local", "global"):
                self._scope = said
            else:
                log.warning("Volume driver %r returned an invalid scope: %r", self.name, said)
        return self._scope


class VolumeDrivers:
    """The volume drivers of the machine that are plugins."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._drivers: dict[str, VolumeDriver] = {}

    async def get(self, name: str) -> VolumeDriver:
        """Return a driver; raises NotFound or SystemError_ in dockerd's words."""
        try:
            return self._of(await self._plugins.get(name, ABILITY))
        except EngineError as error:
            raise type(error)(f"error looking up volume plugin {name}: {error}") from error

    async def all(self) -> list[VolumeDriver]:
        """Return the drivers that answer now."""
        return [self._of(plugin) for plugin in await self._plugins.able(ABILITY)]

    def _of(self, plugin: Plugin) -> VolumeDriver:
        driver = self._drivers.get(plugin.name)
        if driver is None or driver._plugin is not plugin:
            driver = self._drivers[plugin.name] = VolumeDriver(plugin)
        return driver


def _found(value: Mapping[str, Any]) -> Found:
    status = value.get("Status")
    return Found(
        str(value["Name"]), str(value.get("Mountpoint") or ""), str(value.get("CreatedAt") or ""),
        status if isinstance(status, dict) else {},
    )  # fmt: skip
