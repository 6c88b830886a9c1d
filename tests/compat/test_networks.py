"""Networks through the docker CLI, docker-py and the checked API, against a running daemon."""

import json
import time
import uuid
from typing import Any

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored, wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> str:
    return f"n{uuid.uuid4().hex[:10]}"


def inspect(moored: Moored, kind: str, reference: str) -> Any:
    return json.loads(moored.docker(kind, "inspect", reference))[0]


def serve(moored: Moored, name: str, *options: str) -> None:
    """Start a container that answers every request on port 80 with its name."""
    moored.docker(
        "run", "-d", "--name", name, *options, "busybox", "sh", "-c",
        f"mkdir -p /w && echo {name} > /w/index.html && exec httpd -f -p 80 -h /w",
    )  # fmt: skip


def fetch(moored: Moored, client: str, name: str) -> str:
    """Resolve a name inside a container and fetch from there, once the server listens.

    The image's busybox is linked statically: its wget cannot resolve names, its nslookup can.
    """
    answer = moored.docker("exec", client, "nslookup", "-type=a", name)
    address = answer.rsplit("Address: ", 1)[-1].split()[0]
    request = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80"
    answer = wait_for(
        f"{client} to fetch from {address}",
        lambda: moored.docker("exec", client, "sh", "-c", request, check=False),
    )
    return str(answer).splitlines()[-1]


def test_predefined_networks_are_listed(moored: Moored) -> None:
    names = moored.docker("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").splitlines()
    assert {"bridge bridge local", "host host local", "none null local"} <= set(names)


def test_published_port_is_reached_from_the_host_and_shown(moored: Moored, name: str) -> None:
    serve(moored, name, "-p", "18080:80")
    try:
        assert moored.docker("port", name, "80").splitlines() == ["0.0.0.0:18080", "[::]:18080"]
        url = "http://127.0.0.1:18080/"
        got = wait_for(
            "the server", lambda: moored.sandbox.run("busybox", "wget", "-q", "-O", "-", url, check=False).stdout
        )
        assert got == f"{name}\n"
        text = moored.docker_run("run", "--rm", "-p", "18080:80", "busybox", "true").stderr
        assert "Bind for 0.0.0.0:18080 failed: port is already allocated" in text
    finally:
        moored.docker("rm", "-f", name)
    assert moored.docker("run", "--rm", "-p", "18080:80", "busybox", "echo", "free") == "free"


def test_containers_of_a_network_find_each_other(moored: Moored, name: str) -> None:
    moored.docker("network", "create", name)
    serve(moored, f"{name}-web", "--network", name, "--network-alias", "www")
    moored.docker("run", "-d", "--name", f"{name}-client", "--network", name, "busybox", "sleep", "1000")
    try:
        assert fetch(moored, f"{name}-client", f"{name}-web") == f"{name}-web"
        assert fetch(moored, f"{name}-client", "www") == f"{name}-web"
        seen = inspect(moored, "network", name)["Containers"]
        assert {each["Name"] for each in seen.values()} == {f"{name}-web", f"{name}-client"}
        done = moored.docker_run("network", "rm", name)
        assert done.returncode == 1 and f"network {name} has active endpoints" in done.stderr
    finally:
        moored.docker("rm", "-f", f"{name}-web", f"{name}-client")
        moored.docker("network", "rm", name)


def test_connect_and_disconnect_live_and_stopped(moored: Moored, name: str) -> None:
    moored.docker("network", "create", name)
    moored.docker("run", "-d", "--name", f"{name}-c", "busybox", "sleep", "1000")
    moored.docker("create", "--name", f"{name}-s", "busybox", "sleep", "1000")
    try:
        for container in (f"{name}-c", f"{name}-s"):
            moored.docker("network", "connect", "--alias", "other", name, container)
        moored.docker("start", f"{name}-s")
        got = inspect(moored, "container", f"{name}-s")["NetworkSettings"]["Networks"]
        assert set(got) == {"bridge", name}
        address = got[name]["IPAddress"]
        assert address and address in moored.docker("exec", f"{name}-c", "nslookup", f"{name}-s")
        assert address in moored.docker("exec", f"{name}-s", "ip", "-4", "addr")
        moored.docker("network", "disconnect", name, f"{name}-s")
        assert address not in moored.docker("exec", f"{name}-s", "ip", "-4", "addr")
        done = moored.docker_run("network", "disconnect", name, f"{name}-s")
        assert "is not connected to network" in done.stderr
        moored.docker("restart", "-t", "0", f"{name}-c")
        assert set(inspect(moored, "container", f"{name}-c")["NetworkSettings"]["Networks"]) == {"bridge", name}
    finally:
        moored.docker("rm", "-f", f"{name}-c", f"{name}-s")
        moored.docker("network", "rm", name)


