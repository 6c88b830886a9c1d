"""Another host on which the machine runs: one SSH connection to its sshd, and through it libvirt and the guest's SSH port.

Its host key must be in the user's known_hosts. Everything here blocks; the backend calls it from threads.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import shlex
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from moorage_host.errors import ErrorCode, HostError
from moorage_host.link import ssh
from moorage_host.link.forwarder import Forwarder, tcp_listener, unix_listener
from moorage_host.link.remote_uri import RemoteUri

logger = logging.getLogger(__name__)

TIMEOUT = 20.0
DEAD = 30  # seconds without an acknowledgement after which the system gives a connection up
LOOPBACK = "127.0.0.1"
SYSTEM_SOCKETS = ("/run/libvirt/libvirt-sock", "/var/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
SESSION_SOCKETS = ("/run/user/{uid}/libvirt/libvirt-sock", "/run/user/{uid}/libvirt/virtqemud-sock")
EVERYBODYS = Path("/etc/ssh/ssh_known_hosts")
# Each line is a question; the answers are lines, too.
_QUESTIONS = 'command -v virt-ssh-helper || echo; uname -sr; id -u; printf "%s\\n" "$HOME"'


@dataclass(frozen=True)
class Survey:
    """What must be known of the host: the helper that leads to its libvirt ("" when there is none), kernel, user id, home."""

    helper: str
    kernel: str
    uid: str
    home: str


@dataclass(frozen=True)
class _Target:
    """Where to connect, by the URI and the user's ~/.ssh/config."""

    host: str
    user: str
    port: int
    keyfiles: list[str]
    known_hosts: Path

    def command(self) -> str:
        """What the user would type to log in by hand."""
        port = f"-p {self.port} " if self.port != 22 else ""
        return f"ssh {port}{self.user}@{self.host}"


