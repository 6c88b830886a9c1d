"""Speaks with plugins: the handshake, calls with a deadline each, and a while of patience with one that is being started.

What is called and why belongs to who calls: volumes, networks, authorization.
"""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any

from moorage_guest.errors import EngineError, NotFound, SystemError_
from moorage_guest.plugins.discovery import Address, Folders, SpecError
from moorage_guest.web import aiohttp

log = logging.getLogger(__name__)

#: What both sides speak; older plugins look at it.
MEDIA_TYPE = "application/vnd.docker.plugins.v1.2+json"

#: Seconds after which a plugin that is not there, or does not take connections, is given up: as long as dockerd waits.
PATIENCE = 30.0

#: Seconds a call may take unless it is known to take longer.
CALL = 60.0

#: Seconds for a plugin that nobody has asked for by name; and for how long one is passed over that did not answer in time.
PROBE, SULK = 5.0, 60.0


class CallError(EngineError):
    """A plugin could not be asked, or says that it failed. ``answered`` is whether the words are the plugin's own."""

    def __init__(self, text: str, *, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


class Plugin:
    """One plugin, with what it says it is able to do."""

    def __init__(self, address: Address, patience: float = PATIENCE) -> None:
        self.address = address
        self.name = address.name
        self.implements: frozenset[str] = frozenset()
        self._patience = patience
        self._activating: dict[bool, asyncio.Task[None]] = {}
        self._late = -SULK

    @property
    def sulks(self) -> bool:
        """Whether it did not answer in time just now."""
        return time.monotonic() - self._late < SULK

    async def activate(self, *, probe: bool = False) -> None:
        """Shake hands, once, however many ask for it meanwhile; to ``probe`` is to have little patience. Raises CallError."""
        if self.implements:
            return
        task = self._activating.get(probe)
        if task is None:
            task = self._activating[probe] = asyncio.get_running_loop().create_task(self._activate(probe))
            task.add_done_callback(lambda _: self._activating.pop(probe, None))
        await asyncio.shield(task)

    async def _activate(self, probe: bool) -> None:
        manifest = await self.call("Plugin.Activate", None, PROBE if probe else CALL, retry=not probe)
        self.implements = frozenset(map(str, manifest.get("Implements") or ()))

    async def call(
        self, method: str, arguments: Mapping[str, Any] | None, timeout: float = CALL, *, retry: bool = True
    ) -> dict[str, Any]:
        """Ask for something and return the answer. A connection that fails is tried again for a while; raises CallError.

        ``timeout`` is in seconds and for each try; one that ran into it is the last.
        """
        body = b"" if arguments is None else json.dumps(arguments).encode()
        begun, pause = time.monotonic(), 1.0
        while True:
            try:
                async with asyncio.timeout(timeout):
                    status, answer = await self._post(method, body)
            except (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError) as error:
                late = isinstance(error, TimeoutError)
                self._late = time.monotonic() if late else self._late
                reason = "context deadline exceeded" if late else str(error) or type(error).__name__
                text = f'Post "{self._shown(method)}": {reason}'
                if late or not retry or time.monotonic() - begun + pause >= self._patience:
                    raise CallError(text, answered=False) from error
                log.warning("Unable to connect to plugin: %s, retrying in %.0fs", text, pause)
                await asyncio.sleep(pause)
                pause *= 2
                continue
            return _understood(method, status, answer)

    async def _post(self, method: str, body: bytes) -> tuple[int, bytes]:
        path = self.address.socket
        connector: aiohttp.BaseConnector
        if path:
            connector = aiohttp.UnixConnector(path, force_close=True)
        else:
            secured = self.address.base.startswith("https:") and self.address.tls is not None
            context = await asyncio.to_thread(self.address.tls.context) if secured and self.address.tls else True
            connector = aiohttp.TCPConnector(ssl=context, force_close=True)
        headers = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE}
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(f"{self.address.base}/{method}", data=body, headers=headers) as response,
        ):
            return response.status, await response.read()

    def _shown(self, method: str) -> str:
        socket = self.address.socket
        return f"http://{socket.replace('/', '%2F')}/{method}" if socket else f"{self.address.base}/{method}"


def _understood(method: str, status: int, answer: bytes) -> dict[str, Any]:
    try:
        value = json.loads(answer) if answer.strip() else {}
    except ValueError:
        value = answer.decode(errors="replace").strip()
    if status != 200:
        said = value.get("Err") if isinstance(value, dict) else None
        raise CallError(f"{method}: {said or answer.decode(errors='replace').strip()}", answered=True)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CallError(f"{method}: the plugin's answer is no JSON object", answered=True)
    return value


class Plugins:
    """All plugins of the machine, each made known when it is first asked for."""

    def __init__(self, folders: Folders, patience: float = PATIENCE) -> None:
        self._folders = folders
        self._patience = patience
        self._known: dict[str, Plugin] = {}

    async def get(self, name: str, ability: str) -> Plugin:
        """Return a plugin that has an ability, "VolumeDriver" say. Waits for one that is not there yet, as dockerd does.

        Raises NotFound, or SystemError_ when it cannot be spoken with. Where nobody has made a folder for plugins it does
        not wait.
        """
        plugin = await self._found(name)
        try:
            await plugin.activate()
        except CallError as error:
            if self._known.get(name) is plugin:
                del self._known[name]
            raise SystemError_(f"legacy plugin: {error}") from error
        if ability not in plugin.implements:
            raise SystemError_("legacy plugin: plugin does not implement the requested driver")
        return plugin

    async def _found(self, name: str) -> Plugin:
        begun, pause = time.monotonic(), 1.0
        while True:
            plugin = self._look(name)
            if plugin is not None:
                return plugin
            out_of_time = time.monotonic() - begun + pause >= self._patience
            if out_of_time or "/" in name or not self._folders.exist():
                raise NotFound(f'plugin "{name}" not found')
            log.warning("Unable to locate plugin: %s, retrying in %.0fs", name, pause)
            await asyncio.sleep(pause)
            pause *= 2

    def _look(self, name: str) -> Plugin | None:
        """Return the plugin of that name where it is now; one that has moved is another one."""
        try:
            address = self._folders.find(name)
        except SpecError as error:
            raise SystemError_(f"legacy plugin: {error}") from error
        known = self._known.get(name)
        if address is None:
            return known if known is not None and known.implements else None
        if known is None or known.address != address:
            known = self._known[name] = Plugin(address, self._patience)
        return known

    async def able(self, ability: str) -> list[Plugin]:
        """Return all plugins with an ability that answer now; what is wrong with others is in the log.

        One that hangs is waited for for a moment, and then passed over for a while.
        """

        async def one(name: str) -> Plugin | None:
            try:
                plugin = self._look(name)
                if plugin is not None and plugin.sulks:
                    return None
                if plugin is not None:
                    await plugin.activate(probe=True)
            except EngineError as error:
                log.warning("plugin %s: %s", name, error)
                return None
            return plugin if plugin is not None and ability in plugin.implements else None

        found = await asyncio.gather(*(one(name) for name in self._folders.names()))
        return [plugin for plugin in found if plugin is not None]

    def known(self, ability: str) -> list[str]:
        """Return the names of plugins with an ability that have been used, sorted."""
        return sorted(name for name, plugin in self._known.items() if ability in plugin.implements)
