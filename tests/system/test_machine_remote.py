"""The machine on another host: this one by its loopback, as a user with sshd and libvirt's session daemon of its own."""

import sys

import pytest

from tests.system.test_machine_drivers import ALONE, INIT, seen

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def test_machine_on_another_host_serves_as_one_here_and_leaves_nothing_behind() -> None:
    found = seen(*ALONE, *INIT, sys.executable, "-m", "tests.support.remote_libvirt")
    # Whether KVM works is found out over there, too.
    assert (found["accelerator"] == "kvm") or (not found["kvm"]) or ("does not work on this host" in found["warning"])
    assert (found["state"], found["accelerator"]) in {("ready", "tcg"), ("ready", "kvm")}
    assert found["uri"].startswith("qemu+ssh://there@127.0.0.1:")
    # What QEMU is given lies in a pool of ours over there, and only the host's own loopback leads to the guest.
    assert found["pool"] == sorted(
        [
            "DIGEST-initrd.img",
            "DIGEST-root.squashfs",
            "DIGEST-vmlinuz",
            "console.log",
            "data.qcow2",
            "guest-config.json",
        ]
    )
    assert {address.rpartition(":")[0] for address in found["listening"]} == {"127.0.0.1"}
    assert found["console"], "the console's log is fetched"
    assert (found["shell"], found["published"]) == ("moorage", "over there\n")
    assert found["after_backend"] == "over there\n", "the next backend takes the machine over"
    assert found["state_without_libvirtd"] == "ready", "a libvirtd that died is started anew"
    assert (found["lost"], found["after_loss"]) == ("starting", True), (
        "the container goes on while the connection is lost"
    )
    assert found["published_after_loss"] == "over there\n"
    assert any("root.squashfs" in step for step in found["copied"])
    assert (found["copied_again"], found["disk_mib"], found["images"]) == ([], 5 << 10, True)
    assert (found["left"], found["left_running"], found["left_here"]) == ([], [], False)
