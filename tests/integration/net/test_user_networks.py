"""User-defined networks: names, aliases, isolation, live connect and disconnect, static addresses, IPv6."""

import ipaddress
import socket
import threading

import pytest
from moorage_guest.api.types import EndpointSettings, HostConfig
from moorage_guest.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotImplementedByEngine,
)
from moorage_guest.net.netlink import RouteSocket, add_route

from tests.support.networks import HOST, OUTSIDE, Place, World, container_id

pytestmark = pytest.mark.root

NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
A, PTR, AAAA = 1, 12, 28


def wants(**fields: object) -> EndpointSettings:
    return EndpointSettings.model_validate(fields)


async def test_containers_find_each_other_by_name_alias_id_and_host_name(world: World) -> None:
    await world.start()
    await world.create("net")
    web, _ = await world.run("web", endpoints={"net": wants(Aliases=["www", "site"])})
    _, client = await world.run("client", "net")
    address = web.endpoints["net"].ip_address
    assert web.endpoints["net"].dns_names == ["web", "www", "site", container_id("web")[:12], "web-host"]
    for name in ("web", "www", "WEB", "web.net", "site", container_id("web")[:12], "web-host"):
        assert client.ask(name) == (NOERROR, [address]), name
    assert client.ask("web", tcp=True) == (NOERROR, [address])
    assert client.ask("web", AAAA) == (NOERROR, []), "a known name without IPv6 is no error"
    reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
    assert client.ask(reverse, PTR) == (NOERROR, ["web.net"])
    await world.networks.release(container_id("web"))
    assert client.ask("web")[0] != NOERROR


async def test_shared_alias_answers_with_all(world: World) -> None:
    await world.start()
    await world.create("net")
    both = [
        (await world.run(name, endpoints={"net": wants(Aliases=["pool"])}))[0].endpoints["net"].ip_address
        for name in ("one", "two")
    ]
    _, client = await world.run("client", "net")
    assert client.ask("pool") == (NOERROR, sorted(both))


