"""What a registry knows about an image, asked without pulling it, and the search of the public registry."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from moorage_guest.errors import InvalidParameter, Unavailable
from moorage_guest.images import content as media
from moorage_guest.images import names
from moorage_guest.images.registry import Credentials, Registry, RegistryError, RegistrySettings
from moorage_guest.images.remote import me
from moorage_guest.web import aiohttp

#: Where names are searched that have no registry of their own.
SEARCH_HOST = "index.docker.io"


@contextlib.contextmanager
def _told_as_unavailable() -> Iterator[None]:
    """A registry that fails is no failure of this engine: 503 rather than 500."""
    try:
        yield
    except RegistryError as error:
        raise Unavailable(str(error)) from error


async def describe(settings: RegistrySettings, reference: names.Reference, own: Credentials) -> dict[str, Any]:
    """Return the answer of GET /distribution/…/json. Raises NotFound, Unauthorized, Unavailable."""
    with _told_as_unavailable():
        return await _describe(settings, reference, own)


async def _describe(settings: RegistrySettings, reference: names.Reference, own: Credentials) -> dict[str, Any]:
    async with Registry(reference, settings, own) as registry:
        manifest = await registry.manifest(reference.digest or reference.tag)
        document = manifest.document()
        kind = manifest.media_type or str(document.get("mediaType") or media.MANIFEST)
        if "manifests" in document:
            platforms = [_platform(each.get("platform") or {}) for each in document["manifests"]]
        else:
            async with registry.request("GET", f"blobs/{document['config']['digest']}") as response:
                platforms = [_platform(media.parse_document(await response.content.read(media.MAX_DOCUMENT)))]
    descriptor = {"mediaType": kind, "digest": manifest.digest, "size": len(manifest.data)}
    return {"Descriptor": descriptor, "Platforms": platforms}


def _platform(value: Mapping[str, Any]) -> dict[str, Any]:
    found = {"architecture": str(value.get("architecture") or ""), "os": str(value.get("os") or "")}
    for name in ("os.version", "variant"):
        if value.get(name):
            found[name] = str(value[name])
    return found


async def search(
    settings: RegistrySettings, term: str, limit: int, filters: Mapping[str, list[str]], own: Credentials
) -> list[dict[str, Any]]:
    """Return the answer of GET /images/search. Raises InvalidParameter, Unavailable when the index does not answer."""
    for name, values in filters.items():
        for value in values:
            known = r"-?\d+" if name == "stars" else r"(?i)0|1|true|false"
            if not re.fullmatch(known, value):
                raise InvalidParameter(f"invalid filter '{name}={value}'")
    host, _, rest = term.partition("/")
    if not rest or not ("." in host or ":" in host or host == "localhost"):
        host, rest = SEARCH_HOST, term.removeprefix("library/")
    scheme = "http" if settings.is_insecure(host) else "https"
    address = f"{scheme}://{host}/v1/search?{urlencode({'q': rest, 'n': limit})}"
    auth = aiohttp.BasicAuth(own.username, own.password) if own.username else None
    try:
        async with (
            aiohttp.ClientSession(headers=me(), timeout=aiohttp.ClientTimeout(total=60), trust_env=True) as session,
            session.get(address, auth=auth) as response,
        ):
            if response.status != 200:
                raise Unavailable(f"Unexpected status code {response.status} from {host}")
            value = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unavailable(f'Get "{address}": {error}') from None
    results = value.get("results") if isinstance(value, dict) else None
    return [each for each in results or [] if isinstance(each, dict) and _wanted(each, filters)][:limit]


def _wanted(result: Mapping[str, Any], filters: Mapping[str, list[str]]) -> bool:
    for name, field in (("is-official", "is_official"), ("is-automated", "is_automated")):
        for value in filters.get(name, []):
            if bool(result.get(field)) != (value.lower() in ("1", "true")):
                return False
    stars = [int(value) for value in filters.get("stars", []) if re.fullmatch(r"\d+", value)]
    return int(result.get("star_count") or 0) >= max(stars, default=0)
