import socket
from pathlib import Path

import pytest
from moorage_host.errors import HostError
from moorage_host.machine import connection as module
from moorage_host.machine.connection import Connection, choose_uri


def test_user_gets_the_session(tmp_path: Path) -> None:
    assert choose_uri("auto", tmp_path, uid=1000) == "qemu:///session"


def test_root_gets_the_system_driver_only_when_its_socket_answers(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    assert (
        choose_uri("auto", tmp_path / "root", uid=0, system_sockets=(str(path),))
        == f"qemu:///embed?root={tmp_path / 'root'}"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert choose_uri("auto", tmp_path / "root", uid=0, system_sockets=(str(path),)).startswith("qemu:///embed")
        listener.listen()
        assert choose_uri("auto", tmp_path / "root", uid=0, system_sockets=(str(path),)) == "qemu:///system"


def test_a_set_uri_is_taken_as_it_is(tmp_path: Path) -> None:
    assert choose_uri("qemu+ssh://box/system", tmp_path, uid=0) == "qemu+ssh://box/system"


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("qemu+ssh://box/system", True),
        ("qemu:///session", False),
        ("qemu:///embed?root=/x", False),
        ("test:///default", False),
    ],
)
def test_remote_uris_are_known(tmp_path: Path, uri: str, remote: bool) -> None:
    assert (Connection(uri, tmp_path).remote is not None) == remote


async def test_no_connection_says_what_to_do(tmp_path: Path) -> None:
    connection = Connection("nonsense:///x", tmp_path)
    try:
        with pytest.raises(HostError, match="cannot open nonsense") as caught:
            await connection.call(lambda open_one: open_one.getURI())
        assert "libvirt" in caught.value.hint
    finally:
        connection.close()


async def test_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "libvirt", None)
    connection = Connection("qemu:///session", tmp_path)
    try:
        with pytest.raises(HostError, match="libvirt is not installed"):
            await connection.call(lambda open_one: open_one.getURI())
    finally:
        connection.close()


async def test_calls_reach_libvirt(tmp_path: Path) -> None:
    connection = Connection("test:///default", tmp_path)
    try:
        assert await connection.call(lambda open_one: open_one.getURI()) == "test:///default"
    finally:
        connection.close()
