"""Listening sockets on the host whose connections go into the guest, byte for byte, with half-close both ways."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from moorage_contract.postponed import postponed

from moorage_host.errors import ErrorCode, HostError

with postponed("paramiko"):
    import paramiko

logger = logging.getLogger(__name__)

CHUNK = 128 * 1024
Opener = Callable[[], "paramiko.Channel"]
LINGER = 5.0  # seconds that a client who is refused gets to send what it had to say


class Forwarder:
    """One listening socket; each connection is pumped to the channel that `opener` gives for it.

    `opener` may block and raises HostError when there is no way into the guest: the client then gets what `refusal` makes of
    that, nothing by default, and sees its connection closed.
    """

    def __init__(
        self,
        listener: socket.socket,
        opener: Opener,
        *,
        name: str,
        refusal: Callable[[HostError], bytes] = lambda _error: b"",
    ) -> None:
        self._listener = listener
        self._opener = opener
        self._refusal = refusal
        self._name = name
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name=f"forward {name}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where a TCP forwarder listens."""
        name: tuple[str, int] = self._listener.getsockname()[:2]
        return name

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    client.close()
                    return
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), name=f"forward {self._name}", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            channel = self._opener()
        except HostError as error:
            logger.info("forward %s: %s", self._name, error)
            _refuse(client, self._refusal(error))
            self._forget(client)
            return
        back = threading.Thread(target=_to_client, args=(channel, client), name=f"forward {self._name}", daemon=True)
        back.start()
        try:
            _to_guest(client, channel)
            back.join()
        finally:
            channel.close()
            self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        with self._lock:
            self._open.discard(client)
        client.close()

    def close(self) -> None:
        """Stop listening and cut every connection. Idempotent."""
        with self._lock:
            self._closed = True
            clients = list(self._open)
        # shutdown wakes the thread in accept(2); close alone would not
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)


def _refuse(client: socket.socket, words: bytes) -> None:
    """Say so much and hang up, once the client has: closed with something unread, the connection would break before that."""
    if not words:
        return
    with contextlib.suppress(OSError):
        client.settimeout(LINGER)
        client.sendall(words)
        client.shutdown(socket.SHUT_WR)
        while client.recv(CHUNK):
            pass


def _to_guest(client: socket.socket, channel: paramiko.Channel) -> None:
    """Until the client has said its last, which closes our half alone."""
    with contextlib.suppress(OSError, EOFError):
        while data := client.recv(CHUNK):
            channel.sendall(data)
    with contextlib.suppress(OSError, EOFError):
        channel.shutdown_write()


def _to_client(channel: paramiko.Channel, client: socket.socket) -> None:
    """Until the guest has said its last; a guest that closed the channel altogether wakes the other half too."""
    whole = True
    try:
        while data := channel.recv(CHUNK):
            client.sendall(data)
    except (OSError, EOFError):
        whole = False
    with contextlib.suppress(OSError):
        # Once the guest closed the channel nothing that the client sends can arrive: end its half as well.
        client.shutdown(socket.SHUT_WR if whole and not channel.closed else socket.SHUT_RDWR)


def unix_listener(path: Path) -> socket.socket:
    """A listening unix socket at `path` (0600) in place of whatever stale socket lies there."""
    if path.exists() and not path.is_socket():
        raise HostError(f"{path} is in the way: it is no socket", hint="move it elsewhere", code=ErrorCode.CONFLICT)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen at {path}: {error.strerror}", hint="is its folder writable?") from error
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def tcp_listener(address: str, port: int) -> socket.socket:
    """A listening TCP socket; raises HostError with what the system says when the port cannot be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what accept(2) returns has it, too
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise HostError(
            f"port {port} on {address} cannot be had: {error.strerror}",
            hint="another program uses it, or it needs more rights",
            code=ErrorCode.CONFLICT,
        ) from error
    return listener
