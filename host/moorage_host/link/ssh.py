"""The SSH connection to the guest: pinned host key, and channels to unix sockets and TCP ports in there.

Everything here blocks; the backend calls it from threads.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref

import paramiko

from moorage_host.errors import ErrorCode, HostError
from moorage_host.link.keys import Keys

STREAMLOCAL = "direct-streamlocal@openssh.com"
USER = "root"
KEEPALIVE = 10
WINDOW = 4 << 20
CARE = 2.0  # seconds between two looks at a link that is on its way out


class NobodyListens(HostError):
    """The guest was reached and nothing was sent: whoever should listen there does not, or not yet."""


class TunnelTransport(paramiko.Transport):
    """A transport that can also open channels to unix sockets of the guest (OpenSSH's PROTOCOL, section 2.4)."""

    _wanted = threading.local()

    def open_streamlocal(self, path: str, timeout: float) -> paramiko.Channel:
        """A channel to the unix socket `path` in the guest; raises paramiko.SSHException when nobody listens there."""
        self._wanted.path = path
        try:
            return self.open_channel(STREAMLOCAL, timeout=timeout, window_size=WINDOW)
        finally:
            self._wanted.path = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        # paramiko ends the request for a channel kind that it does not know after the window sizes; this kind goes on.
        path = getattr(self._wanted, "path", None)
        if path is not None:
            self._wanted.path = None
            data.add_string(path)
            data.add_string("")
            data.add_int(0)
        super()._send_user_message(data)  # type: ignore[misc]  # not in the stubs


class Link:
    """One SSH connection. Thread-safe; once closed or broken it stays so and a new one is made."""

    def __init__(self, transport: TunnelTransport) -> None:
        self._transport = transport
        self._clients: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()
        self._own: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()
        self._closed = threading.Event()

    @classmethod
    def connect(cls, address: tuple[str, int], keys: Keys, *, timeout: float) -> Link:
        """Connect and log in. Raises HostError when the guest does not answer in time or shows another key than the pinned one."""
        try:
            stream = socket.create_connection(address, timeout=timeout)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise HostError(
                f"the guest's SSH port {address[0]}:{address[1]} does not answer: {error}", code=ErrorCode.UNAVAILABLE
            ) from error
        transport = TunnelTransport(stream, default_window_size=WINDOW)
        transport.banner_timeout = timeout
        transport.auth_timeout = timeout
        options = transport.get_security_options()
        options.kex = tuple(kex for kex in options.kex if kex.startswith("curve25519"))
        options.key_types = ("ssh-ed25519",)
        try:
            transport.start_client(timeout=timeout)
            shown = transport.get_remote_server_key()
            if shown != keys.host:
                raise HostError(
                    "the machine that answers on the guest's SSH port shows another host key than this machine was given",
                    hint="something else has taken the port; `moorage restart` chooses another",
                )
            transport.auth_publickey(USER, keys.client)
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            raise HostError(
                f"the guest does not answer over SSH: {error or type(error).__name__}",
                hint="see `moorage console`",
                code=ErrorCode.UNAVAILABLE,
            ) from error
        except BaseException:
            transport.close()
            raise
        transport.set_keepalive(KEEPALIVE)
        return cls(transport)

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    def answers(self, timeout: float) -> bool:
        """Whether the guest's sshd answers through this connection within `timeout` seconds. A broken one stays alive
        until TCP gives it up, which takes many minutes."""
        answered = threading.Event()

        def ask() -> None:
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                self._transport.open_session(timeout=timeout).close()
                answered.set()

        # Apart: where nothing is taken any more the question itself cannot be sent, for as long as the link is open.
        asking = threading.Thread(target=ask, name="ssh-answers", daemon=True)
        asking.start()
        asking.join(timeout)
        return answered.is_set()

    def retire(self, *, silence: float, patience: float) -> None:
        """Serve those clients on who came through this link, and nobody else; it is closed when they have left, or when the
        guest has not answered through it for `patience` seconds, asked for `silence` seconds each time. Blocks until then."""
        own = list(self._own)

        def close_own() -> None:
            for channel in own:
                channel.close()

        threading.Thread(target=close_own, name="ssh-retires", daemon=True).start()
        heard = time.monotonic()
        while self.alive and any(not channel.closed for channel in list(self._clients)):
            if self.answers(silence):
                heard = time.monotonic()
            elif time.monotonic() - heard > patience:
                break
            if self._closed.wait(CARE):
                break
        self.close()

    def unix_socket(self, path: str, *, timeout: float = 10, client: bool = False) -> paramiko.Channel:
        """A stream to a unix socket in the guest, for a `client` that is not to lose it while the link is there at all; raises
        HostError when nobody listens there or the link is down."""
        try:
            channel = self._transport.open_streamlocal(path, timeout)
            (self._clients if client else self._own).add(channel)
            return channel
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise NobodyListens(
                f"nobody answers at {path} in the guest: {error}",
                hint="see `moorage console`",
                code=ErrorCode.UNAVAILABLE,
            ) from error

    def tcp(self, host: str, port: int, origin: tuple[str, int], *, timeout: float = 10) -> paramiko.Channel:
        """A stream to a TCP port as seen from the guest; raises HostError when it is refused or the link is down."""
        try:
            channel = self._transport.open_channel(
                "direct-tcpip", (host, port), origin, timeout=timeout, window_size=WINDOW
            )
            self._clients.add(channel)
            return channel
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostError(
                f"{host}:{port} in the guest does not answer: {error}", code=ErrorCode.UNAVAILABLE
            ) from error

    def session(self, *, timeout: float = 10) -> paramiko.Channel:
        """A channel for a command or a shell."""
        try:
            channel = self._transport.open_session(timeout=timeout)
            self._own.add(channel)
            return channel
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostError(f"the guest takes no new session: {error}", code=ErrorCode.UNAVAILABLE) from error

    def upload(self, source: str, target: str) -> None:
        """Copy a file into the guest over SFTP; `target` appears only when it is whole."""
        try:
            with paramiko.SFTPClient.from_transport(self._transport) or _refused() as sftp:
                sftp.put(source, target + ".part")
                sftp.posix_rename(target + ".part", target)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostError(
                f"cannot copy {source} into the guest: {error}", hint="is the machine's disk full?"
            ) from error

    def close(self) -> None:
        """Close the connection and every channel in it. Idempotent."""
        self._closed.set()
        self._transport.close()


def _refused() -> paramiko.SFTPClient:
    raise paramiko.SSHException("the guest offers no SFTP")
