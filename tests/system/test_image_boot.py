"""The image by itself: booted by QEMU, looked at over SSH."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from tests.support.image_machine import ImageMachine, booted, data_disk, ninep, virtiofs

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

IMAGE = Path(__file__).parents[2] / ".cache" / "image"


@pytest.fixture(scope="module")
def image() -> Path:
    assert (IMAGE / "manifest.json").is_file(), "build the image first: moorage-image build --output .cache/image"
    return IMAGE


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this machine that the guest is offered by 9p and by virtiofs."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "from-the-host").write_text("seen\n")
    return folder


@pytest.fixture(scope="module")
def machine(image: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageMachine]:
    folder = tmp_path_factory.mktemp("image")
    disk = data_disk(folder / "data.img")
    with (
        virtiofs(shared, folder) as devices,
        booted(image, disk, folder, devices=[*ninep(shared), *devices]) as machine,
    ):
        machine.wait_console("sshd starts")
        yield machine


def test_little_memory_is_used_by_the_system_itself(machine: ImageMachine) -> None:
    """First, before other tests load modules."""
    lines = machine.run("cat /proc/meminfo").splitlines()
    meminfo = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines}
    assert meminfo["MemTotal"] - meminfo["MemAvailable"] < 120


def test_blank_data_disk_is_formatted_and_mounted(machine: ImageMachine) -> None:
    assert machine.wait_console("data disk: blank, formatting")
    mounts = machine.run("cat /proc/mounts")
    assert "/dev/vdb /var/lib/moorage ext4 rw,noatime" in mounts


def test_cgroup_v2_delegates_its_controllers(machine: ImageMachine) -> None:
    delegated = set(machine.run("cat /sys/fs/cgroup/cgroup.subtree_control").split())
    assert {"cpuset", "cpu", "io", "memory", "pids"} <= delegated


def test_overlay_with_a_written_upper_layer_works(machine: ImageMachine) -> None:
    output = machine.run(
        "set -e; cd /var/lib/moorage; mkdir -p t/l t/u t/w t/m; echo below > t/l/f; "
        "mount -t overlay -o lowerdir=t/l,upperdir=t/u,workdir=t/w o t/m; "
        "echo above > t/m/f; cat t/l/f t/u/f; umount t/m; rm -r t"
    )
    assert output.split() == ["below", "above"]


def test_bridge_veth_and_network_namespaces_work(machine: ImageMachine) -> None:
    script = """
import os
from moorage_guest.net.netlink import RouteSocket, add_link, add_veth, change_link, delete_link, link_body
host = RouteSocket()
home = os.open("/proc/self/ns/net", os.O_RDONLY)
os.unshare(os.CLONE_NEWNET)
space = os.open("/proc/self/ns/net", os.O_RDONLY)
inside = RouteSocket()
os.setns(home)
host.send([add_link("bridge", "br9", link_body(name="br9", up=True))])
bridge = host.link("br9").index
host.send([add_veth(link_body(name="v0", master=bridge, up=True), "v0", link_body(name="v1", namespace=space))])
print(host.link("v0").master == bridge, inside.link("v1").kind, host.link("v1"))
host.send([delete_link(host.link("v0").index, "v0"), delete_link(bridge, "br9")])
"""
    assert machine.run(f"python3 -I - <<'E'{script}E").split() == ["True", "veth", "None"]


def test_nftables_translates_addresses(machine: ImageMachine) -> None:
    rules = """
