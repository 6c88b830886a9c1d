"""Containers on the default network: addresses, the way out, published ports, clean-up."""

import ipaddress
import socket

import pytest
from moorage_guest.api.types import HostConfig
from moorage_guest.errors import SystemError_
from moorage_guest.net import namespaces
from moorage_guest.net.netlink import RouteSocket, add_route

from tests.support.networks import HOST, OUTSIDE, World, container_id

pytestmark = pytest.mark.root


def publish(**ports: str) -> HostConfig:
    bindings = {}
    for spec, host in ports.items():
        number, proto = spec.removeprefix("p").split("_")
        ip, _, port = host.rpartition(":")
        bindings[f"{number}/{proto}"] = [{"HostIp": ip, "HostPort": port}]
    return HostConfig.model_validate({"PortBindings": bindings})


async def test_container_gets_an_address_and_reaches_the_bridge_and_beyond(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    sandbox, inside = await world.run("web")
    settings = sandbox.endpoints["bridge"]
    assert (settings.ip_address, settings.ip_prefix_len, settings.gateway) == ("172.17.0.2", 16, "172.17.0.1")
    assert settings.mac_address == "02:42:ac:11:00:02"
    assert inside.links()["eth0"].mac == settings.mac_address
    with outside.listen(7000):
        assert inside.connect(OUTSIDE, 7000) == HOST, "the way out is masqueraded"
    with world.here().listen(7001):
        assert inside.connect("172.17.0.1", 7001) == "172.17.0.2"


async def test_files_name_the_container_and_its_servers(world: World) -> None:
    resolv = world.root / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch example.org\noptions timeout:3\n")
    await world.start(resolv_conf=resolv)
    host = HostConfig.model_validate({"ExtraHosts": ["db:10.0.0.9", "gate:host-gateway"]})
    sandbox, _ = await world.run("web", host=host)
    hosts = sandbox.hosts_file.read_text().splitlines()
    assert {"172.17.0.2\tweb-host", "10.0.0.9\tdb", "172.17.0.1\tgate"} <= set(hosts)
    lines = sandbox.resolv_conf.read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "nameserver 192.0.2.53",
        "search example.org",
        "options timeout:3",
    ]
    assert sandbox.hostname_file.read_text() == "web-host\n"


async def test_guest_of_a_host_knows_it_by_name(world: World) -> None:
    world.neighbour()
    marker = world.root / "marker"
    await world.start(machine_marker=marker)
    alone, _ = await world.run("alone", host=HostConfig.model_validate({"ExtraHosts": ["gate:host-gateway"]}))
    assert "host.docker.internal" not in alone.hosts_file.read_text()
    with RouteSocket() as route:
        uplink = route.link("uplink")
        assert uplink is not None
        route.send([add_route(None, ipaddress.ip_address(OUTSIDE), uplink.index, 4)])
    marker.touch()
    asked = ["gate:host-gateway", "host.moorage.internal:10.0.0.9"]
    guest, _ = await world.run("guest", host=HostConfig.model_validate({"ExtraHosts": asked}))
    assert guest.hosts_file.read_text().splitlines()[-3:] == [
        f"{OUTSIDE}\tgate",
        "10.0.0.9\thost.moorage.internal",
        f"{OUTSIDE}\thost.docker.internal",
    ]


async def test_published_port_is_reached_from_outside_from_the_host_and_from_itself(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    sandbox, inside = await world.run("web", host=publish(p80_tcp=":8080", p80_udp=":8081"))
    assert sandbox.ports == {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "80/udp": [{"HostIp": "0.0.0.0", "HostPort": "8081"}, {"HostIp": "::", "HostPort": "8081"}],
    }
    _, other = await world.run("other")
    with inside.listen(80):
        assert outside.connect(HOST, 8080) == OUTSIDE, "the client's address is kept"
        assert world.here().connect("127.0.0.1", 8080) == "172.17.0.1"
        assert world.here().connect(HOST, 8080) == HOST
        assert world.here().connect("::1", 8080) == "172.17.0.1", "carried from IPv6"
        assert outside.connect("2001:db8:1::1", 8080) == "172.17.0.1"
        assert inside.connect(HOST, 8080), "a container reaches itself through its published port"
        assert other.connect("172.17.0.1", 8080), "and its neighbours through the gateway"
        for family, address, seen in (
            (socket.AF_INET, HOST, OUTSIDE),
            (socket.AF_INET6, "2001:db8:1::1", "172.17.0.1"),
        ):
            with outside.socket(family, socket.SOCK_DGRAM) as client:
                client.connect((address, 8081))
                client.send(b"hello")
                assert client.recv(100).decode() == f"{seen} hello"


async def test_unpublished_port_is_not_reached_from_outside(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    _, inside = await world.run("web")
    with outside.socket() as probe, inside.listen(80):
        with namespaces.inside(outside.namespace), RouteSocket() as route:
            wan = route.link("wan0")
            assert wan is not None
            net = ipaddress.ip_network("172.17.0.0/16")
            route.send([add_route(net, ipaddress.ip_address(HOST), wan.index, 4)])
        probe.settimeout(0.5)
        with pytest.raises(OSError):
            probe.connect(("172.17.0.2", 80))


async def test_port_of_another_container_is_already_allocated(world: World) -> None:
    await world.start()
    await world.run("one", host=publish(p80_tcp=":8080"))
    with pytest.raises(SystemError_, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"):
        await world.run("two", host=publish(p80_tcp=":8080"))
    assert world.networks.sandbox(container_id("two")) is None
    await world.networks.release(container_id("one"))
    await world.run("two", host=publish(p80_tcp=":8080"))


async def test_port_of_another_process_is_in_use(world: World) -> None:
    await world.start()
    with world.here().listen(8080), pytest.raises(SystemError_, match=r"8080.*address already in use"):
        await world.run("one", host=publish(p80_tcp=":8080"))
    await world.run("one", host=publish(p80_tcp=":8080"))


async def test_range_and_free_choice_find_ports(world: World) -> None:
    await world.start()
    got = []
    for name in ("a", "b"):
        sandbox, _ = await world.run(name, host=publish(p80_tcp="127.0.0.1:8000-8001"))
        got.append(sandbox.ports["80/tcp"])
    assert got == [[{"HostIp": "127.0.0.1", "HostPort": "8000"}], [{"HostIp": "127.0.0.1", "HostPort": "8001"}]]
    with pytest.raises(SystemError_, match="all ports are allocated"):
        await world.run("c", host=publish(p80_tcp="127.0.0.1:8000-8001"))
    free, _ = await world.run("d", host=publish(p80_tcp=":"), exposed_ports=("90/tcp",))
    bindings = free.ports["80/tcp"]
    assert bindings is not None and len({binding["HostPort"] for binding in bindings}) == 1
    assert free.ports["90/tcp"] is None


async def test_release_leaves_nothing(world: World) -> None:
    await world.start()
    with RouteSocket() as route:
        before = {link.name for link in route.links()}
        sandbox, _ = await world.run("web", host=publish(p80_tcp=":8080"))
        assert {link.name for link in route.links()} > before
        await world.networks.release(container_id("web"))
        await world.networks.settled()
        assert {link.name for link in route.links()} == before
    assert not sandbox.netns_path.exists()
    assert not list((world.exec_root.net / "sandbox").iterdir())
    with world.here().listen(8080):
        pass
    again, _ = await world.run("web")
    assert again.endpoints["bridge"].ip_address == "172.17.0.2"
