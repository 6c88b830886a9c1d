"""Differences that dockerd's own suites (integration, integration-cli) found, each closed and kept closed."""

import json
import signal
import time

import pytest

from tests.support.fuzzing import tar_bytes
from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox, running_moored, wait_for


def test_link_to_a_container_in_anothers_network_leads_to_that_ones_address(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "owner", "busybox", "sleep", "1000")
    moored.docker("run", "-d", "--name", "guest", "--net=container:owner", "busybox", "sleep", "1000")
    hosts = moored.docker("run", "--rm", "--link", "guest:db", "busybox", "cat", "/etc/hosts")
    address = moored.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "owner")
    assert any(line.split()[:2] == [address, "db"] for line in hosts.splitlines())
    joined = moored.docker("run", "--rm", "--net=container:guest", "busybox", "cat", "/etc/hosts")
    assert any(line.split()[0] == address for line in joined.splitlines())
    moored.docker("rm", "-f", "owner", "guest")


def test_volume_takes_no_propagation(moored: Moored) -> None:
    done = moored.docker_run("run", "-v", "foo:/test:shared", "busybox", "true")
    assert done.returncode == 125 and "invalid mount config" in done.stderr


def test_a_program_is_no_working_folder(moored: Moored) -> None:
    done = moored.docker_run("run", "--rm", "-w", "/bin/cat", "busybox", "true")
    assert done.returncode == 125 and "Cannot mkdir: /bin/cat is not a directory" in done.stderr, done.stderr


@pytest.mark.parametrize("keys", ["ctrl-A,a", "ctrl-1", "ab"])
def test_detach_keys_are_those_of_docker(moored: Moored, keys: str) -> None:
    container = moored.docker("create", "-it", "busybox", "true")
    query = {"stream": "1", "stdout": "1", "detachKeys": keys}
    refused = moored.api.call("POST", f"/containers/{container}/attach", query=query, check=False)
    assert refused.status == 400 and f"Invalid detach keys ({keys}) provided" in refused.body.decode()


def test_info_tells_how_the_daemon_confines_containers() -> None:
    with running_moored("--seccomp-profile=unconfined", "--no-new-privileges") as moored:
        info = moored.api.get("/info").json
        assert {"name=seccomp,profile=unconfined", "name=no-new-privileges"} <= set(info["SecurityOptions"])
        assert "WARNING: daemon is not using the default seccomp profile" in info["Warnings"]


def test_networks_that_take_no_addresses_or_aliases_say_so(moored: Moored) -> None:
    moored.docker("network", "create", "plain")
    for mode, said in (
        ("none", "supported on user defined networks only"),
        ("host", "supported on user defined networks only"),
        ("plain", "only when connecting to networks with user configured subnets"),
    ):
        done = moored.docker_run("run", "--net", mode, "--ip6", "2001:db8::9", "busybox", "true")
        assert done.returncode == 125 and said in done.stderr
    container = moored.docker("run", "-d", "--net=none", "busybox", "sleep", "1000")
    for network in ("bridge", "host", "none"):
        done = moored.docker_run("network", "connect", "--alias", "other", network, container)
        assert "network-scoped alias is supported only for containers in user defined networks" in done.stderr
    moored.docker("rm", "-f", container)
    moored.docker("network", "rm", "plain")


@pytest.mark.parametrize(
    "asked", [["--ip6", "::ffff:172.28.99.99"], ["--link-local-ip", "169.253.5.5"], ["--link-local-ip", "2001:db8::89"]]
)
def test_address_of_the_wrong_kind_is_refused(moored: Moored, asked: list[str]) -> None:
    moored.docker("network", "create", "--ipv6", "--subnet=2001:db8:7::/64", "mixed")
    try:
        done = moored.docker_run("run", "--net", "mixed", *asked, "busybox", "true")
        assert done.returncode == 125 and "invalid" in done.stderr and asked[1] in done.stderr
        [first, second] = moored.api.get("/networks/mixed").json["IPAM"]["Config"]
        assert ":" not in first["Subnet"] and second["Subnet"] == "2001:db8:7::/64"
    finally:
        moored.docker("network", "rm", "mixed")


def test_stopped_container_leaves_a_network_that_is_gone(moored: Moored) -> None:
    moored.docker("network", "create", "gone")
    moored.docker("run", "--net", "gone", "--name", "left", "busybox", "true")
    moored.docker("network", "rm", "gone")
    moored.docker("network", "disconnect", "-f", "gone", "left")
    assert "gone" not in moored.docker("inspect", "-f", "{{.NetworkSettings.Networks}}", "left")
    assert "is not connected" in moored.docker_run("network", "disconnect", "-f", "gone", "left").stderr
    moored.docker("rm", "left")


def test_bridge_keeps_an_ipv6_address_whose_prefix_length_alone_changes() -> None:
    with running_moored("--ipv6", "--fixed-cidr-v6", "fe80:1234::/64") as moored:
        for subnet, there, gone in (
            ("fd1c:f1a0:5d8d:bbbb::/64", "fd1c:f1a0:5d8d:bbbb::1/64", "fe80:1234::1"),
            ("fd1c:f1a0:5d8d:bbbb::/80", "fd1c:f1a0:5d8d:bbbb::1/64", "bbbb::1/80"),
        ):
            moored.stop()
            moored.arguments[-1] = subnet
            moored.start()
            shown = moored.sandbox.run("ip", "-6", "address", "show", "docker0").stdout
            assert there in shown and gone not in shown


