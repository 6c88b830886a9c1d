"""What becomes of clients when a connection that was silent for a while is replaced by another."""

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from moorage_host import session as session_module
from moorage_host.errors import HostError
from moorage_host.link.forwarder import Forwarder, unix_listener
from moorage_host.link.ssh import Link, NobodyListens
from moorage_host.paths import Paths
from moorage_host.session import Session
from moorage_host.ways import Ways

from tests.support.host import fake_guest

pytestmark = pytest.mark.timeout(120)


def upper(channel: paramiko.Channel) -> None:
    """Say everything back in capitals, at once."""
    with contextlib.suppress(OSError, EOFError):
        while data := channel.recv(65536):
            channel.sendall(data.upper())
    channel.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[tuple[Session, Path]]:
    """A session, and a socket whose clients it leads into the guest. This guest opens sockets, and never a shell: to `answers`
    it is silent."""
    with fake_guest(tmp_path, upper) as (address, keys):

        async def port() -> int:
            return address[1]

        session = Session(keys, port)
        path = tmp_path / "docker.sock"
        forwarder = Forwarder(unix_listener(path), session.open_engine, name="test")
        try:
            yield session, path
        finally:
            session.close()
            forwarder.close()


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(str(path))
    client.sendall(b"first")
    assert client.recv(100) == b"FIRST"
    return client


def test_clients_outlive_the_replacement_of_a_connection_that_was_only_slow(guest: tuple[Session, Path]) -> None:
    session, path = guest
    asyncio.run(session.connect())
    old = session.link()
    with connected(path) as client:
        own = old.unix_socket("/run/agent.sock")
        asyncio.run(session.renew())
        assert session.link() is not old
        client.sendall(b"second")
        assert client.recv(100) == b"SECOND"
        own.settimeout(60)
        assert own.recv(1) == b""  # what is not a client's goes through the new one
        with connected(path):
            pass
    for _ in range(600):
        if not old.alive:
            return
        threading.Event().wait(0.1)
    raise AssertionError("the old connection stays although its clients have left")


def test_clients_of_a_connection_that_stays_silent_are_given_up(
    guest: tuple[Session, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "RETIREMENT", 1.0)
    session, path = guest
    asyncio.run(session.connect())
    with connected(path) as client:
        asyncio.run(session.renew())
        assert client.recv(100) == b""


def test_a_client_waits_for_somebody_who_listens_in_the_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's socket may be away for a moment, as may be a connection."""
    refusals = iter([True, True, False])
    original = Link.unix_socket

    def refusing(link: Link, path: str, *, timeout: float = 10, client: bool = False) -> paramiko.Channel:
        if next(refusals, False):
            raise NobodyListens("nobody answers")
        return original(link, path, timeout=timeout, client=client)

    monkeypatch.setattr(Link, "unix_socket", refusing)
    with fake_guest(tmp_path, upper) as (address, keys):

        async def port() -> int:
            return address[1]

        session = Session(keys, port)
        asyncio.run(session.connect())
        channel = session.open_engine()
        channel.sendall(b"there")
        assert channel.recv(100) == b"THERE"
        session.close()
        with pytest.raises(HostError, match="no connection"):
            session.open_engine()


def test_a_client_of_a_machine_that_cannot_be_reached_is_told_so_in_the_engines_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LINK_WAIT", 0.1)
    paths = Paths(tmp_path / "config", tmp_path / "state", tmp_path / "data")
    paths.client_key.parent.mkdir(parents=True)

    async def port() -> int:
        return 0

    ways = Ways(paths, lambda _ports: None)
    try:
        ways.open(port)
        done = subprocess.run(
            ["docker", "-H", f"unix://{paths.docker_socket}", "run", "busybox"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        ways.close()
    assert done.returncode == 125
    assert (
        "Error response from daemon: the machine cannot be reached: there is no connection to the guest" in done.stderr
    )
