import errno

import pytest
from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.net.ports import PortTable, Wanted, api_ports, parse_port, parse_range, wanted_ports
from moorage_guest.net.records import PortBindingRecord


class Holder:
    """Stands for netd: some ports of the host are taken by others."""

    def __init__(self, *taken: tuple[str, int]) -> None:
        self.taken = set(taken)
        self.held: set[str] = set()

    def hold(self, port: PortBindingRecord) -> None:
        if (port.host_ip, port.host_port) in self.taken:
            raise OSError(errno.EADDRINUSE, "in use")
        assert port.key not in self.held
        self.held.add(port.key)

    def unhold(self, port: PortBindingRecord) -> None:
        self.held.remove(port.key)


BOTH = ["0.0.0.0", "::"]
FOUR = ["172.17.0.2"]


def want(first: int, last: int | None = None, host_ip: str = "", proto: str = "tcp") -> Wanted:
    return Wanted(proto, 80, host_ip, first, last if last is not None else first)


@pytest.mark.parametrize("text", ["", "0/tcp", "65536", "x/tcp", "80/icmp", "-1", "８０"])
def test_bad_ports_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_port(text)


@pytest.mark.parametrize("text", ["a", "9-1", "1-70000", "1-2-3", "-5"])
def test_bad_ranges_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_range(text)


def test_fixed_ports_come_before_ranges_before_free_ones() -> None:
    asked = {"1/tcp": [["", ""]], "2/tcp": [["", "8000-8005"]], "3/udp": [["127.0.0.1", "53"]]}
    wanted = wanted_ports(asked, ["9/tcp", "3/udp"], publish_all=True)
    assert [w.container_port for w in wanted] == [3, 2, 1, 9]


def test_wildcard_and_one_address_conflict_in_one_ip_version_only() -> None:
    table, holder = PortTable(), Holder()
    table.publish(want(80, host_ip="127.0.0.1"), FOUR, BOTH, holder, cross=True)
    assert table.conflict("tcp", "0.0.0.0", 80)
    assert not table.conflict("tcp", "::", 80)
    assert not table.conflict("udp", "0.0.0.0", 80)
    assert not table.conflict("tcp", "127.0.0.2", 80)


def test_all_addresses_or_none() -> None:
    table, holder = PortTable(), Holder(("::", 8080))
    with pytest.raises(
        EngineError, match=r"failed to bind host port for \[::\]:8080:172\.17\.0\.2:80/tcp: address already in use"
    ):
        table.publish(want(8080), FOUR, BOTH, holder, cross=True)
    assert not holder.held and not table.conflict("tcp", "0.0.0.0", 8080)


def test_range_goes_on_to_the_next_port() -> None:
    table, holder = PortTable(), Holder(("0.0.0.0", 8000), ("::", 8001))
    got = table.publish(want(8000, 8005), FOUR, BOTH, holder, cross=True)
    assert {port.host_port for port in got} == {8002} and len(got) == 2
    assert holder.held == {"tcp/0.0.0.0/8002", "tcp/::/8002"}


def test_free_ports_go_round_without_repeating() -> None:
    table, holder = PortTable(), Holder()
    first = table.publish(want(0), FOUR, BOTH, holder, cross=True)[0]
    for port in (first,):
        holder.unhold(port)
    second = table.publish(want(0), FOUR, BOTH, holder, cross=True)[0]
    assert second.host_port == first.host_port + 1


def test_ipv6_without_carrying_needs_an_ipv6_address() -> None:
    table, holder = PortTable(), Holder()
    assert [p.host_ip for p in table.publish(want(80), FOUR, BOTH, holder, cross=False)] == ["0.0.0.0"]
    both = table.publish(want(81), [*FOUR, "2001:db8::2"], BOTH, holder, cross=False)
    assert [(p.host_ip, p.container_ip) for p in both] == [("0.0.0.0", "172.17.0.2"), ("::", "2001:db8::2")]


def test_api_shows_published_and_exposed_ports() -> None:
    ports = [PortBindingRecord("tcp", ip, 8080, "172.17.0.2", 80) for ip in ("::", "0.0.0.0")]
    assert api_ports(ports, ["80/tcp", "443/tcp"]) == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "443/tcp": None,
    }
