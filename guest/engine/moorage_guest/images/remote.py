"""Fetches a file that a client named by address: a root file system to import, a build's context or ADD source."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from email.utils import parsedate_to_datetime

from moorage_contract.version import ENGINE_VERSION

from moorage_guest.errors import InvalidParameter
from moorage_guest.web import aiohttp

#: What servers are told of who asks.
ME = {"User-Agent": f"docker/{ENGINE_VERSION} (linux) Moorage"}

#: Who asked the daemon for what it now asks a server for: the User-Agent of the request that is being answered.
UPSTREAM: ContextVar[str] = ContextVar("upstream", default="")
_SPECIAL, _ESCAPED = re.compile(r"[\\();]"), r"\\\g<0>"


def me() -> dict[str, str]:
    """Return the header by which registries are told who asks, and on whose behalf."""
    client = UPSTREAM.get()[:200]
    if not client or not client.isascii() or not client.isprintable():
        return ME
    return {"User-Agent": f"{ME['User-Agent']} UpstreamClient({_SPECIAL.sub(_ESCAPED, client)})"}


#: Seconds to connect, and without a byte.
PATIENCE = 60.0

#: Verification results (X509_V_ERR_*) of a chain that ends at no authority we know: no issuer, self-signed, no first link.
UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})

#: What OpenSSL's releases call an answer that is no TLS at all.
SPOKE_PLAIN = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})


@asynccontextmanager
async def fetched(address: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """Open an http or https address. Raises InvalidParameter when it does not give the file."""
    if not re.match(r"https?://", address):
        raise InvalidParameter(f"invalid source {address!r}: only http and https addresses are fetched")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
    try:
        async with (
            aiohttp.ClientSession(headers=ME, timeout=timeout, auto_decompress=False, trust_env=True) as session,
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
        return f"tls: failed to verify certificate: x509: {_distrust(error.certificate_error)}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):  # its number is OpenSSL's, not the system's
        return _no_handshake(error.os_error)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {error.host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        why = os.strerror(number).lower() if number else str(error.os_error)
        return f"dial tcp {error.host}:{error.port}: connect: {why}"
    if isinstance(error, TimeoutError):
        return "net/http: request canceled (the server did not answer in time)"
    return str(error) or type(error).__name__


def _distrust(error: Exception) -> str:
    """Say what is wrong with a server's certificate; the number is OpenSSL's X509_V_ERR."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return str(error)
    if error.verify_code in UNKNOWN_AUTHORITY:
        return f"certificate signed by unknown authority ({error.verify_message})"
    return error.verify_message


def _no_handshake(error: OSError) -> str:
    """Say why no encrypted connection came about."""
    reason = getattr(error, "reason", None)
    if reason in SPOKE_PLAIN:
        return "http: server gave HTTP response to HTTPS client"
    return f"tls: handshake failed: {reason or error}"
