"""Fetches a file that a client named by address: a root file system to import, a build's context or ADD source."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

import aiohttp

from moorage_guest.errors import InvalidParameter

#: Seconds to connect, and without a byte.
PATIENCE = 60.0


@asynccontextmanager
async def fetched(address: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """Open an http or https address. Raises InvalidParameter when it does not give the file."""
    if not re.match(r"https?://", address):
        raise InvalidParameter(f"invalid source {address!r}: only http and https addresses are fetched")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False, trust_env=True) as session,
            session.get(address, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.status >= 400:
                raise InvalidParameter(f"failed to GET {address} with status {response.status} {response.reason}")
            yield response
    except (aiohttp.ClientError, TimeoutError) as error:
        raise InvalidParameter(f'Get "{address}": {why_not(error)}') from None


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[aiohttp.StreamReader]:
    """Open an http or https address as a stream of bytes. Raises InvalidParameter."""
    async with fetched(address) as response:
        yield response.content


def modified(response: aiohttp.ClientResponse) -> float:
    """Return Last-Modified as seconds since the epoch; 0 when the server does not say."""
    try:
        return parsedate_to_datetime(response.headers.get("Last-Modified", "")).timestamp()
    except (TypeError, ValueError):
        return 0.0


def why_not(error: BaseException) -> str:
    """Say why a server could not be asked, in the words that people know from dockerd."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"tls: failed to verify certificate: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {error.host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        why = os.strerror(number).lower() if number else str(error.os_error)
        return f"dial tcp {error.host}:{error.port}: connect: {why}"
    if isinstance(error, TimeoutError):
        return "net/http: request canceled (the server did not answer in time)"
    return str(error) or type(error).__name__