class RemoteHost:
    """The connection to one host. Thread-safe; a broken connection is made anew by the next `connect`."""

    def __init__(self, uri: RemoteUri, libvirt_socket: Path) -> None:
        self._uri = uri
        self._libvirt_socket = libvirt_socket
        self._lock = threading.RLock()
        self._client: paramiko.SSHClient | None = None
        self._survey: Survey | None = None
        self._libvirt: Forwarder | None = None
        self._guest: Forwarder | None = None
        self._guest_port = 0
        self._said = ""
        self._listening: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The host as the user calls it."""
        return self._uri.host

    @property
    def session(self) -> bool:
        """Whether it is the remote user's own libvirt rather than the system's."""
        return self._uri.session

    @property
    def said(self) -> str:
        """The last words of the helper that leads to the host's libvirt, when it could not; waits a moment for them."""
        if self._listening is not None:
            self._listening.join(2)
        return self._said

    def connect(self) -> Survey:
        """Be connected, and know the host. Raises HostError with what to do."""
        with self._lock:
            if self._survey is not None and self._alive():
                return self._survey
            self._drop()
            client = _connected(_target(self._uri))
            try:
                self._survey = _survey(client, self.name)
            except BaseException:
                client.close()
                raise
            self._client = client
            logger.info("connected to %s (%s)", self.name, self._survey.kernel)
            return self._survey

    def _alive(self) -> bool:
        transport = self._client.get_transport() if self._client is not None else None
        return transport is not None and transport.is_active()

    def _transport(self) -> ssh.TunnelTransport:
        transport = self._client.get_transport() if self._client is not None else None
        if not isinstance(transport, ssh.TunnelTransport) or not transport.is_active():
            raise HostError(f"there is no connection to {self.name}", code=ErrorCode.UNAVAILABLE)
        return transport

    def flush(self) -> None:
        """Let the host write to its disks what it has been given. What comes of it is not told: it is a precaution."""
        with contextlib.suppress(HostError, paramiko.SSHException, OSError):
            _output(self._transport(), "sync", 120)

    # -- libvirt

    def libvirt_uri(self) -> str:
        """The URI of a socket here, its owner's alone, behind which the host's libvirt answers. Connects when needed."""
        self.connect()
        with self._lock:
            self._said = ""
            if self._libvirt is None:
                self._libvirt = Forwarder(unix_listener(self._libvirt_socket), self._open_libvirt, name="libvirt")
            driver = "qemu+unix:///" + ("session" if self._uri.session else "system")
            return f"{driver}?socket={self._libvirt_socket}"

    def _open_libvirt(self) -> paramiko.Channel:
        survey, transport = self.connect(), self._transport()
        if self._uri.socket:
            return self._unix_socket(transport, [self._uri.socket])
        if not survey.helper:
            sockets = SESSION_SOCKETS if self._uri.session else SYSTEM_SOCKETS
            return self._unix_socket(transport, [path.format(uid=survey.uid) for path in sockets])
        try:
            channel = transport.open_session(timeout=TIMEOUT)
            channel.exec_command(f"{shlex.quote(survey.helper)} {self._uri.driver}")
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._drop()
            raise HostError(f"{self.name} takes no command: {error}", code=ErrorCode.UNAVAILABLE) from error
        self._listening = threading.Thread(target=self._listen, args=(channel,), name="libvirt-helper", daemon=True)
        self._listening.start()
        return channel

    def _unix_socket(self, transport: ssh.TunnelTransport, paths: list[str]) -> paramiko.Channel:
        for path in paths:
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                return transport.open_streamlocal(path, TIMEOUT)
        self._said = f"nobody answers at {' nor at '.join(paths)}, and `virt-ssh-helper` is not installed"
        raise HostError(self._said, code=ErrorCode.UNAVAILABLE)

    def _listen(self, channel: paramiko.Channel) -> None:
        """Keep what the helper says on its standard error; it talks to a socket of libvirt's and says something when it fails."""
        words = b""
        with contextlib.suppress(OSError, EOFError):
            while data := channel.recv_stderr(4096):
                words = (words + data)[-4096:]
        if words.strip():
            self._said = words.decode("utf-8", "replace").strip().splitlines()[-1]

    # -- the guest

    def guest_port(self, port: int) -> int:
        """A port on 127.0.0.1 here that leads to `port` on the host's own loopback."""
        with self._lock:
            if self._guest is not None and self._guest_port == port:
                return self._guest.address[1]
            if self._guest is not None:
                self._guest.close()
            self._guest_port = port
            self._guest = Forwarder(tcp_listener(LOOPBACK, 0), self._open_guest, name="guest")
            return self._guest.address[1]

    def _open_guest(self) -> paramiko.Channel:
        try:
            return self._transport().open_channel(
                "direct-tcpip", (LOOPBACK, self._guest_port), (LOOPBACK, 0), timeout=TIMEOUT, window_size=ssh.WINDOW
            )
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostError(
                f"{self.name} does not lead to the guest: {error}",
                hint="does its sshd allow TCP forwarding (AllowTcpForwarding)?",
                code=ErrorCode.UNAVAILABLE,
            ) from error

    # -- the end

    def _drop(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def close(self) -> None:
        """Close the connection and the ways through it. Idempotent."""
        self._drop()
        with self._lock:
            ways, self._libvirt, self._guest = (self._libvirt, self._guest), None, None
        for way in ways:
            if way is not None:
                way.close()
        self._libvirt_socket.unlink(missing_ok=True)


def _target(uri: RemoteUri) -> _Target:
    config = paramiko.SSHConfig()
    path = Path.home() / ".ssh" / "config"
    try:
        if path.exists():
            config = paramiko.SSHConfig.from_path(str(path))
        found = config.lookup(uri.host)
    except (OSError, paramiko.SSHException) as error:
        raise HostError(f"{path} cannot be used: {error}", hint="mend it", code=ErrorCode.INVALID) from error
    for word in ("proxycommand", "proxyjump"):
        if found.get(word, "none") != "none":
            raise HostError(
                f"{path} has {word} for {uri.host}, which Moorage does not do",
                hint="name a host that can be reached directly, or forward a port to it and name that",
                code=ErrorCode.INVALID,
            )
    known = uri.known_hosts or Path.home() / ".ssh" / "known_hosts"
    return _Target(
        host=found["hostname"],
        user=uri.user or found.get("user") or os.environ.get("USER") or os.environ.get("LOGNAME") or "root",
        port=uri.port or int(found.get("port", 22)),
        keyfiles=[str(uri.keyfile)] if uri.keyfile else list(found.get("identityfile", [])),
        known_hosts=known,
    )


class _Strict(paramiko.MissingHostKeyPolicy):
    def __init__(self, target: _Target) -> None:
        self._target = target

    def missing_host_key(self, _client: paramiko.SSHClient, _hostname: str, key: paramiko.PKey) -> None:
        raise HostError(
            f"{self._target.host} is not in {self._target.known_hosts}: it shows the {key.get_name()} host key {key.fingerprint}",
            hint=f"if that is its key, make it known: {self._target.command()}",
            code=ErrorCode.UNAVAILABLE,
        )


def _connected(target: _Target) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    stream: socket.socket | None = None
    try:
        known = client.get_host_keys()
        for path in (EVERYBODYS, target.known_hosts):
            for entry in _known(path):
                for name in entry.hostnames or []:
                    known.add(name, entry.key.get_name(), entry.key)
        client.set_missing_host_key_policy(_Strict(target))
        stream = socket.create_connection((target.host, target.port), timeout=TIMEOUT)
        _give_up_soon(stream)
        client.connect(
            target.host,
            target.port,
            target.user,
            sock=stream,
            key_filename=[path for path in target.keyfiles if Path(path).exists()] or None,  # type: ignore[arg-type]  # a list will do
            timeout=TIMEOUT,
            banner_timeout=TIMEOUT,
            auth_timeout=TIMEOUT,
            transport_factory=ssh.TunnelTransport,  # type: ignore[arg-type]  # the stub wants parameters that are gone
        )
        _refuse_revoked(client, target)
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(ssh.KEEPALIVE)
        return client
    except BaseException as error:
        client.close()
        if stream is not None:
            stream.close()
        if isinstance(error, HostError) or not isinstance(error, (paramiko.SSHException, OSError, EOFError)):
            raise
        raise _failure(error, target) from error


def _failure(error: Exception, target: _Target) -> HostError:
    """The error of a connection that could not be made, in a sentence."""
    where = f"{target.host}:{target.port}"
    code = ErrorCode.UNAVAILABLE
    if isinstance(error, paramiko.BadHostKeyException):
        return HostError(
            f"{where} shows another host key ({error.key.fingerprint}) than the one in {target.known_hosts}",
            hint=f"find out why; when it is right: ssh-keygen -R {_known_name(target)}, then {target.command()}",
            code=code,
        )
    if isinstance(error, paramiko.PasswordRequiredException):
        return HostError(
            f"the key for {target.user}@{where} is encrypted", hint="add it to your agent: ssh-add", code=code
        )
    if isinstance(error, paramiko.AuthenticationException) or "No authentication methods" in str(error):
        return HostError(
            f"{where} does not let {target.user} log in ({error})",
            hint=f"it takes a key, from ssh-agent, ~/.ssh or ?keyfile=; does `{target.command()}` work without a password?",
            code=code,
        )
    return HostError(
        f"{where} cannot be reached over SSH: {error or type(error).__name__}",
        hint=f"does `{target.command()}` work?",
        code=code,
    )


def _known_name(target: _Target) -> str:
    return target.host if target.port == 22 else f"'[{target.host}]:{target.port}'"


def _give_up_soon(stream: socket.socket) -> None:
    """A host that went away without a word is noticed within seconds, not minutes."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
    if option is not None:
        stream.setsockopt(socket.IPPROTO_TCP, option, DEAD * 1000)


def _known(path: Path) -> Iterator[paramiko.hostkeys.HostKeyEntry]:
    """The hosts that a file makes known by their own keys. Lines that paramiko does not understand make none known."""
    for line in _lines(path):
        if not line.startswith(("#", "@")):
            with contextlib.suppress(paramiko.hostkeys.InvalidHostKey):
                entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
                if entry is not None and entry.key is not None:
                    yield entry


def _refuse_revoked(client: paramiko.SSHClient, target: _Target) -> None:
    transport = client.get_transport()
    assert transport is not None
    shown = base64.b64encode(transport.get_remote_server_key().asbytes()).decode("ascii")
    for path in (EVERYBODYS, target.known_hosts):
        if any(line.startswith("@revoked") and shown in line.split() for line in _lines(path)):
            raise HostError(
                f"the host key of {target.host} is revoked in {path}",
                hint="find out why, and give the host another one",
                code=ErrorCode.UNAVAILABLE,
            )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except FileNotFoundError:
        return []


def _survey(client: paramiko.SSHClient, name: str) -> Survey:
    transport = client.get_transport()
    assert transport is not None
    try:
        lines = _output(transport, f"sh -c {shlex.quote(_QUESTIONS)}", TIMEOUT).splitlines()
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise HostError(f"{name} runs no command: {error}", code=ErrorCode.UNAVAILABLE) from error
    if len(lines) != 4:
        raise HostError(
            f"{name} answers a shell command with {' / '.join(lines)[:200] or 'nothing'}",
            hint="the user there needs a login shell that says nothing by itself",
            code=ErrorCode.UNAVAILABLE,
        )
    return Survey(*lines)


def _output(transport: paramiko.Transport, command: str, timeout: float) -> str:
    channel = transport.open_session(timeout=timeout)
    try:
        channel.settimeout(timeout)
        channel.exec_command(command)
        output = b""
        while data := channel.recv(65536):
            output += data
        return output.decode("utf-8", "replace")
    finally:
        channel.close()
