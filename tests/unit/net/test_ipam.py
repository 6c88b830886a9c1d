import ipaddress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moorage_guest.errors import Forbidden, InvalidParameter
from moorage_guest.net.config import DEFAULT_POOLS, parse_pools
from moorage_guest.net.fabric import default_pools
from moorage_guest.net.ipam import Ipam
from moorage_guest.net.records import NetworkRecord, Subnet


def network(*subnets: Subnet, name: str = "net") -> NetworkRecord:
    return NetworkRecord(id=name, name=name, driver="bridge", created="", subnets=subnets)


def test_lowest_free_address_is_handed_out_and_reserved_ones_are_not() -> None:
    ipam = Ipam(())
    subnet = Subnet("10.0.0.0/29", gateway="10.0.0.1", aux={"router": "10.0.0.3"})
    ipam.add_network(network(subnet))
    got = [str(ipam.allocate(subnet)) for _ in range(4)]
    assert got == ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(Forbidden, match="no available IPv4 addresses"):
        ipam.allocate(subnet)
    ipam.release(subnet, ipaddress.ip_address("10.0.0.4"))
    assert str(ipam.allocate(subnet)) == "10.0.0.4"


def test_range_bounds_free_choice_but_not_static_addresses() -> None:
    ipam = Ipam(())
    subnet = Subnet("10.0.0.0/24", ip_range="10.0.0.128/30", gateway="10.0.0.1")
    ipam.add_network(network(subnet))
    assert [str(ipam.allocate(subnet)) for _ in range(4)] == [f"10.0.0.{n}" for n in (128, 129, 130, 131)]
    with pytest.raises(Forbidden):
        ipam.allocate(subnet)
    ipam.claim(subnet, ipaddress.ip_address("10.0.0.7"))
    with pytest.raises(Forbidden, match="Address already in use"):
        ipam.claim(subnet, ipaddress.ip_address("10.0.0.7"))
    with pytest.raises(InvalidParameter):
        ipam.claim(subnet, ipaddress.ip_address("10.0.0.255"))


def test_small_and_ipv6_subnets() -> None:
    ipam = Ipam(())
    pair, six = Subnet("10.0.0.0/31", gateway="10.0.0.0"), Subnet("2001:db8::/64", gateway="2001:db8::1")
    ipam.add_network(network(pair, six))
    assert str(ipam.allocate(pair)) == "10.0.0.1"
    assert str(ipam.allocate(six)) == "2001:db8::2"
    with pytest.raises(Forbidden):
        ipam.allocate(pair)


def test_overlap_is_refused_and_freed_with_the_network() -> None:
    ipam = Ipam(())
    first = network(Subnet("10.0.0.0/16"))
    ipam.add_network(first)
    with pytest.raises(Forbidden, match="Pool overlaps"):
        ipam.add_network(network(Subnet("10.0.5.0/24"), name="other"))
    ipam.remove_network(first)
    ipam.add_network(network(Subnet("10.0.5.0/24"), name="other"))


def test_subnets_are_cut_from_the_pools_around_what_is_taken() -> None:
    ipam = Ipam(parse_pools([("10.0.0.0/22", 24)]))
    avoid = [ipaddress.ip_network("10.0.1.128/25")]
    taken = []
    for number in range(3):
        subnet = ipam.pick_subnet(4, avoid)
        ipam.add_network(network(Subnet(str(subnet)), name=str(number)))
        taken.append(str(subnet))
    assert taken == ["10.0.0.0/24", "10.0.2.0/24", "10.0.3.0/24"]
    with pytest.raises(InvalidParameter, match="all predefined address pools have been fully subnetted"):
        ipam.pick_subnet(4, avoid)


def test_default_pools_are_dockerds_and_a_private_ipv6_prefix() -> None:
    *four, six = default_pools()
    assert [(str(pool.base), pool.size) for pool in four] == list(DEFAULT_POOLS)
    assert six.size == 64 and six.base.is_private and six.base.prefixlen == 48
    assert default_pools() == default_pools()


@settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 40), max_size=60))
def test_no_address_is_given_out_twice(moves: list[int]) -> None:
    ipam = Ipam(())
    subnet = Subnet("10.0.0.0/27", gateway="10.0.0.1")
    ipam.add_network(network(subnet))
    held: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for move in moves:
        if move < 30 or not held:
            if len(held) == 29:
                continue
            address = ipam.allocate(subnet)
            assert address not in held
            held.append(address)
        else:
            ipam.release(subnet, held.pop(move % len(held)))