async def test_resolv_conf_leads_to_the_resolver_and_port_53_stays_free(world: World) -> None:
    resolv = world.root / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.53\nsearch example.org\n")
    await world.start(resolv_conf=resolv)
    await world.create("net")
    sandbox, inside = await world.run("dns", "net")
    lines = [line for line in sandbox.resolv_conf.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["nameserver 127.0.0.11", "search example.org", "options ndots:0"]
    with inside.listen(53):
        assert inside.ask("dns") == (NOERROR, [sandbox.endpoints["net"].ip_address])


class Upstream:
    """A DNS server that answers every question with one address."""

    def __init__(self, place: Place, address: str) -> None:
        self._socket = place.socket(kind=socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self.clients: list[str] = []
        self._stop = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> "Upstream":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        self._thread.join(30)
        self._socket.close()

    def _serve(self) -> None:
        self._socket.settimeout(0.05)
        while not self._stop:
            try:
                query, peer = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            self.clients.append(peer[0])
            record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton("198.51.100.7")
            self._socket.sendto(query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + query[12:] + record, peer)


async def test_other_names_are_asked_outside_from_the_container(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("net")
    host = HostConfig.model_validate({"NetworkMode": "net", "Dns": ["192.0.2.99", OUTSIDE]})
    _, client = await world.run("client", "net", host=host)
    with Upstream(outside, OUTSIDE) as upstream:
        assert client.ask("example.org") == (NOERROR, ["198.51.100.7"])
        assert upstream.clients == [HOST]


async def test_server_on_the_hosts_loopback_is_asked_from_the_host(world: World) -> None:
    resolv = world.root / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.53\n")
    await world.start(resolv_conf=resolv)
    await world.create("net")
    _, client = await world.run("client", "net")
    with Upstream(world.here(), "127.0.0.53"):
        assert client.ask("example.org") == (NOERROR, ["198.51.100.7"])


async def test_internal_network_has_names_and_no_way_out(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("shut", Internal=True)
    web, inside = await world.run("web", "shut")
    _, client = await world.run("client", "shut")
    assert web.endpoints["shut"].gateway == ""
    assert client.ask("web") == (NOERROR, [web.endpoints["shut"].ip_address])
    assert client.ask("example.org") == (SERVFAIL, [])
    with inside.listen(80), outside.listen(80):
        assert client.connect(web.endpoints["shut"].ip_address, 80) == "172.18.0.3"
        assert client.refused(OUTSIDE, 80)
        outside_in = await world.run("pub", "shut", host=HostConfig.model_validate(
            {"NetworkMode": "shut", "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}}
        ))  # fmt: skip
        assert outside_in[0].ports == {}, "nothing is published on an internal network"


async def test_networks_are_isolated_but_published_ports_are_not(world: World) -> None:
    await world.start()
    await world.create("a")
    await world.create("b")
    host = HostConfig.model_validate({"NetworkMode": "a", "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}})
    web, inside = await world.run("web", "a", host=host)
    _, stranger = await world.run("stranger", "b")
    _, default = await world.run("default")
    with inside.listen(80):
        for place in (stranger, default):
            assert place.refused(web.endpoints["a"].ip_address, 80, 0.5)
            assert place.connect("172.17.0.1", 8080)
        assert stranger.ask("web")[0] != NOERROR


async def test_containers_of_a_network_without_icc_do_not_reach_each_other(world: World) -> None:
    await world.start()
    await world.create("apart", Options={"com.docker.network.bridge.enable_icc": "false"})
    web, inside = await world.run("web", "apart")
    _, client = await world.run("client", "apart")
    with inside.listen(80):
        assert client.refused(web.endpoints["apart"].ip_address, 80, 0.5)
        assert world.here().connect(web.endpoints["apart"].ip_address, 80) == web.endpoints["apart"].gateway


async def test_connect_and_disconnect_while_running(world: World) -> None:
    await world.start()
    await world.create("a")
    await world.create("b")
    web, inside = await world.run("web", "b")
    client_box, client = await world.run("client", "a")
    assert client.ask("web")[0] != NOERROR
    got = await world.networks.connect(container_id("web"), "a", wants(Aliases=["www"]))
    assert "eth1" in inside.links()
    assert client.ask("www") == (NOERROR, [got.ip_address])
    assert f"{got.ip_address}\tweb-host" in web.hosts_file.read_text().splitlines()
    with inside.listen(80):
        assert client.connect(got.ip_address, 80) == client_box.endpoints["a"].ip_address
    with pytest.raises(Forbidden, match="endpoint with name web already exists in network a"):
        await world.networks.connect(container_id("web"), "a", None)
    await world.networks.disconnect(container_id("web"), "a")
    assert "eth1" not in inside.links()
    assert client.ask("www")[0] != NOERROR
    assert got.ip_address not in web.hosts_file.read_text()
    with pytest.raises(NotFound, match="is not connected to network a"):
        await world.networks.disconnect(container_id("web"), "a")
    actions = [(event.action, event.attributes["name"]) for event in world.events.history() if event.type == "network"]
    assert actions[-2:] == [("connect", "a"), ("disconnect", "a")]


async def test_container_of_the_default_network_gets_names_when_it_joins_another(world: World) -> None:
    await world.start()
    await world.create("net")
    box, inside = await world.run("web")
    await world.run("db", "net")
    assert "127.0.0.11" not in box.resolv_conf.read_text()
    await world.networks.connect(container_id("web"), "net", None)
    assert inside.ask("db")[0] == NOERROR
    assert "nameserver 127.0.0.11" in box.resolv_conf.read_text().splitlines()


async def test_published_ports_follow_the_default_route(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("a")
    await world.create("b")
    host = HostConfig.model_validate({"NetworkMode": "b", "PortBindings": {"80/tcp": [{"HostPort": ""}]}})
    box, inside = await world.run("web", "b", host=host)
    (bindings,) = box.ports.values()
    assert bindings is not None
    port = int(bindings[0]["HostPort"])
    with inside.listen(80):
        assert outside.connect(HOST, port) == OUTSIDE
        await world.networks.connect(container_id("web"), "a", wants(GwPriority=10))
        assert outside.connect(HOST, port) == OUTSIDE
        await world.networks.disconnect(container_id("web"), "b")
        assert outside.connect(HOST, port) == OUTSIDE
        assert world.networks.ports(container_id("web")) == box.ports
        await world.networks.disconnect(container_id("web"), "a")
        assert outside.refused(HOST, port)


async def test_static_addresses_and_macs_are_kept(world: World) -> None:
    await world.start()
    await world.create("net", IPAM={"Config": [{"Subnet": "10.9.0.0/24", "IPRange": "10.9.0.128/25"}]})
    static = wants(IPAMConfig={"IPv4Address": "10.9.0.77"}, MacAddress="02:00:00:00:00:77")
    box, inside = await world.run("one", endpoints={"net": static})
    assert box.endpoints["net"].ip_address == "10.9.0.77"
    assert box.endpoints["net"].gateway == "10.9.0.128", "the first of the range"
    assert inside.links()["eth0"].mac == "02:00:00:00:00:77"
    free, _ = await world.run("two", "net")
    assert free.endpoints["net"].ip_address == "10.9.0.129"
    with pytest.raises(EngineError, match="failed to set up container networking: Address already in use"):
        await world.run("three", endpoints={"net": static})
    with pytest.raises(InvalidParameter, match=r"no configured subnet contains IP address 10\.8\.0\.1"):
        await world.run("three", endpoints={"net": wants(IPAMConfig={"IPv4Address": "10.8.0.1"})})
    await world.create("auto")
    with pytest.raises(
        InvalidParameter, match="supported only when connecting to networks with user configured subnets"
    ):
        await world.run("three", endpoints={"auto": wants(IPAMConfig={"IPv4Address": "172.18.0.9"})})
    with pytest.raises(InvalidParameter, match="user specified IP address is supported on user defined networks only"):
        await world.run("three", endpoints={"bridge": wants(IPAMConfig={"IPv4Address": "172.17.0.9"})})


async def test_network_that_is_gone_fails_the_start_in_dockerds_words(world: World) -> None:
    await world.start()
    with pytest.raises(NotFound, match=r"^failed to set up container networking: network gone not found$"):
        await world.run("web", "gone")


async def test_ipv6_network_reaches_and_is_reached(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("six", EnableIPv6=True, IPAM={"Config": [{"Subnet": "2001:db8:9::/64"}]})
    host = HostConfig.model_validate({"NetworkMode": "six", "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}})
    web, inside = await world.run("web", "six", host=host)
    _, client = await world.run("client", "six")
    settings = web.endpoints["six"]
    assert (settings.global_ipv6_address, settings.global_ipv6_prefix_len, settings.ipv6_gateway) == (
        "2001:db8:9::2",
        64,
        "2001:db8:9::1",
    )
    assert client.ask("web", AAAA) == (NOERROR, ["2001:db8:9::2"])
    assert client.ask("web", A) == (NOERROR, [settings.ip_address])
    with inside.listen(80, "::"):
        assert client.connect("2001:db8:9::2", 80) == "2001:db8:9::3"
        assert outside.connect("2001:db8:1::1", 8080) == "2001:db8:1::2", "translated by the kernel, address kept"
    with outside.listen(7000, "::"):
        assert client.connect("2001:db8:1::2", 7000) == "2001:db8:1::1"
    links = inside.links()
    assert links["eth0"].up


async def test_create_refuses_what_dockerd_refuses(world: World) -> None:
    await world.start()
    await world.create("net", IPAM={"Config": [{"Subnet": "10.9.0.0/24"}]})
    for body, kind, text in (
        ({"Name": "net"}, Conflict, "network with name net already exists"),
        ({"Name": "bridge"}, Forbidden, "operation is not permitted on predefined bridge network"),
        ({"Name": ""}, InvalidParameter, "name is empty"),
        ({"Driver": "weave"}, NotFound, 'plugin "weave" not found'),
        ({"Driver": "overlay"}, Forbidden, "This node is not a swarm manager"),
        ({"IPAM": {"Config": [{"Subnet": "10.9.0.128/25"}]}}, Forbidden, "invalid pool request: Pool overlaps with other one on this address space"),
        ({"IPAM": {"Config": [{"Subnet": "10.0.0.1/8"}]}}, InvalidParameter, r"invalid network config:\ninvalid subnet 10.0.0.1/8: it should be 10.0.0.0/8"),
        ({"IPAM": {"Config": [{"Subnet": "10.7.0.0/24", "Gateway": "10.6.0.1"}]}}, InvalidParameter, "invalid gateway 10.6.0.1: parent subnet 10.7.0.0/24 doesn't contain this address"),
        ({"IPAM": {"Config": [{"Subnet": "bad"}]}}, InvalidParameter, "invalid subnet bad: invalid CIDR block notation"),
        ({"Options": {"com.docker.network.driver.mtu": "lots"}}, InvalidParameter, "MTU"),
        ({"EnableIPv4": False}, InvalidParameter, "IPv4 or IPv6 must be enabled"),
    ):  # fmt: skip
        with pytest.raises(kind, match=text):
            await world.create(str(body.pop("Name", "other")), **body)
    assert {n["Name"] for n in world.networks.matching({})} == {"bridge", "host", "none", "net"}


async def test_macvlan_and_ipvlan_are_refused_in_the_kernels_words_where_it_lacks_them(world: World) -> None:
    world.neighbour()
    await world.start()
    for driver in ("macvlan", "ipvlan"):
        try:
            await world.create(driver, Driver=driver, Options={"parent": "uplink"})
        except NotImplementedByEngine as error:
            assert f"the kernel refuses {driver} links" in str(error)
            with pytest.raises(NotFound):
                world.networks.find(driver)
        else:
            _, inside = await world.run(f"in-{driver}", driver)
            assert inside.links()["eth0"].kind == driver
            await world.networks.release(container_id(f"in-{driver}"))
            await world.networks.settled()
            await world.networks.remove(driver)


async def test_remove_needs_an_unused_network_and_leaves_nothing(world: World) -> None:
    await world.start()
    network_id = await world.create("net")
    await world.run("web", "net")
    with pytest.raises(
        Forbidden, match=rf'network net has active endpoints \(name:"web" id:"{container_id("web")[:12]}"\)'
    ):
        await world.networks.remove("net")
    with pytest.raises(Forbidden, match="bridge is a pre-defined network and cannot be removed"):
        await world.networks.remove("bridge")
    await world.networks.release(container_id("web"))
    await world.networks.settled()
    await world.networks.remove(network_id[:10])
    with RouteSocket() as route:
        assert not [link.name for link in route.links() if link.name.startswith(("br-", "veth"))]
    with pytest.raises(NotFound, match="network net not found"):
        world.networks.find("net")
    assert await world.create("again"), "its subnet is free again"
    assert world.networks.inspect("again")["IPAM"]["Config"][0]["Subnet"] == "172.18.0.0/16"


async def test_prune_and_list_filters(world: World) -> None:
    await world.start()
    await world.create("used", Labels={"keep": "1"})
    await world.create("spare", Labels={"keep": "1"})
    await world.create("plain")
    await world.run("web", "used")

    def names(**filters: list[str]) -> set[str]:
        return {network["Name"] for network in world.networks.matching(filters)}

    assert names(type=["custom"]) == {"used", "spare", "plain"}
    assert names(type=["builtin"]) == {"bridge", "host", "none"}
    assert names(driver=["null", "host"]) == {"host", "none"}
    assert names(dangling=["true"]) == {"spare", "plain"}
    assert names(label=["keep=1"], name=["spa"]) == {"spare"}
    with pytest.raises(InvalidParameter, match="invalid filter 'colour'"):
        names(colour=["x"])
    assert await world.networks.prune({"label!": ["keep"]}) == ["plain"]
    assert await world.networks.prune({"until": ["1h"]}) == []
    assert await world.networks.prune({}) == ["spare"]


async def test_subnets_of_the_hosts_routes_are_not_chosen(world: World) -> None:
    world.neighbour()
    with RouteSocket() as route:
        uplink = route.link("uplink")
        assert uplink is not None
        route.send([add_route(ipaddress.ip_network("172.18.5.0/24"), ipaddress.ip_address(OUTSIDE), uplink.index, 4)])
    await world.start()
    await world.create("net")
    assert world.networks.inspect("net")["IPAM"]["Config"] == [{"Subnet": "172.19.0.0/16", "Gateway": "172.19.0.1"}]


async def test_link_on_the_default_network_is_a_line_in_hosts_that_follows_the_target(world: World) -> None:
    await world.start()
    db, _ = await world.run("db")
    web, _ = await world.run("web", host=HostConfig.model_validate({"Links": ["db:database"]}))
    assert f"{db.endpoints['bridge'].ip_address}\tdatabase db-host db" in web.hosts_file.read_text().splitlines()
    await world.run("squatter")
    await world.networks.release(container_id("db"))
    await world.networks.settled()
    await world.run("first")
    again, _ = await world.run("db")
    assert again.endpoints["bridge"].ip_address != db.endpoints["bridge"].ip_address
    lines = web.hosts_file.read_text().splitlines()
    assert [line for line in lines if "database" in line] == [
        f"{again.endpoints['bridge'].ip_address}\tdatabase db-host db"
    ]


async def test_link_on_a_user_network_is_a_name_of_one_container(world: World) -> None:
    await world.start()
    await world.create("net")
    db, _ = await world.run("db", "net")
    _, web = await world.run("web", endpoints={"net": wants(Links=["db:database"])})
    _, other = await world.run("other", "net")
    assert web.ask("database") == (NOERROR, [db.endpoints["net"].ip_address])
    assert other.ask("database")[0] != NOERROR
    await world.networks.rename(container_id("db"), "/postgres")
    assert other.ask("postgres")[0] == NOERROR
    assert other.ask("db")[0] != NOERROR
