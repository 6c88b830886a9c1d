"""Networks across the death of the daemon and of netd: what is right is not touched, what is left over goes."""

import asyncio
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from moorage_guest.api.types import EndpointSettings, HostConfig
from moorage_guest.errors import EngineError
from moorage_guest.events import EventBus
from moorage_guest.net import namespaces
from moorage_guest.net.firewall import Firewall, merge, port_change
from moorage_guest.net.netlink import RouteSocket, add_link, add_veth, delete_link, link_body
from moorage_guest.net.nftables import Nftables
from moorage_guest.store import Store

from tests.support.networks import DEADLINE, HOST, OUTSIDE, World, container_id

pytestmark = pytest.mark.root


def published(network: str, port: int = 8080) -> HostConfig:
    return HostConfig.model_validate(
        {
            "NetworkMode": network,
            "PortBindings": {"80/tcp": [{"HostPort": str(port)}], "81/udp": [{"HostPort": str(port)}]},
        }
    )


def ruleset() -> str:
    """The whole firewall with its handles: a rule that was made again has another one."""
    done = subprocess.run(["nft", "-a", "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    return json.dumps(json.loads(done.stdout), sort_keys=True)


def links() -> dict[str, int]:
    with RouteSocket() as route:
        return {link.name: link.index for link in route.links()}


async def test_everything_serves_while_the_daemon_is_away_and_nothing_is_rebuilt(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("net")
    web, inside = await world.run("web", host=published("net"), endpoints={"net": EndpointSettings()})
    box, client = await world.run("client", "net")
    before = (ruleset(), links(), web.netns_path.stat().st_ino)
    netd = world.started[-1].pid
    await world.networks.close()
    with inside.listen(80):
        assert outside.connect(HOST, 8080) == OUTSIDE
        assert outside.connect("2001:db8:1::1", 8080), "what is carried goes on as well"
        assert client.ask("web") == (0, [web.endpoints["net"].ip_address])
        await world.start({container_id("web"), container_id("client")})
        assert world.networks.warnings == []
        assert (ruleset(), links(), web.netns_path.stat().st_ino) == before
        assert len([p for p in world.started if p.poll() is None]) == 1 and world.started[-1].pid == netd
        assert world.networks.sandbox(container_id("web")) == web
        assert world.networks.sandbox(container_id("client")) == box
        assert outside.connect(HOST, 8080) == OUTSIDE
        assert client.ask("web")[0] == 0
    third, _ = await world.run("third", "net")
    addresses = {s.endpoints["net"].ip_address for s in (web, box, third)}
    assert len(addresses) == 3, "addresses in use are not given out again"
    with pytest.raises(EngineError, match="port is already allocated"):
        await world.run("fourth", host=published("net"))


async def test_no_descriptor_is_left_open_by_many_turns(world: World) -> None:
    await world.start()
    await world.create("net")

    async def turn() -> None:
        for name in ("a", "b"):
            await world.run(
                name, host=published("net", 8080 if name == "a" else 8081), endpoints={"net": EndpointSettings()}
            )
        await world.restart({container_id("a"), container_id("b")})
        await world.networks.connect(container_id("a"), "bridge", None)
        await world.networks.disconnect(container_id("a"), "bridge")
        with pytest.raises(EngineError):
            await world.run("c", host=published("net", 8081))
        for name in ("a", "b"):
            await world.networks.release(container_id(name))
        while world.opened:
            os.close(world.opened.pop())
        await world.networks.settled()

    def open_files() -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in ("self", world.started[-1].pid)]

    await turn()
    before = open_files()
    for _ in range(3):
        await turn()
    assert open_files() == before
    assert not [name for name in links() if name.startswith("veth")]


async def test_what_ended_while_away_is_taken_apart(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("net")
    await world.run("web", host=published("net"), endpoints={"net": EndpointSettings()})
    _, client = await world.run("client", "net")
    await world.restart({container_id("client")})
    assert outside.refused(HOST, 8080)
    assert client.ask("web")[0] != 0
    with world.here().listen(8080):
        pass
    assert world.networks.sandbox(container_id("web")) is None
    assert [p.name for p in world.exec_root.netns.iterdir()] == [container_id("client")]


async def test_half_made_sandboxes_are_swept(world: World) -> None:
    await world.start()
    await world.run("web")
    prefix = next(name for name in links() if name.startswith("veth"))
    stray = world.exec_root.netns / "stray"
    os.close(namespaces.create(stray))
    with RouteSocket() as route:
        name = prefix[:8] + "zzz"
        route.send([add_veth(link_body(name=name), name, link_body(name="vethpeer"))])
        route.send([add_veth(link_body(name="vethother"), "vethother", link_body(name="othpeer"))])
    # A bridge whose record was never written, and one of somebody else.
    orphan = await world.create("orphan")
    world.store.delete("network", orphan)
    with RouteSocket() as route:
        route.send([add_link("bridge", "br-other", link_body(name="br-other"))])
    await world.restart({container_id("web")})
    assert f"br-{orphan[:12]}" not in links() and "br-other" in links()
    assert not stray.exists()
    assert name not in links() and "vethother" in links(), "another daemon's links are left alone"
    assert prefix in links()


async def test_rules_that_somebody_removed_come_back(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    _, inside = await world.run("web", host=published("bridge"))
    before = ruleset()
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    await world.restart({container_id("web")})
    with inside.listen(80):
        assert outside.connect(HOST, 8080) == OUTSIDE
    nft = Nftables()
    try:
        (table,) = [o["table"]["name"] for o in json.loads(nft.run("list tables"))["nftables"] if "table" in o]
        damaged = next(
            o["chain"]["name"]
            for o in nft.table("inet", table) or []
            if o.get("chain", {}).get("name", "").startswith("in-")
        )
        nft.run(f"flush chain inet {table} {damaged}")
    finally:
        nft.close()
    await world.restart({container_id("web")})
    count = before.count('"rule"')
    assert ruleset().count('"rule"') == count


async def test_death_of_netd_is_noticed_and_made_good(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("net")
    web, inside = await world.run("web", host=published("net"), endpoints={"net": EndpointSettings()})
    _, client = await world.run("client", "net")
    first = world.started[-1]
    rules = ruleset()
    with inside.listen(80):
        first.send_signal(signal.SIGKILL)
        first.wait(DEADLINE)
        assert outside.connect(HOST, 8080) == OUTSIDE, "the kernel's rules go on without it"
        end = time.monotonic() + DEADLINE
        while world.started[-1] is first and time.monotonic() < end:
            await _tick()
        await world.networks.settled()
        assert client.ask("web") == (0, [web.endpoints["net"].ip_address])
        assert outside.connect("2001:db8:1::1", 8080)
    assert ruleset() == rules
    with world.here().socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("0.0.0.0", 8080))


async def test_netd_that_died_with_the_daemon_is_made_good_at_the_start(world: World) -> None:
    outside = world.neighbour()
    await world.start()
    await world.create("net")
    web, inside = await world.run("web", host=published("net"), endpoints={"net": EndpointSettings()})
    await world.networks.close()
    world.started[-1].kill()
    world.started[-1].wait(DEADLINE)
    with inside.listen(80):
        assert outside.connect(HOST, 8080) == OUTSIDE
        await world.start({container_id("web")})
        assert inside.ask("web") == (0, [web.endpoints["net"].ip_address])
        assert outside.connect("2001:db8:1::1", 8080)


async def test_netd_ends_by_itself_when_nobody_needs_it(world: World) -> None:
    path = await world.start_netd()
    assert world.started[-1].wait(DEADLINE) == 0
    assert not path.exists()


async def _tick() -> None:
    await asyncio.sleep(0.01)


async def test_default_bridge_follows_bip_only_when_nobody_uses_it(world: World) -> None:
    await world.start()
    await world.run("web")
    await world.restart({container_id("web")}, bip=ipaddress.ip_interface("10.20.0.1/24"))
    assert "there are running containers" in world.networks.warnings[0]
    assert world.networks.inspect("bridge")["IPAM"]["Config"][0]["Subnet"] == "172.17.0.0/16"
    await world.restart(())
    assert world.networks.warnings == []
    assert world.networks.inspect("bridge")["IPAM"]["Config"] == [{"Subnet": "10.20.0.0/24", "Gateway": "10.20.0.1"}]
    box, _ = await world.run("web")
    assert box.endpoints["bridge"].ip_address == "10.20.0.2"


async def test_networks_come_back_after_a_reboot(world: World) -> None:
    await world.start()
    await world.create("net", Labels={"a": "b"}, EnableIPv6=True)
    await world.run("web", "net", host=published("net"))
    before = {name: world.networks.inspect(name) for name in ("bridge", "net", "host", "none")}
    for network in before.values():
        network["Containers"] = {}
    await world.networks.close()
    for process in world.started:
        process.kill()
        process.wait(DEADLINE)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    for path in world.exec_root.netns.iterdir():
        namespaces.remove(path)
    while world.opened:
        os.close(world.opened.pop())
    with RouteSocket() as route:
        for link in route.links():
            if link.kind == "bridge":
                route.send([delete_link(link.index, link.name)])
    shutil.rmtree(world.exec_root.root)
    await world.start(())
    assert {name: world.networks.inspect(name) for name in before} == before
    _, inside = await world.run("web", "net", host=published("net"))
    with inside.listen(80):
        assert world.here().connect("127.0.0.1", 8080)


async def test_damaged_records_do_not_stop_the_start(world: World) -> None:
    await world.start()
    network_id = await world.create("net")
    await world.run("web")
    world.store.put("network", network_id, {"version": 1, "name": 7})
    (world.exec_root.net / "sandbox" / f"{container_id('web')}.json").write_text("{half")
    await world.restart({container_id("web")})
    assert len(world.networks.warnings) == 2
    assert await world.create("net")


async def test_two_daemons_side_by_side_keep_to_their_own(world: World, tmp_path: Path) -> None:
    await world.start()
    other = World(tmp_path, Store(tmp_path / "data" / "db"), EventBus(), world.config)
    try:
        await other.start(bridge="docker0")
        await world.run("one", host=published("bridge", 8080))
        mine = [t for t in _tables() if t.startswith("moorage-")]
        assert len(mine) == 2
        with pytest.raises(EngineError, match="in use"):
            await other.run("two", host=published("bridge", 8080))
        await other.networks.close()
        await other.start(())
        assert not other.networks.inspect("bridge")["Containers"]
        assert world.networks.sandbox(container_id("one")) is not None
    finally:
        await other.close()


def _tables() -> list[str]:
    done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, check=True)
    return [o["table"]["name"] for o in json.loads(done.stdout)["nftables"] if "table" in o]


async def test_thousand_elements_do_not_slow_a_change(world: World) -> None:
    await world.start()
    table = Firewall("many")
    try:
        table.load()
        table.apply(merge(port_change("tcp", "0.0.0.0", 1000 + n, "10.0.0.1", 80) for n in range(2000)))
        assert not table.apply(port_change("tcp", "0.0.0.0", 1000, "10.0.0.1", 80)), "what is there is not sent again"
        start = time.monotonic()
        for n in range(20):
            assert table.apply(port_change("tcp", "0.0.0.0", 9000 + n, "10.0.0.1", 80))
        assert time.monotonic() - start < 2.0
    finally:
        table.remove()
        table.close()


async def test_netd_socket_is_for_its_owner_alone(world: World) -> None:
    await world.start()
    await world.run("web", host=published("bridge"))
    path = world.exec_root.net / "netd.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.send(b"not json")
        assert "error" in json.loads(client.recv(65536))
        client.send(b'{"id":7,"op":"hello"}')
        assert json.loads(client.recv(65536))["id"] == 7, "a bad request does not end the connection"
