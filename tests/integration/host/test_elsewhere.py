"""Settings that name another libvirt while there is a machine, and a libvirt that cannot be asked when the backend starts."""

import dataclasses
import json
from collections.abc import Iterator

import pytest
from moorage_host.client import Client
from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder
from moorage_host.machine.machine import Record
from moorage_host.paths import Paths, user_paths

from tests.support.host import backend_client, user_home

pytestmark = pytest.mark.timeout(120)

AWAY = "qemu+ssh://me@nowhere.invalid/system"


@pytest.fixture
def paths() -> Iterator[Paths]:
    with user_home():
        yield user_paths()


@pytest.fixture
def client(paths: Paths) -> Iterator[Client]:
    with backend_client(paths) as client:
        yield client


def write_record(paths: Paths) -> None:
    private_folder(paths.machine)
    record = Record("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    paths.machine_record.write_text(json.dumps({"format": 1} | dataclasses.asdict(record)))


@pytest.mark.parametrize("uri", ["qemu+tls://box/system", "qemu+ssh://box/system?no_verify=1"])
def test_uri_that_cannot_be_served_is_refused_where_it_is_set(client: Client, uri: str) -> None:
    with pytest.raises(HostError) as caught:
        client.change_settings(libvirt_uri=uri)
    assert caught.value.code is ErrorCode.INVALID
    assert client.settings().libvirt_uri == "auto"


def test_another_libvirt_counts_at_once_without_a_new_backend(client: Client, paths: Paths) -> None:
    write_record(paths)
    pid = client.status().backend.pid
    client.change_settings(libvirt_uri="nonsense:///x")
    with pytest.raises(HostError, match="nonsense:///x"):
        client.delete()
    client.change_settings(libvirt_uri="test:///default")
    client.delete()
    assert client.status().backend.pid == pid


def test_machine_that_stayed_on_another_host_is_not_forgotten(client: Client, paths: Paths) -> None:
    write_record(paths)
    paths.remote_record.write_text(
        json.dumps({"format": 1, "uri": AWAY, "pool": "moorage-0", "folder": "/pool", "whole": []})
    )
    client.change_settings(libvirt_uri="test:///default")
    for command in (client.start, client.delete):
        with pytest.raises(HostError, match="the machine is on another host") as caught:
            command()
        assert AWAY in str(caught.value)
    assert paths.remote_record.exists()


def test_machine_of_this_host_is_not_forgotten_for_another_host(client: Client, paths: Paths) -> None:
    write_record(paths)
    paths.disk.write_bytes(b"")
    with pytest.raises(HostError, match="there is a machine on this host already"):
        client.start(libvirt_uri=AWAY)
    assert paths.disk.exists()


def test_libvirt_that_cannot_be_asked_at_first_is_asked_again(client: Client, paths: Paths) -> None:
    """As when the backend starts before the network of the computer does."""
    write_record(paths)
    private_folder(paths.config)
    stand_in = paths.state / "libvirt.sock.stand-in"
    paths.settings.write_text(json.dumps({"libvirt_uri": f"test://{stand_in}"}))
    told = client.status()
    assert (told.state, "libvirt cannot open" in told.message) == ("absent", True)
    stand_in.write_text(
        "<node><domain type='test'><name>moorage</name><uuid>6ba7b810-9dad-11d1-80b4-00c04fd430c8</uuid>"
        "<memory>65536</memory><os><type>hvm</type></os></domain></node>"
    )
    for status in client.watch():
        if status.state == "starting":
            break