def test_network_create_options_show_in_inspect(moored: Moored, name: str) -> None:
    moored.docker(
        "network", "create", "--subnet", "10.77.0.0/16", "--ip-range", "10.77.5.0/24", "--gateway", "10.77.5.254",
        "--aux-address", "router=10.77.5.1", "--label", "a=b", "-o", "com.docker.network.driver.mtu=1400", name,
    )  # fmt: skip
    try:
        got = inspect(moored, "network", name)
        assert got["IPAM"]["Config"] == [
            {
                "Subnet": "10.77.0.0/16",
                "IPRange": "10.77.5.0/24",
                "Gateway": "10.77.5.254",
                "AuxiliaryAddresses": {"router": "10.77.5.1"},
            }
        ]
        assert got["Labels"] == {"a": "b"}
        text = moored.docker(
            "run", "--rm", "--network", name, "--ip", "10.77.9.9", "busybox", "ip", "addr", "show", "eth0"
        )
        assert "10.77.9.9/16" in text and "mtu 1400" in text
    finally:
        moored.docker("network", "rm", name)


def test_modes_host_none_and_container(moored: Moored, name: str) -> None:
    assert "docker0" in moored.docker("run", "--rm", "--network", "host", "busybox", "ip", "link")
    none = moored.docker("run", "--rm", "--network", "none", "busybox", "ip", "link")
    assert "eth0" not in none and "lo" in none
    moored.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
    try:
        own = moored.docker("exec", name, "ip", "addr", "show", "eth0")
        joined = moored.docker("run", "--rm", "--network", f"container:{name}", "busybox", "ip", "addr", "show", "eth0")
        assert joined == own
    finally:
        moored.docker("rm", "-f", name)


def test_api_answers_have_their_shape(moored: Moored, name: str) -> None:
    api = moored.api
    made = api.call("POST", "/networks/create", body={"Name": name, "Labels": {"x": "1"}})
    assert made.status == 201
    try:
        assert api.call("GET", f"/networks/{name}").status == 200
        assert api.call("GET", "/networks/nope").status == 404
        assert api.call("POST", "/networks/create", body={"Name": name}, check=False).status == 409
        assert api.call("POST", "/networks/create", body={"Name": "bridge"}).status == 403
        assert api.call("POST", "/networks/create", body={"Name": ""}).status == 400
        assert api.call("DELETE", "/networks/host").status == 403
        assert api.call("GET", "/networks").status == 200
        assert api.call("GET", "/networks", query={"filters": {"nope": ["x"]}}, check=False).status == 400
    finally:
        assert api.call("DELETE", f"/networks/{name}").status == 204
    assert api.call("POST", "/networks/prune").status == 200


def test_half_a_surrogate_pair_is_no_reason_to_fail(moored: Moored) -> None:
    body = b'{"Name": "bad\\ud800", "Driver": "nope\\ud83d\\ude00"}'
    headers = {"Content-Type": "application/json"}
    reply = moored.api.call("POST", "/volumes/create", body=body, headers=headers, check=False)
    assert reply.status == 404 and "create bad\ufffd" in reply.json["message"] and "\U0001f600" in reply.json["message"]


def test_docker_py_creates_connects_and_removes(moored: Moored, name: str) -> None:
    with moored.client() as client:
        network = client.networks.create(name, labels={"owner": "test"}, internal=True, check_duplicate=True)
        container = client.containers.run("busybox", "sleep 1000", detach=True, name=f"{name}-c")
        try:
            assert [n.name for n in client.networks.list(filters={"label": "owner=test"})] == [name]
            network.connect(container, aliases=["app"])
            network.reload()
            assert container in network.containers
            network.disconnect(container)
            network.reload()
            assert network.containers == []
        finally:
            container.remove(force=True)
            network.remove()


def test_events_tell_of_networks(moored: Moored, name: str) -> None:
    moored.docker("network", "create", name)
    moored.docker("run", "--rm", "--network", name, "busybox", "true")
    moored.docker("network", "rm", name)
    lines = moored.docker(
        "events", "--since", "1h", "--until", str(int(time.time()) + 1), "--filter", f"network={name}", "--filter", "type=network",
        "--format", "{{.Action}}",
    )  # fmt: skip
    assert lines.splitlines() == ["create", "connect", "disconnect", "destroy"]


