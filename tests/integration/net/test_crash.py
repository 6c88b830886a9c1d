"""SIGKILL of the daemon at any moment of its work on networks: afterwards what runs has all it had, and nothing is left over."""

import json
import random
import subprocess
import sys
import time

import pytest
from moorage_guest.net.netd_client import NetdClient
from moorage_guest.net.netlink import RouteSocket
from moorage_guest.store import Store

from tests.support.networks import DEADLINE, World

pytestmark = pytest.mark.root


def elements() -> dict[str, int]:
    """How many elements each map and set of the engine's table has."""
    done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    found = {}
    for entry in json.loads(done.stdout)["nftables"]:
        body = entry.get("map") or entry.get("set")
        if body and body["table"].startswith("moorage-"):
            found[body["name"]] = len(body.get("elem", []))
    return found


@pytest.mark.parametrize("seed", range(3))
async def test_kill_at_any_moment_loses_and_leaves_nothing(world: World, seed: int) -> None:
    choose = random.Random(seed)
    live = world.root / "live"
    live.mkdir()
    await world.start()
    await world.start_netd()
    await world.networks.close()
    world.store.close()  # a daemon's database is its own
    for turn in range(4):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.networks_child", str(world.root), str(seed * 100 + turn)],
            stderr=subprocess.PIPE,
        )
        began = time.monotonic()
        while not list(live.iterdir()) and child.poll() is None and time.monotonic() < began + DEADLINE:
            time.sleep(0.01)
        # The moment is what the test chooses: there is no event to wait for.
        time.sleep(choose.random() * 0.3)
        child.kill()
        _, errors = child.communicate()
        assert child.returncode == -9, errors.decode()
    running = {path.name for path in live.iterdir()}
    world.store = Store(world.store.path)
    networks = await world.start(running)
    assert networks.warnings == []
    for container in running:
        sandbox = networks.sandbox(container)
        assert sandbox is not None
        place = world.place(sandbox)
        (settings,) = sandbox.endpoints.values()
        name = (settings.dns_names or [""])[0]
        assert place.ask(name) == (0, [settings.ip_address])
        (bindings,) = sandbox.ports.values()
        assert bindings is not None
        with place.listen(80):
            assert world.here().connect("127.0.0.1", int(bindings[0]["HostPort"]))
    assert {path.name for path in world.exec_root.netns.iterdir()} == running
    assert {path.stem for path in (world.exec_root.net / "sandbox").iterdir()} == running
    bridges = {n["Id"] for n in networks.matching({"driver": ["bridge"]})}
    with RouteSocket() as route:
        links = route.links()
    assert len([link for link in links if link.kind == "veth"]) == len(running)
    assert len([link for link in links if link.kind == "bridge"]) == len(bridges)
    found = elements()
    assert (found["dnat4"], found["bridges"], found["post4"]) == (len(running), len(bridges), len(bridges))
    netd = NetdClient(lambda: world.exec_root.net / "netd.sock")
    try:
        assert netd.keys("sandbox") == running
        assert len(netd.keys("port")) == 2 * len(running)
        assert len(netd.keys("name")) == len(running)
    finally:
        netd.close()