table inet t {
    map m { type inet_service : ipv4_addr . inet_service; }
    chain pre {
        type nat hook prerouting priority dstnat
        tcp dport 80 redirect to :8080
        fib daddr type local dnat ip to tcp dport map @m
    }
    chain post { type nat hook postrouting priority srcnat; oifname eth0 masquerade; }
    chain f { type filter hook forward priority filter; ct state established,related accept; }
}
"""
    output = machine.run(f"nft -f - <<'E'{rules}E\nnft list table inet t && nft delete table inet t")
    assert "masquerade" in output and "redirect to :8080" in output


@pytest.mark.parametrize(
    "name", ["macvlan", "ipvlan", "dummy", "tun", "9p", "9pnet_virtio", "virtiofs", "fuse", "sctp", "loop"]
)
def test_module_is_available(machine: ImageMachine, name: str) -> None:
    machine.run(f"modprobe {name}")


@pytest.mark.parametrize("name", ["fuse", "9p", "virtiofs", "overlay", "ext4", "cgroup2"])
def test_file_system_is_known_to_the_kernel(machine: ImageMachine, name: str) -> None:
    machine.run(f"modprobe {name} 2> /dev/null; grep -qw {name} /proc/filesystems")


def test_virtio_devices_are_driven(machine: ImageMachine) -> None:
    machine.run("modprobe 9pnet_virtio; modprobe virtiofs")
    drivers = machine.run("for d in /sys/bus/virtio/devices/*/driver; do basename $(readlink $d); done").split()
    expected = ["9pnet_virtio", "virtio_balloon", "virtio_blk", "virtio_blk", "virtio_net", "virtio_rng", "virtiofs"]
    assert sorted(drivers) == sorted(expected)


@pytest.mark.parametrize(("kind", "options"), [("9p", "-o trans=virtio,version=9p2000.L"), ("virtiofs", "")])
def test_folder_of_the_host_is_mounted_read_and_written(
    machine: ImageMachine, shared: Path, kind: str, options: str
) -> None:
    output = machine.run(
        f"set -e; mkdir /tmp/{kind}; mount -t {kind} {options} shared-{kind} /tmp/{kind}; cd /tmp/{kind}; "
        f"cat from-the-host; echo written > from-the-guest-{kind}; sync; cd /; umount /tmp/{kind}; rmdir /tmp/{kind}"
    )
    assert output == "seen\n"
    assert (shared / f"from-the-guest-{kind}").read_text() == "written\n"


def test_balloon_takes_memory_from_the_guest_and_gives_it_back(machine: ImageMachine) -> None:
    def total() -> int:
        return int(machine.run("awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo"))

    before = total()
    machine.ask_monitor("balloon 768")
    machine.wait_monitor("info balloon", "actual=768")
    assert total() < before - 200
    machine.ask_monitor("balloon 1024")
    machine.wait_monitor("info balloon", "actual=1024")
    assert total() > before - 16


def test_random_numbers_come_from_the_host(machine: ImageMachine) -> None:
    output = machine.run("cat /sys/class/misc/hw_random/rng_current; head -c 4096 /dev/hwrng | sha256sum | cut -c 1-64")
    device, digest = output.split()
    assert device.startswith("virtio_rng")
    assert digest != hashlib.sha256(bytes(4096)).hexdigest()


def test_fuse_file_system_is_mounted_and_asked(machine: ImageMachine) -> None:
    """The kernel's first question to a FUSE server is FUSE_INIT, number 26."""
    script = """
import ctypes, os, struct
fuse = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/tmp/f")
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert libc.mount(b"x", b"/tmp/f", b"fuse.x", 0, options) == 0, os.strerror(ctypes.get_errno())
print(struct.unpack_from("II", os.read(fuse, 65536))[1])
assert libc.umount2(b"/tmp/f", 2) == 0
os.rmdir("/tmp/f")
"""
    assert machine.run(f"python3 -I - <<'E'{script}E").strip() == "26"


def test_only_sshd_listens_on_tcp(machine: ImageMachine) -> None:
    listening = [line.split() for line in machine.run("cat /proc/net/tcp /proc/net/tcp6").splitlines()]
    ports = {int(words[1].rpartition(":")[2], 16) for words in listening if len(words) > 3 and words[3] == "0A"}
    assert ports == {22}


def test_passwords_are_not_offered(machine: ImageMachine) -> None:
    transport = machine.connect()
    try:
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_password("root", "")
        assert refused.value.allowed_types == ["publickey"]
    finally:
        transport.close()


def test_no_account_has_a_password(machine: ImageMachine) -> None:
    fields = [line.split(":")[1] for line in machine.run("cat /etc/shadow").splitlines()]
    assert fields and set(fields) == {"*"}


def test_foreign_key_is_refused(machine: ImageMachine) -> None:
    transport = machine.connect()
    try:
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("root", paramiko.ECDSAKey.generate())
    finally:
        transport.close()


