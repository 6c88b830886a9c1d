"""Networks under other configurations: no firewall, no proxy, gateway modes, SCTP, stale UDP flows."""

import ipaddress
import socket

import pytest
from moorage_guest.api.types import HostConfig
from moorage_guest.errors import SystemError_
from moorage_guest.net import namespaces
from moorage_guest.net.netlink import RouteSocket, add_address, add_link, add_route, link_body

from tests.support.networks import HOST, OUTSIDE, World, container_id

pytestmark = pytest.mark.root


def published(network: str = "bridge", **ports: str) -> HostConfig:
    bindings = {spec.removeprefix("p").replace("_", "/"): [{"HostPort": port}] for spec, port in ports.items()}
    return HostConfig.model_validate({"NetworkMode": network, "PortBindings": bindings})


async def test_without_firewall_netd_carries_published_ports(world: World) -> None:
    outside = world.neighbour()
    await world.start(iptables=False)
    _, inside = await world.run("web", host=published(p80_tcp="8080", p80_udp="8080"))
    with inside.listen(80):
        assert outside.connect(HOST, 8080) == "172.17.0.1"
        assert world.here().connect("127.0.0.1", 8080) == "172.17.0.1"
        with outside.socket(kind=socket.SOCK_DGRAM) as client:
            client.connect((HOST, 8080))
            client.send(b"hello")
            assert client.recv(100) == b"172.17.0.1 hello"


async def test_carried_connection_moves_much_data_and_ends_on_each_side(world: World) -> None:
    await world.start(iptables=False)
    _, inside = await world.run("web", host=published(p80_tcp="8080"))
    payload = bytes(range(256)) * 4096
    with inside.listen(80), world.here().socket() as client:
        client.connect(("127.0.0.1", 8080))
        client.sendall(payload[: len(payload) // 2])
        got = b""
        while got.count(b"\n") == 0 or len(got.split(b"\n", 1)[1]) < len(payload) // 2:
            got += client.recv(65536)
        client.sendall(payload[len(payload) // 2 :])
        client.shutdown(socket.SHUT_WR)
        while chunk := client.recv(65536):
            got += chunk
        assert got.split(b"\n", 1)[1] == payload


async def test_without_proxy_the_port_is_held_and_ipv6_is_left_out(world: World) -> None:
    outside = world.neighbour()
    await world.start(userland_proxy=False)
    box, inside = await world.run("web", host=published(p80_tcp="8080"))
    assert box.ports == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}
    with inside.listen(80):
        assert outside.connect(HOST, 8080) == OUTSIDE
        assert world.here().connect("127.0.0.1", 8080)
    with world.here().socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind((HOST, 8080))
        probe.listen()


async def test_routed_mode_opens_ports_at_the_containers_address_alone(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create(
        "routed",
        IPAM={"Config": [{"Subnet": "10.5.0.0/24"}]},
        Options={"com.docker.network.bridge.gateway_mode_ipv4": "routed"},
    )
    with namespaces.inside(outside.namespace), RouteSocket() as route:
        wan = route.link("wan0")
        assert wan is not None
        route.send([add_route(ipaddress.ip_network("10.5.0.0/24"), ipaddress.ip_address(HOST), wan.index, 4)])
    box, inside = await world.run("web", "routed", host=published("routed", p80_tcp="8080"))
    with inside.listen(80), inside.listen(81):
        assert outside.connect("10.5.0.2", 80) == OUTSIDE
        assert outside.refused("10.5.0.2", 81, 0.5)
        assert outside.refused(HOST, 8080, 0.5)
    with outside.listen(7000):
        assert inside.connect(OUTSIDE, 7000) == "10.5.0.2", "no masquerade"
    await world.networks.release(container_id("web"))
    assert box.ports["80/tcp"] is not None


async def test_sctp_port_is_published_and_conflicts_by_itself_alone(world: World) -> None:
    await world.start()
    box, _ = await world.run("web", host=published(p80_sctp="8080", p80_tcp="8080"))
    assert set(box.ports) == {"80/sctp", "80/tcp"}
    with pytest.raises(SystemError_, match="port is already allocated"):
        await world.run("other", host=published(p80_sctp="8080"))


async def test_udp_client_that_never_stops_reaches_the_next_container(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    _, first = await world.run("first", host=published(p80_udp="8080"))
    with outside.socket(kind=socket.SOCK_DGRAM) as client:
        client.connect((HOST, 8080))
        with first.listen(80):
            client.send(b"one")
            assert client.recv(100) == f"{OUTSIDE} one".encode()
        await world.run("squatter")
        await world.networks.release(container_id("first"))
        _, second = await world.run("second", host=published(p80_udp="8080"))
        with second.listen(80):
            client.send(b"two")
            assert client.recv(100) == f"{OUTSIDE} two".encode()


async def test_bridge_that_somebody_made_is_adopted_with_its_address(world: World) -> None:
    with RouteSocket() as route:
        route.send([add_link("bridge", "mybr", link_body(name="mybr", up=True))])
        link = route.link("mybr")
        assert link is not None
        route.send([add_address(link.index, ipaddress.ip_interface("10.66.0.1/24"))])
    await world.start(bridge="mybr")
    box, _ = await world.run("web")
    assert box.endpoints["bridge"].ip_address == "10.66.0.2"
    with RouteSocket() as route:
        assert route.link("docker0") is None


async def test_bridge_of_another_name_that_is_not_there_stops_the_start(world: World) -> None:
    with pytest.raises(SystemError_, match="bridge device with non default name nobr must be created manually"):
        await world.start(bridge="nobr")


async def test_no_default_network_at_all(world: World) -> None:
    await world.start(bridge="none")
    assert {network["Name"] for network in world.networks.matching({})} == {"host", "none"}


async def test_fixed_cidr_gateway_and_ipv6_of_the_default_bridge(world: World) -> None:
    await world.start(
        bip=ipaddress.ip_interface("10.1.0.1/16"),
        fixed_cidr=ipaddress.ip_network("10.1.5.0/24"),
        default_gateway=ipaddress.ip_address("10.1.0.254"),
        ipv6=True,
        fixed_cidr_v6=ipaddress.ip_network("2001:db8:7::/64"),
    )
    box, inside = await world.run("web")
    settings = box.endpoints["bridge"]
    assert settings.ip_address == "10.1.5.0", "an ordinary address of the subnet, though the first of the range"
    assert settings.gateway == "10.1.0.254"
    assert settings.global_ipv6_address == "2001:db8:7::2"
    with inside.listen(80, "::"):
        assert world.here().connect("2001:db8:7::2", 80) == "2001:db8:7::1"


async def test_the_default_bridge_may_get_a_range_that_overlaps_its_old_one(world: World) -> None:
    await world.start(ipv6=True, fixed_cidr_v6=ipaddress.ip_network("fd1c:f1a0:5d8d:aaaa::/64"))
    for wanted in ("fd1c:f1a0:5d8d:aaaa::/80", "fd1c:f1a0:5d8d:aaaa::/64", "fd1c:f1a0:5d8d:bbbb::/64"):
        await world.restart([], fixed_cidr_v6=ipaddress.ip_network(wanted))
        box, _ = await world.run("web")
        assert ipaddress.ip_address(box.endpoints["bridge"].global_ipv6_address) in ipaddress.ip_network(wanted)
        await world.networks.release(container_id("web"))
