from pathlib import Path

import pytest
from moorage_host.errors import ErrorCode, HostError
from moorage_host.link.remote_uri import RemoteUri, parse


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///session",
        "qemu:///system",
        "qemu:///embed?root=/x",
        "qemu+unix:///system?socket=/run/other.sock",
        "test:///default",
    ],
)
def test_uris_without_a_host_mean_this_one(uri: str) -> None:
    assert parse(uri) is None


def test_ssh_uri_is_taken_apart() -> None:
    found = parse("qemu+ssh://me@box.example:2222/session?keyfile=/k/id&known_hosts=/k/known&socket=/run/libvirt.sock")
    assert found == RemoteUri(
        "box.example", "me", 2222, "qemu:///session", Path("/k/id"), Path("/k/known"), "/run/libvirt.sock"
    )
    assert found.session


@pytest.mark.parametrize("scheme", ["qemu+ssh", "qemu+libssh", "qemu+libssh2"])
def test_all_of_libvirts_ssh_transports_mean_the_same(scheme: str) -> None:
    assert parse(f"{scheme}://box/system") == RemoteUri("box", "", 0, "qemu:///system")


def test_keyfile_may_begin_with_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = parse("qemu+ssh://box/system?keyfile=~/.ssh/work")
    assert found is not None
    assert found.keyfile == Path("/home/me/.ssh/work")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("qemu+tls://box/system", "SSH server"),
        ("qemu+tcp://box/system", "SSH server"),
        ("qemu://box/system", "SSH server"),
        ("xen+ssh://box/system", "SSH server"),
        ("qemu+ssh:///system", "names no host"),
        ("qemu+ssh://box", "does not end in"),
        ("qemu+ssh://box/embed", "does not end in"),
        ("qemu+ssh://box:port/system", "is no libvirt URI"),
        ("qemu+ssh://box/system?no_verify=1", "always checked"),
        ("qemu+ssh://box/system?command=/opt/ssh", "~/.ssh/config"),
        ("qemu+ssh://box/system?keyfil=/x", "keyfil is not taken"),
        ("qemu+ssh://box/system?keyfile=id", "not an absolute path"),
        ("qemu+ssh://me:secret@box/system", "password"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_sentence_and_the_form(uri: str, words: str) -> None:
    with pytest.raises(HostError) as caught:
        parse(uri)
    assert words in caught.value.message
    assert caught.value.code is ErrorCode.INVALID
    assert "keyfile=" in caught.value.hint
    assert "secret" not in str(caught.value)