def test_ssh_forwards_to_a_unix_socket_in_the_guest(machine: ImageMachine) -> None:
    assert "allowstreamlocalforwarding yes" in machine.run("/usr/sbin/sshd -T")


def test_name_and_resolver_come_from_the_host(machine: ImageMachine) -> None:
    assert machine.run("hostname").strip() == "image-test"
    machine.wait_console("network: ")
    assert "nameserver " in machine.run("cat /etc/resolv.conf")


def test_everything_python_is_compiled(machine: ImageMachine) -> None:
    sources = "find /usr/lib/python3.13 /usr/lib/python3 /opt/moorage/lib -name '*.py' | wc -l"
    compiled = "find /usr/lib/python3.13 /usr/lib/python3 /opt/moorage/lib -name '*.cpython-313.pyc' | wc -l"
    assert int(machine.run(sources)) == int(machine.run(compiled)) > 500


def test_engine_dependencies_can_be_imported(machine: ImageMachine) -> None:
    machine.run(
        "python3 -I -c 'import aiohttp.web, h2.connection, pydantic, zstandard, sqlite3, ssl, moorage_guest, moorage_contract'"
    )


def test_image_is_small(image: Path) -> None:
    files = json.loads((image / "manifest.json").read_text())["files"].values()
    assert sum(file["size"] for file in files) <= 80 << 20


def test_data_survives_power_off_and_is_not_formatted_again(image: Path, tmp_path: Path) -> None:
    disk = data_disk(tmp_path / "data.img")
    with booted(image, disk, tmp_path / "first") as machine:
        machine.wait_console("sshd starts")
        machine.run("echo kept > /var/lib/moorage/kept")
        machine.power_off()
        assert machine.wait_end() == 0
        assert any("data disk unmounted" in line for line in machine.console)
    with disk.open("r+b") as file:
        file.truncate(3 << 30)
    with booted(image, disk, tmp_path / "second") as machine:
        machine.wait_console("sshd starts")
        assert machine.run("cat /var/lib/moorage/kept").strip() == "kept"
        assert not any("formatting" in line or "repairing" in line for line in machine.console)
        machine.run(
            "n=0; until [ $(stat -f -c %b /var/lib/moorage) -gt 700000 ]; do usleep 100000; n=$((n+1)); [ $n -lt 300 ]; done"
        )


def test_disk_with_anything_else_on_it_is_not_written_to(image: Path, tmp_path: Path) -> None:
    disk = data_disk(tmp_path / "data.img", 128)
    with disk.open("r+b") as file:
        file.seek(70_000)
        file.write(b"somebody's signature")
    before = disk.read_bytes()
    with booted(image, disk, tmp_path / "machine") as machine:
        machine.wait_console("nothing was written to it")
        machine.wait_console("sshd starts")
        assert "e2fsck" in machine.run("cat /run/moorage/data-disk.error")
    assert disk.read_bytes() == before


def test_power_button_powers_off_in_order(image: Path, tmp_path: Path) -> None:
    with booted(image, data_disk(tmp_path / "data.img"), tmp_path / "machine") as machine:
        machine.wait_console("sshd starts")
        machine.run(
            "n=0; until ls -l /proc/$(pidof acpid)/fd | grep /dev/input/event; do usleep 200000; n=$((n+1)); [ $n -lt 300 ] || exit 1; done"
        )
        machine.press_power_button()
        machine.wait_console("data disk unmounted")
        assert machine.wait_end() == 0


def test_kernel_panic_restarts_the_machine(image: Path, tmp_path: Path) -> None:
    with booted(image, data_disk(tmp_path / "data.img"), tmp_path / "machine") as machine:
        machine.wait_console("sshd starts")
        machine.run("sync; (usleep 300000; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
        assert machine.wait_end() == 0  # QEMU is told to end where a machine would start again
        assert any("Kernel panic" in line for line in machine.console)


def test_without_the_host_configuration_nothing_listens(image: Path, tmp_path: Path) -> None:
    with booted(image, data_disk(tmp_path / "data.img"), tmp_path / "machine", provisioned=False) as machine:
        machine.wait_console("sshd not started: no usable configuration")
        with socket.create_connection(("127.0.0.1", int(machine.port_file.read_text())), timeout=60) as client:
            client.settimeout(60)
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                pass
