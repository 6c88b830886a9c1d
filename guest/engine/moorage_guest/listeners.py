"""Sockets that the API listens on: unix paths, TCP with mutual TLS, file descriptors of a supervisor.

Nothing listens on TCP without client certificates: that would give root on this machine to whoever can connect.
"""

import contextlib
import grp
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_PORT = 2376


class ListenError(Exception):
    """An address cannot be listened on; the text says which, why and what to try."""


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the three files that TCP needs."""

    ca: str
    certificate: str
    key: str
    verify: bool

    def context(self) -> ssl.SSLContext:
        """Return a context that demands a client certificate of the given authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ListenError(
                f"cannot load TLS files ({self.ca}, {self.certificate}, {self.key}): {error}; check --tlscacert, --tlscert and --tlskey"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass
class Listener:
    """A listening socket; ``path`` is removed at the end unless a supervisor owns it."""

    socket: socket.socket
    path: Path | None = None
    tls: ssl.SSLContext | None = None

    def close(self) -> None:
        """Close and remove what was bound."""
        self.socket.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def open_listeners(
    host: str, tls: TlsFiles | None, group: str = "", *, passed: Mapping[int, socket.socket] | None = None
) -> list[Listener]:
    """Bind one ``--host`` value: unix://PATH, tcp://ADDRESS:PORT, or fd:// for sockets ``passed`` by systemd."""
    parts = urlsplit(host if "://" in host else f"tcp://{host}")
    if parts.scheme == "unix":
        path = Path(parts.path or parts.netloc)
        return [Listener(_bind_unix(path, group), path)]
    if parts.scheme == "fd":
        return [
            Listener(each) if each.family == socket.AF_UNIX else Listener(each, tls=_context(host, tls))
            for each in _passed(parts.netloc, passed or {})
        ]
    if parts.scheme == "tcp":
        context = _context(host, tls)
        return [Listener(_bind_tcp(parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT), tls=context)]
    raise ListenError(
        f'invalid bind address ({host}): unsupported proto "{parts.scheme}"; use unix://, tcp:// or fd://'
    )


def _context(host: str, tls: TlsFiles | None) -> ssl.SSLContext:
    """Return what a TCP socket needs. Raises ListenError without client certificates."""
    if tls is None or not tls.verify:
        raise ListenError(
            f"{host}: the API does not listen on TCP without client certificates (it would give root to anyone who "
            "connects); add --tlsverify with --tlscacert, --tlscert and --tlskey, or use a unix socket"
        )
    return tls.context()


def _bind_unix(path: Path, group: str) -> socket.socket:
    """Bind mode 0600 (0660 when a group was asked for), replacing a stale socket but not a live one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = socket.socket(socket.AF_UNIX)
    with contextlib.closing(probe):
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ListenError(f"cannot listen on {path}: {error.strerror}") from None
        else:
            raise ListenError(
                f"cannot listen on {path}: another daemon answers there; stop it or choose another --host"
            )
    listener = socket.socket(socket.AF_UNIX)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from None
    finally:
        os.umask(old)
    if group:
        with contextlib.suppress(KeyError):
            os.chown(path, -1, int(group) if group.isdigit() else grp.getgrnam(group).gr_gid)
            path.chmod(0o660)
    listener.listen(4096)
    return listener


def _bind_tcp(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on tcp://{address}:{port}: {error.strerror}") from None
    listener.listen(4096)
    return listener


def _passed(name: str, passed: Mapping[int, socket.socket]) -> list[socket.socket]:
    """Choose of the sockets of systemd's socket activation: fd:// and fd://* are all of them, fd://4 is that one."""
    if not passed:
        raise ListenError("no sockets found via socket activation: make sure the service was started by systemd")
    if name in ("", "*"):
        return list(passed.values())
    number = int(name) if name.isdigit() else -1
    if number not in passed:
        raise ListenError(f"fd://{name}: systemd passed no such socket; it passed {', '.join(map(str, passed))}")
    return [passed[number]]
