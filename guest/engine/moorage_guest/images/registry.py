"""Speaks the registry API (Docker v2 and OCI distribution): addresses, logins, manifests, blobs.

What is pulled or pushed is for `pulling` and `pushing`. Certificates are checked unless a registry is declared insecure;
loopback addresses are, as with dockerd.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import ipaddress
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from moorage_guest.errors import EngineError, InvalidParameter, NotFound, Unauthorized, Unavailable
from moorage_guest.images import content as media
from moorage_guest.images import names
from moorage_guest.images.remote import me, why_not
from moorage_guest.web import aiohttp

log = logging.getLogger(__name__)

#: Where the registry of names without one really is.
DEFAULT_HOST = "registry-1.docker.io"
#: Under this name clients keep the login for it.
DEFAULT_LOGIN = "https://index.docker.io/v1/"

MANIFEST_TYPES = (media.MANIFEST, media.INDEX, media.DOCKER_MANIFEST, media.DOCKER_LIST)

#: Seconds without a byte after which a connection counts as lost.
STALL = 60.0

#: Seconds to wait for a token server that is out of order, before each further try.
_TOKEN_PAUSES = (0.5, 1.0, 2.0, 4.0)

CERTIFICATES = Path("/etc/docker/certs.d")


@dataclass(frozen=True)
class RegistrySettings:
    """What daemon.json says about registries; the names are its own."""

    registry_mirrors: Sequence[str] = ()
    insecure_registries: Sequence[str] = ()
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    max_download_attempts: int = 5
    certificates: Path = CERTIFICATES

    def is_insecure(self, host: str) -> bool:
        """Whether a registry (host or host:port) may be reached without TLS or with a certificate nobody vouches for."""
        bare = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        bare = bare.strip("[]")
        if bare == "localhost":
            return True
        try:
            address = ipaddress.ip_address(bare)
        except ValueError:
            address = None
        if address is not None and address.is_loopback:
            return True
        for entry in self.insecure_registries:
            if "/" in entry:
                try:
                    if address is not None and address in ipaddress.ip_network(entry, strict=False):
                        return True
                except ValueError:
                    continue
            elif entry in (host, bare):
                return True
        return False


@dataclass(frozen=True)
class Credentials:
    """A login as clients send it; empty means anonymous."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    @staticmethod
    def of(value: Mapping[str, Any]) -> Credentials:
        """Read the JSON object AuthConfig."""
        username, password = str(value.get("username") or ""), str(value.get("password") or "")
        if not username and value.get("auth"):
            try:
                username, _, password = base64.b64decode(str(value["auth"])).decode().partition(":")
            except (ValueError, binascii.Error):
                raise InvalidParameter("invalid X-Registry-Auth header: auth is not base64") from None
        return Credentials(
            username,
            password,
            str(value.get("identitytoken") or ""),
            str(value.get("registrytoken") or ""),
            str(value.get("serveraddress") or ""),
        )

    @staticmethod
    def of_header(text: str) -> Credentials:
        """Read the header X-Registry-Auth. Raises InvalidParameter."""
        return Credentials.of(decode_header(text))


