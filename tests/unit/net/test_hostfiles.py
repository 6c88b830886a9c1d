from pathlib import Path

import pytest
from moorage_guest.errors import InvalidParameter
from moorage_guest.net import hostfiles
from moorage_guest.net.config import NetConfig


def test_container_then_daemon_then_host_decide_on_servers(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# comment\nnameserver 10.0.0.1 # tail\nnameserver bad\nsearch a b\noptions x y\noptions z\n")
    plain = NetConfig(resolv_conf=path)
    got = hostfiles.resolution(plain, [], [], [], embedded=False)
    assert got.conf == hostfiles.ResolvConf(("10.0.0.1",), ("a", "b"), ("x", "y", "z"))
    daemon = NetConfig(resolv_conf=path, dns=("10.0.0.2",), dns_search=("d",))
    assert hostfiles.resolution(daemon, [], [], [], embedded=False).conf.servers == ("10.0.0.2",)
    asked = hostfiles.resolution(daemon, ["10.0.0.3"], ["."], ["ndots:3"], embedded=True)
    assert asked.conf == hostfiles.ResolvConf(("127.0.0.11",), (), ("ndots:3",))
    assert asked.upstream == ("10.0.0.3",)


def test_loopback_servers_are_of_no_use_without_the_resolver(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\nnameserver ::1\nnameserver fe80::1%eth0\n")
    config = NetConfig(resolv_conf=path)
    assert hostfiles.resolution(config, [], [], [], embedded=False).conf.servers == ("fe80::1%eth0",)
    assert hostfiles.resolution(config, [], [], [], embedded=True).upstream == ("127.0.0.1", "::1", "fe80::1%eth0")
    path.write_text("nameserver 127.0.0.1\n")
    assert hostfiles.resolution(config, ["127.0.0.9"], [], [], embedded=False).conf.servers == ("127.0.0.9",)


def test_hosts_lines_with_domain_and_dotted_names() -> None:
    text = hostfiles.hosts_text(["10.0.0.2", "2001:db8::2"], "web", "example.org", [("db", "10.0.0.9")], ipv6=False)
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost",
        "10.0.0.2\tweb.example.org web",
        "10.0.0.9\tdb",
    ]
    with_ipv6 = hostfiles.hosts_text(["10.0.0.2", "2001:db8::2"], "web", "", [], ipv6=True).splitlines()
    assert with_ipv6[1:4] == [
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "ff00::0\tip6-mcastprefix",
    ]
    assert with_ipv6[-1] == "2001:db8::2\tweb"
    assert hostfiles.own_line("10.0.0.2", "web.local", "") == "10.0.0.2\tweb.local web"


def test_edit_keeps_foreign_lines_and_the_inode(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.1 localhost\n10.0.0.2\tweb\n# mine\n10.0.0.3 other\n")
    inode = path.stat().st_ino
    hostfiles.edit_hosts(path, ["10.0.0.2"], ["10.0.0.4\tnew"])
    assert path.read_text() == "127.0.0.1 localhost\n# mine\n10.0.0.3 other\n10.0.0.4\tnew\n"
    assert path.stat().st_ino == inode


def test_write_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "hosts").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        hostfiles.write(tmp_path / "hosts", "y")
    assert (tmp_path / "secret").read_text() == "x"


def test_extra_hosts() -> None:
    parse = hostfiles.parse_extra_hosts
    assert parse(["a:10.0.0.1", "b=[2001:db8::1]", "c:2001:db8::2"], []) == [
        ("a", "10.0.0.1"),
        ("b", "2001:db8::1"),
        ("c", "2001:db8::2"),
    ]
    assert parse(["h:host-gateway"], ["172.17.0.1", "fd00::1"]) == [("h", "172.17.0.1"), ("h", "fd00::1")]
    for bad, text in (("x", "bad format for add-host"), ("x:y", "invalid IP address in add-host")):
        with pytest.raises(InvalidParameter, match=text):
            parse([bad], [])
    with pytest.raises(InvalidParameter, match="unable to derive the IP value for host-gateway"):
        parse(["h:host-gateway"], [])


@pytest.mark.parametrize("name", ["all", "lo"])
def test_container_that_switches_ipv6_off_has_no_such_lines(name: str) -> None:
    assert hostfiles.speaks_ipv6({"net.ipv6.conf.eth0.disable_ipv6": "1"})
    assert hostfiles.speaks_ipv6({f"net.ipv6.conf.{name}.disable_ipv6": "0"})
    assert not hostfiles.speaks_ipv6({f"net.ipv6.conf.{name}.disable_ipv6": "1"})