def test_exec_that_was_never_started_ends_with_its_container(moored: Moored) -> None:
    container = moored.docker("run", "-d", "busybox", "sleep", "1000")
    made = moored.api.post(f"/containers/{container}/exec", {"Cmd": ["true"], "AttachStdout": True}).json["Id"]
    for word in ("stop", "start"):
        moored.docker(word, *(["-t", "0"] if word == "stop" else []), container)
        assert moored.api.call("POST", f"/exec/{made}/start", body={}, check=False).status == 404
    moored.docker("rm", "-f", container)


def test_capabilities_may_be_one_word(moored: Moored) -> None:
    host = {"CapAdd": "NET_ADMIN", "CapDrop": "cap_sys_admin"}
    made = moored.api.call("POST", "/containers/create", body={"Image": "busybox", "Cmd": ["true"], "HostConfig": host})
    assert made.status == 201
    moored.docker("rm", made.json["Id"])


def test_cpu_shares_that_the_kernel_cannot_take_are_refused(moored: Moored) -> None:
    refused = {"-1": "shares: invalid argument"}
    if moored.api.get("/info").json["CgroupVersion"] == "1":
        refused |= {"1": "minimum allowed cpu-shares is 2", "99999999": "maximum allowed cpu-shares is"}
    for shares, said in refused.items():
        assert said in moored.docker_run("run", "--rm", "--cpu-shares", shares, "busybox", "true").stderr


def test_reload_is_told_in_the_words_of_daemon_json(moored: Moored) -> None:
    moored.config_file.write_text('{"labels": ["bar=foo"], "max-concurrent-uploads": 7, "debug": true}')
    moored.signal(signal.SIGHUP)
    wait_for("the reload", lambda: 'Reloaded configuration: {\\"' in moored.log())
    for kind, number in (("Uploads", 7), ("Downloads", 3)):
        assert f'level=debug msg="Reset Max Concurrent {kind}: {number}"' in moored.log()
    event = moored.docker("events", "--since=0", f"--until={time.time():.9f}", "--filter=event=reload")
    for part in (
        'labels=["bar=foo"]',
        "runtimes={}",
        "allow-nondistributable-artifacts=[]",
        "max-concurrent-uploads=7",
    ):
        assert part in event


def test_daemon_that_cannot_start_says_so(moored: Moored) -> None:
    done = moored.sandbox.run(*moored.argv(), "--bridge", "none", "--bip", "10.1.1.1/24", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("failed to start daemon: ") and "mutually exclusive" in done.stderr


def test_bridge_of_the_users_own_outlives_the_networks_on_it() -> None:
    def bridges(moored: Moored) -> set[str]:
        shown = moored.sandbox.run("ip", "-o", "link", "show", "type", "bridge").stdout
        return {line.split(":")[1].strip() for line in shown.splitlines()}

    with Sandbox() as sandbox:
        for name, address in (("mine", "192.169.1.1/24"), ("mine2", "192.169.2.1/24")):
            sandbox.run("ip", "link", "add", "name", name, "type", "bridge")
            sandbox.run("ip", "address", "add", address, "dev", name)
        moored = Moored(sandbox, ["--bridge", "mine"]).start()
        option = "com.docker.network.bridge.name=mine2"
        moored.docker("network", "create", "-o", option, "--subnet", "192.169.2.0/24", "on-it")
        moored.docker("network", "rm", "on-it")
        moored.stop()
        moored.arguments.clear()
        moored.start()
        assert bridges(moored) == {"docker0", "mine", "mine2"}
        moored.stop()
        moored.arguments.extend(["--bridge", "none"])
        moored.start()
        assert bridges(moored) == {"mine", "mine2"}
        moored.stop()


def test_address_of_ones_own_is_free_for_the_next_start_at_once(moored: Moored) -> None:
    moored.docker("network", "create", "--subnet", "172.30.0.0/16", "static")
    moored.docker("run", "-d", "--net=static", "--ip", "172.30.5.44", "--name", "kept", "busybox", "sleep", "1000")
    for _ in range(4):
        moored.docker("restart", "-t", "0", "kept")
    for _ in range(4):
        moored.docker("rm", "-f", "kept")
        moored.docker("run", "-d", "--net=static", "--ip", "172.30.5.44", "--name", "kept", "busybox", "sleep", "1000")
    taken = moored.docker_run("run", "--net=static", "--ip", "172.30.5.44", "busybox", "true")
    assert "Address already in use" in taken.stderr
    moored.docker("rm", "-f", "kept")
    moored.docker("network", "rm", "static")


def test_mac_address_brings_an_ipv6_address_on_the_default_bridge() -> None:
    with running_moored("--ipv6", "--fixed-cidr-v6=2001:db8:1::/64") as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        container = moored.docker("run", "-d", "--mac-address", "AA:BB:CC:DD:EE:FF", "busybox", "sleep", "1000")
        shown = moored.docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.GlobalIPv6Address}}", container)
        assert shown == "2001:db8:1::aabb:ccdd:eeff"


def test_build_tells_the_image_of_every_stage(moored: Moored) -> None:
    context = tar_bytes({"Dockerfile": b"FROM busybox AS base\nENV a=b\nONBUILD ENV c=d\nFROM base\n"})
    built = moored.api.call("POST", "/build", body=context, headers={"Content-Type": "application/x-tar"})
    ids = [line["aux"]["ID"] for line in map(json.loads, built.body.splitlines()) if "aux" in line]
    assert len(ids) == 2
    assert moored.api.get(f"/images/{ids[1]}/json").json["Parent"] == ids[0]