def decode_header(text: str) -> dict[str, Any]:
    """Return the JSON object of a base64url header; empty for one that is none, which old clients send, as in dockerd."""
    try:
        value = json.loads(base64.b64decode(text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error):
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Endpoint:
    """One address at which a registry may answer."""

    base: str
    tls: ssl.SSLContext | bool
    mirror: bool = False


class RegistryError(EngineError):
    """A registry answered with an error or not at all."""


@dataclass(frozen=True)
class Manifest:
    """A manifest's bytes as the registry has them."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    def document(self) -> dict[str, Any]:
        """Parse it. Raises RegistryError."""
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RegistryError("invalid manifest: no JSON object")
        return value


class Registry:
    """One repository at one registry, for one login. Use as an asynchronous context manager."""

    def __init__(
        self, name: names.Reference, settings: RegistrySettings, credentials: Credentials, *, push: bool = False
    ) -> None:
        self.name = name
        self.settings = settings
        self._credentials = credentials
        self._scope = f"repository:{name.path}:{'pull,push' if push else 'pull'}"
        self._without_mirrors = push
        self._endpoint: Endpoint | None = None
        self._authorization: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Registry:
        self._session = aiohttp.ClientSession(
            headers=me(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=STALL),
            auto_decompress=False,
            trust_env=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    # -- addresses ----------------------------------------------------------------------------------------------------

    def endpoints(self) -> list[Endpoint]:
        """Return where to try, best first."""
        host = self.name.domain
        found: list[Endpoint] = []
        if host == names.DEFAULT_DOMAIN:
            if not self._without_mirrors:
                for mirror in self.settings.registry_mirrors:
                    parts = urlsplit(mirror)
                    tls: ssl.SSLContext | bool = True
                    if parts.scheme == "https":
                        tls = self._tls(parts.netloc)
                    found.append(Endpoint(mirror.rstrip("/"), tls, mirror=True))
            return [*found, Endpoint(f"https://{DEFAULT_HOST}", self._tls(DEFAULT_HOST))]
        found.append(Endpoint(f"https://{host}", self._tls(host)))
        if self.settings.is_insecure(host):
            found.append(Endpoint(f"http://{host}", True))
        return found

    def _tls(self, host: str) -> ssl.SSLContext | bool:
        if self.settings.is_insecure(host):
            return False
        folder = self.settings.certificates / host
        if not folder.is_dir():
            return True
        context = ssl.create_default_context()
        for file in sorted(folder.iterdir()):
            try:
                if file.suffix == ".crt":
                    context.load_verify_locations(file)
                elif file.suffix == ".cert":
                    context.load_cert_chain(file, file.with_suffix(".key"))
            except (OSError, ssl.SSLError) as error:
                raise RegistryError(f"cannot use {file}: {error}") from None
        return context

    async def connect(self) -> None:
        """Find the address that answers, and log in if it asks for that. Raises RegistryError, Unauthorized."""
        if self._endpoint is not None:
            return
        failures: list[EngineError] = []
        for endpoint in self.endpoints():
            url = f"{endpoint.base}/v2/"
            try:
                async with self._http.get(url, ssl=endpoint.tls, allow_redirects=False) as response:
                    if response.status == 401:
                        await self._log_in(endpoint, response.headers.getall("WWW-Authenticate", []))
                    elif response.status == 404 and not endpoint.mirror:
                        raise RegistryError(f"{url} is no registry (404)")
                    elif response.status >= 500:
                        raise RegistryError(f"received unexpected HTTP status: {response.status} {response.reason}")
            except Unauthorized:
                if not endpoint.mirror:
                    raise
                continue
            except (aiohttp.ClientError, TimeoutError, OSError, UnicodeError) as error:
                failures.append(RegistryError(f'Get "{url}": {why_not(error)}'))
                continue
            except EngineError as error:
                failures.append(error)
                continue
            self._endpoint = endpoint
            return
        raise failures[-1] if failures else RegistryError(f"no address for {self.name.domain}")

    def give_up_mirror(self) -> bool:
        """Go on without the mirror that is in use; false when it is none."""
        if self._endpoint is None or not self._endpoint.mirror:
            return False
        self._endpoint = None
        self._authorization = {}
        self._without_mirrors = True
        return True

    @property
    def _http(self) -> aiohttp.ClientSession:
        assert self._session is not None, "use Registry as a context manager"
        return self._session

    # -- logging in ---------------------------------------------------------------------------------------------------

    async def _log_in(self, endpoint: Endpoint, challenges: Sequence[str], scope: str = "") -> None:
        own = Credentials() if endpoint.mirror else self._credentials
        for challenge in challenges:
            scheme, _, rest = challenge.partition(" ")
            values = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            if scheme.lower() == "bearer" and values.get("realm"):
                token = own.registry_token or await self._token(endpoint, values, own, scope or self._scope)
                self._authorization = {"Authorization": f"Bearer {token}"}
                return
            if scheme.lower() == "basic":
                if not own.username:
                    raise Unauthorized(
                        f'Head "{endpoint.base}/v2/{self.name.path}": no basic auth credentials; use docker login {self.name.domain}'
                    )
                self._authorization = _basic(own)
                return
        raise Unauthorized(f"{self.name.domain} asks for a login of a kind that is not known: {', '.join(challenges)}")

    async def _token(self, endpoint: Endpoint, challenge: Mapping[str, str], own: Credentials, scope: str) -> str:
        realm = urljoin(endpoint.base + "/", challenge["realm"])
        parts = urlsplit(realm)
        secret = bool(own.username or own.identity_token)
        if parts.scheme not in ("http", "https"):
            raise RegistryError(f"{self.name.domain} names a token server with a strange address: {realm}")
        if parts.scheme == "http" and secret and not self.settings.is_insecure(parts.netloc):
            raise RegistryError(f"{self.name.domain} wants the login to be sent without TLS to {realm}: refused")
        values = {"service": challenge.get("service", ""), "scope": challenge.get("scope") or scope}
        if scope != self._scope:
            values["scope"] = scope
        values = {key: value for key, value in values.items() if value}
        tls = self._tls(parts.netloc) if parts.scheme == "https" else True
        try:
            if own.identity_token:
                form = {
                    **values,
                    "grant_type": "refresh_token",
                    "refresh_token": own.identity_token,
                    "client_id": "docker",
                }
                async with self._http.post(realm, data=form, ssl=tls) as response:
                    return await self._read_token(response)
            headers = _basic(own) if own.username else {}
            if own.username:
                values["account"] = own.username
            for pause in (*_TOKEN_PAUSES, 0):
                async with self._http.get(realm, params=values, headers=headers, ssl=tls) as response:
                    if response.status < 500 or not pause:
                        return await self._read_token(response)
                await asyncio.sleep(pause)
            raise AssertionError("the last try returns or raises")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RegistryError(f'Get "{realm}": {why_not(error)}') from None

    async def _read_token(self, response: aiohttp.ClientResponse) -> str:
        body = await response.content.read(1 << 20)
        if 400 <= response.status < 500:
            kind = Unauthorized if response.status in (401, 403) else RegistryError
            raise kind(_refusal(response.status, body))
        if response.status != 200:
            raise RegistryError(f"received unexpected HTTP status: {response.status} {response.reason}")
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"unable to decode token response: {error}") from None
        token = value.get("token") or value.get("access_token") if isinstance(value, dict) else None
        if not isinstance(token, str):
            raise RegistryError("authorization server did not include a token in the response")
        return token

    # -- requests -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Callable[[], Any] | bytes | None = None,
        expect: Sequence[int] = (200,),
        params: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request below ``/v2/<repository>/`` (or to a full address of the same registry), logging in again once.

        Raises NotFound, Unauthorized, RegistryError. ``data`` is called for every attempt.
        """
        await self.connect()
        assert self._endpoint is not None
        url = path if "://" in path else f"{self._endpoint.base}/v2/{self.name.path}/{path}"
        same = urlsplit(url)[:2] == urlsplit(self._endpoint.base)[:2]
        tls = self._endpoint.tls if same else self._tls(urlsplit(url).netloc)
        for attempt in (1, 2):
            body = data() if callable(data) else data
            sent = {**(headers or {}), **(self._authorization if same else {})}
            try:
                async with self._http.request(method, url, headers=sent, data=body, ssl=tls, params=params) as response:
                    if response.status == 401 and attempt == 1:
                        await self._log_in(self._endpoint, response.headers.getall("WWW-Authenticate", []))
                        continue
                    if response.status not in expect:
                        raise await self._error(method, response)
                    yield response
                    return
            except (aiohttp.ClientError, TimeoutError) as error:
                raise RegistryError(f'{method.title()} "{url}": {why_not(error)}') from error

    async def _error(self, method: str, response: aiohttp.ClientResponse) -> EngineError:
        text = ""
        try:
            value = json.loads(await response.content.read(65536))
            text = "; ".join(
                f"{str(each.get('code') or '').lower().replace('_', ' ')}: {each.get('message') or ''}".strip(": ")
                for each in value["errors"]
            )
        except (ValueError, KeyError, TypeError, AttributeError, aiohttp.ClientError):
            pass
        what = text or f"{response.status} {response.reason}"
        if response.status == 404:
            return NotFound(what)
        if response.status == 401:
            return Unauthorized(text or "unauthorized: authentication required")
        if response.status == 403:
            return RegistryError(text or "denied: requested access to the resource is denied")
        if response.status == 429:
            return RegistryError(f"toomanyrequests: {text or 'the registry wants fewer requests; try later or log in'}")
        return RegistryError(f"received unexpected HTTP status: {what} ({method} {response.url.path})")

    async def manifest(self, reference: str) -> Manifest:
        """Fetch a manifest or an index by tag or digest, whose digest then is checked. Raises NotFound, RegistryError."""
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        async with self.request("GET", f"manifests/{reference}", headers=accept) as response:
            data = await response.content.read(media.MAX_DOCUMENT)
            while len(data) < media.MAX_DOCUMENT and (more := await response.content.read(media.MAX_DOCUMENT)):
                data += more
            found = Manifest(data, response.headers.get("Content-Type", "").partition(";")[0].strip())
        if len(data) >= media.MAX_DOCUMENT:
            raise RegistryError(
                f"manifest of {self.name.familiar_name} is larger than {media.MAX_DOCUMENT} bytes: refused"
            )
        if reference.startswith("sha256:") and found.digest != reference:
            raise RegistryError(
                f"manifest verification failed for digest {reference}: the registry sent {found.digest}"
            )
        return found

    async def tags(self) -> list[str]:
        """Return every tag of the repository."""
        found: list[str] = []
        path = "tags/list"
        for _page in range(1000):
            async with self.request("GET", path) as response:
                value = await response.json(content_type=None)
                found.extend(str(tag) for tag in value.get("tags") or [])
                link = re.match(r'<([^>]+)>;\s*rel="?next"?', response.headers.get("Link", ""))
                if link is None:
                    return found
                path = urljoin(str(response.url), link[1])
        return found

    async def check_login(self) -> None:
        """Raise Unauthorized when the registry does not take the credentials."""
        await self.connect()
        assert self._endpoint is not None
        url = f"{self._endpoint.base}/v2/"
        if not self._authorization and self._credentials.username:
            self._authorization = _basic(self._credentials)
        try:
            async with self._http.get(url, headers=self._authorization, ssl=self._endpoint.tls) as response:
                if response.status == 401:
                    raise Unauthorized(f"login attempt to {url} failed with status: 401 Unauthorized")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RegistryError(f'Get "{url}": {why_not(error)}') from None


def _refusal(status: int, body: bytes) -> str:
    """Return what a token server says when it gives none, in the words that people know from dockerd."""
    codes = {401: "unauthorized", 403: "denied", 429: "toomanyrequests"}
    shown = body[:2000].decode("utf-8", "replace")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return f'error parsing HTTP {status} response body: {error}: "{shown}"'
    if not isinstance(value, dict):
        value = {}
    if isinstance(value.get("details"), str) and value["details"]:
        return f"{codes.get(status, 'unknown')}: {value['details']}"
    errors = {key.lower(): each for key, each in value.items()}.get("errors")
    said = []
    for each in errors if isinstance(errors, list) else []:
        fields = {key.lower(): text for key, text in each.items()} if isinstance(each, dict) else {}
        if fields.get("code"):
            said.append(f"{str(fields['code']).lower()}: {fields.get('message') or 'unknown error'}")
    if said:
        return "\n".join(said)
    if status == 401:
        return "unauthorized: authentication required"
    return f'error parsing HTTP {status} response body: no error details found in HTTP response body: "{shown}"'


def _basic(own: Credentials) -> dict[str, str]:
    token = base64.b64encode(f"{own.username}:{own.password}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


async def login(settings: RegistrySettings, value: Mapping[str, Any]) -> dict[str, Any]:
    """Check credentials at their registry; returns the answer of POST /auth. Raises Unauthorized, Unavailable, InvalidParameter."""
    own = Credentials.of(value)
    address = own.server or DEFAULT_LOGIN
    host = address.partition("://")[2] if "://" in address else address
    host = host.partition("/")[0]
    if host in ("index.docker.io", names.DEFAULT_DOMAIN, DEFAULT_HOST, ""):
        host = names.DEFAULT_DOMAIN
    if not names.is_domain(host):
        raise InvalidParameter(f"invalid registry address: {address!r}")
    reference = names.Reference(host, "login")
    try:
        async with Registry(reference, settings, own) as registry:
            registry._scope = ""
            await registry.check_login()
    except RegistryError as error:
        raise Unavailable(str(error)) from error
    return {"Status": "Login Succeeded", "IdentityToken": ""}
