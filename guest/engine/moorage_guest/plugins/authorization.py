"""Authorization by plugins (`AuthZPlugin.*`): each is shown a request before it is done and its answer before it is sent.

All have to agree. Which requests there are, and what is done when one is refused, is the server's business.
"""

import base64
import logging
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moorage_guest.errors import EngineError, Forbidden, SystemError_
from moorage_guest.plugins.client import CallError, Plugin, Plugins

log = logging.getLogger(__name__)

ABILITY = "authz"

#: Headers that no plugin is shown: they hold passwords.
_SECRET = frozenset({"authorization", "x-registry-config", "x-registry-auth"})


class NoSuchPlugin(Exception):
    """A plugin that is to authorize requests cannot be used; the text says which and why."""


@dataclass(frozen=True)
class Peer:
    """Who speaks over TLS: the name in the certificate, and the certificate itself (DER)."""

    name: str
    certificate: bytes


@dataclass(frozen=True)
class Asked:
    """A request as plugins are shown it."""

    method: str
    uri: str
    headers: Mapping[str, str]
    body: bytes = b""
    peer: Peer | None = None

    def to_plugin(self) -> dict[str, Any]:
        """Return the object that plugins are sent; what is empty is left out."""
        shown: dict[str, Any] = {
            "RequestMethod": self.method, "RequestUri": self.uri, "RequestHeaders": visible(self.headers.items()),
        }  # fmt: skip
        if self.body:
            shown["RequestBody"] = base64.b64encode(self.body).decode()
        if self.peer is not None:
            pem = ssl.DER_cert_to_PEM_cert(self.peer.certificate).encode()
            shown.update(
                User=self.peer.name, UserAuthNMethod="TLS",
                RequestPeerCertificates=[base64.b64encode(pem).decode()],
            )  # fmt: skip
        return {key: value for key, value in shown.items() if value}


class Authorization:
    """Asks the plugins that the configuration names, in its order."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self.names: tuple[str, ...] = ()

    async def use(self, names: Iterable[str]) -> None:
        """Have these plugins authorize what is asked from now on. Raises NoSuchPlugin, and then nothing has changed."""
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            await self._plugin(name)
        self.names = wanted

    async def _plugin(self, name: str) -> Plugin:
        try:
            return await self._plugins.get(name, ABILITY)
        except EngineError as error:
            raise NoSuchPlugin(f"error validating authorization plugin {name}: {error}") from error

    async def allow_request(self, asked: Asked) -> None:
        """Return when all plugins let a request through. Raises Forbidden, or SystemError_ for a plugin that fails."""
        await self._ask("AuthZReq", asked.to_plugin())

    async def allow_answer(self, asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Return when all plugins let an answer through; raises as `allow_request`."""
        shown = {**asked.to_plugin(), "ResponseStatusCode": status, "ResponseHeaders": visible(headers.items())}
        if body:
            shown["ResponseBody"] = base64.b64encode(body).decode()
        await self._ask("AuthZRes", shown)

    async def _ask(self, method: str, shown: Mapping[str, Any]) -> None:
        for name in self.names:
            try:
                answer = await (await self._plugin(name)).call(f"AuthZPlugin.{method}", shown)
            except (CallError, NoSuchPlugin) as error:
                raise SystemError_(f"plugin {name} failed with error: {error}") from error
            if answer.get("Err"):
                raise SystemError_(f"plugin {name} failed with error: AuthZPlugin.{method}: {answer['Err']}")
            if answer.get("Allow") is not True:
                raise Forbidden(f"authorization denied by plugin {name}: {answer.get('Msg') or ''}")


def visible(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers that plugins may see, of several of one name the last."""
    return {name: value for name, value in headers if name.lower() not in _SECRET}
