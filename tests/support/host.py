"""A user's folders for the host side, and a guest's sshd that needs no guest."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
from moorage_host.client import Client
from moorage_host.link.keys import Keys, ensure
from moorage_host.link.ssh import STREAMLOCAL
from moorage_host.paths import Paths
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

VARIABLES = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DOCKER_CONFIG")


@contextlib.contextmanager
def user_home() -> Iterator[Path]:
    """A short-named folder (unix sockets allow 107 bytes) that XDG's variables and docker's point into while it exists."""
    folder = Path(tempfile.mkdtemp(prefix="moorage-"))
    before = {name: os.environ.get(name) for name in VARIABLES}
    for name in VARIABLES:
        os.environ[name] = str(folder / name.split("_")[1].lower())
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def backend_client(paths: Paths) -> Iterator[Client]:
    """A client whose backend ends with the test."""
    client = Client(paths)
    try:
        yield client
    finally:
        pid = backend_pid(paths)
        client.stop_backend()
        if pid is not None:
            wait_ended(pid)


def backend_pid(paths: Paths) -> int | None:
    """The pid that the running backend wrote into its lock, if there is one."""
    try:
        return int(paths.backend_lock.read_text())
    except (OSError, ValueError):
        return None


def wait_ended(pid: int, deadline: float = 60) -> None:
    """Until the process is gone; a child of ours is reaped."""
    event = threading.Event()
    for _attempt in range(int(deadline / 0.05)):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        event.wait(0.05)
    raise AssertionError(f"process {pid} did not end within {deadline} s")


class _Server(paramiko.ServerInterface):
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = username == "root" and key == self._keys.client
        return AUTH_SUCCESSFUL if good else AUTH_FAILED

    def get_allowed_auths(self, _username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, _chanid: int) -> int:
        return OPEN_SUCCEEDED if kind == STREAMLOCAL else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


@contextlib.contextmanager
def fake_guest(folder: Path, serve: Callable[[paramiko.Channel], None]) -> Iterator[tuple[tuple[str, int], Keys]]:
    """An SSH server on 127.0.0.1 that hands each channel to `serve` in a thread of its own; its address and the pinned keys."""
    keys = ensure(folder / "id", folder / "host")
    listener = socket.create_server(("127.0.0.1", 0))
    transports: list[paramiko.Transport] = []

    def accept() -> None:
        while True:
            try:
                stream, _address = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(stream)
            transports.append(transport)
            transport.add_server_key(keys.host)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=_Server(keys))
                threading.Thread(target=channels, args=(transport,), daemon=True).start()

    def channels(transport: paramiko.Transport) -> None:
        while transport.is_active():
            channel = transport.accept(0.5)
            if channel is not None:
                threading.Thread(target=serve, args=(channel,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[:2], keys
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        for transport in transports:
            transport.close()
