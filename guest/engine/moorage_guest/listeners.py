"""Sockets that the API listens on: unix paths, TCP with mutual TLS, file descriptors of a supervisor.

Nothing listens on TCP without client certificates: that would give root on this machine to whoever can connect.
"""

import contextlib
import grp
import os
import socket
import ssl
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


def open_listener(host: str, tls: TlsFiles | None, group: str = "") -> Listener:
    """Bind one ``--host`` value: unix://PATH, tcp://ADDRESS:PORT or fd://N."""
    parts = urlsplit(host if "://" in host else f"tcp://{host}")
    if parts.scheme == "unix":
        return Listener(_bind_unix(Path(parts.path or parts.netloc), group), Path(parts.path or parts.netloc))
    if parts.scheme == "fd":
        return Listener(_inherited(parts.netloc))
    if parts.scheme == "tcp":
        if tls is None or not tls.verify:
            raise ListenError(
                f"{host}: the API does not listen on TCP without client certificates (it would give root to anyone who "
                "connects); add --tlsverify with --tlscacert, --tlscert and --tlskey, or use a unix socket"
            )
        return Listener(_bind_tcp(parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT), tls=tls.context())
    raise ListenError(
        f'invalid bind address ({host}): unsupported proto "{parts.scheme}"; use unix://, tcp:// or fd://'
    )


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


def _inherited(name: str) -> socket.socket:
    """Take a socket of systemd's socket activation (sd_listen_fds(3)): fd:// is the first, fd://4 that one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise ListenError("no sockets found via socket activation: make sure the service was started by systemd")
    number = int(name) if name.isdigit() else 3
    return socket.socket(fileno=number)