def test_rules_of_the_users_own_hold_for_published_ports_and_stay(fresh_moored: Moored) -> None:
    moored = fresh_moored
    moored.docker("network", "create", "net")
    serve(moored, "web", "--network", "net", "-p", "18082:80", "-p", "18083:80")
    moored.docker("run", "-d", "--name", "client", "busybox", "sleep", "1000")
    gateway = inspect(moored, "network", "bridge")["IPAM"]["Config"][0]["Gateway"]

    def answers(port: int) -> bool:
        url = f"http://{gateway}:{port}/"
        done = moored.docker_run("exec", "client", "timeout", "3", "busybox", "wget", "-q", "-O", "-", url)
        return done.stdout == "web\n"

    wait_for("the server", lambda: answers(18082))
    chain = "type filter hook forward priority filter - 5; policy accept;"
    rule = "meta l4proto tcp ct direction original ct original proto-dst 18082 drop"
    moored.sandbox.run(
        "nft", f"add table inet own; add chain inet own mine {{ {chain} }}; add rule inet own mine {rule}"
    )
    for _ in range(2):
        assert not answers(18082) and answers(18083)
        moored.kill()
        moored.start()
    moored.docker("rm", "-f", "web", "client")


def test_ports_and_names_go_on_over_a_kill_of_the_daemon(fresh_moored: Moored) -> None:
    moored = fresh_moored
    moored.stop()
    moored.arguments.append("--live-restore")
    moored.start()
    moored.docker("network", "create", "net")
    serve(moored, "web", "--network", "net", "-p", "18081:80")
    moored.docker("run", "-d", "--name", "client", "--network", "net", "busybox", "sleep", "1000")
    assert fetch(moored, "client", "web") == "web"
    before = moored.docker("inspect", "-f", "{{json .NetworkSettings}}", "web", "client")
    pid = moored.docker("inspect", "-f", "{{.State.Pid}}", "client")
    moored.kill()
    got = moored.sandbox.run("busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:18081/").stdout
    assert got == "web\n", "the port serves without the daemon"
    inside = moored.sandbox.run("nsenter", "-t", pid, "-n", "--", "busybox", "nslookup", "web", "127.0.0.11").stdout
    assert "Address" in inside.split("127.0.0.11", 2)[-1], "and so do names"
    moored.start()
    assert moored.docker("inspect", "-f", "{{json .NetworkSettings}}", "web", "client") == before
    assert fetch(moored, "client", "web") == "web"
    moored.docker("rm", "-f", "web", "client")
    moored.docker("network", "rm", "net")
    assert moored.sandbox.run("ls", str(moored.exec_root / "netns")).stdout == ""


def test_supervised_ports_and_names_survive_kills_of_netd_and_of_the_daemon() -> None:
    with running_moored("--live-restore", supervised=True) as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        moored.docker("network", "create", "net")
        serve(moored, "web", "--network", "net", "-p", "18082:80")
        moored.docker("run", "-d", "--name", "client", "--network", "net", "busybox", "sleep", "1000")
        url = "http://127.0.0.1:18082/"

        def get() -> str:
            return moored.sandbox.run("busybox", "wget", "-q", "-O", "-", url, check=False).stdout

        def resolved() -> bool:
            return "Address: 172.18.0.2" in moored.docker("exec", "client", "nslookup", "-type=a", "web", check=False)

        def pids(name: str) -> list[str]:
            listed = moored.sandbox.run("ps", "-eo", "pid,comm").stdout.splitlines()
            return [line.split()[0] for line in listed if line.split()[1] == name]

        wait_for("the server", get)
        assert resolved()
        (netd,) = pids("moorage-netd")
        moored.sandbox.run("kill", "-9", netd)
        assert get() == "web\n", "the kernel's rules go on"
        wait_for("a new netd", lambda: [pid for pid in pids("moorage-netd") if pid != netd])
        wait_for("names to be answered again", resolved)
        (fresh,) = pids("moorage-netd")
        (daemon,) = pids("moored")
        moored.sandbox.run("kill", "-9", daemon)
        assert get() == "web\n"
        assert resolved(), "the exec waits for the daemon, the name does not"
        assert pids("moorage-netd") == [fresh]
        moored.docker("rm", "-f", "web", "client")
        moored.docker("network", "rm", "net")
        links = moored.sandbox.run("ip", "-br", "link").stdout.split()
        assert not [word for word in links if word.startswith(("veth", "br-"))]


def test_without_a_default_bridge_containers_have_only_their_loopback() -> None:
    with running_moored("--bridge", "none") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        for arguments in ([], ["--network", "bridge"]):
            assert daemon.docker("run", "--rm", *arguments, "busybox", "ls", "/sys/class/net") == "lo"


def test_hosts_file_of_a_container_without_ipv6_names_no_such_address(moored: Moored, name: str) -> None:
    off = ["--sysctl", "net.ipv6.conf.all.disable_ipv6=1"]
    for more in ([], ["--network", "none"]):
        shown = moored.docker("run", "--rm", "--name", name, *off, *more, "busybox", "cat", "/etc/hosts")
        assert shown.startswith("127.0.0.1\tlocalhost") and "::" not in shown
