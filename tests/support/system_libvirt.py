"""libvirt's system daemon, with a machine that root starts by it: run in name spaces of its own, everything ends with it.

`tini python -m tests.support.system_libvirt` under `unshare --mount --net --pid --fork --kill-child --mount-proc` (tini buries the
QEMUs that libvirt asks what they can do); what was seen
goes to stdout as one JSON object. Nothing of the machine's own libvirt is touched: /run, /etc/libvirt and libvirt's
folders in /var are new ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
from moorage_host.client import Client
from moorage_host.paths import user_paths

from tests.support.host import user_home
from tests.support.vm import image_folder, wait_saved

COVERED = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
SOCKET = Path("/run/libvirt/libvirt-sock")
# cgroups are the one thing that no name space of ours would take away again.
CONFIGURATION = {"qemu.conf": "cgroup_controllers = []\n", "libvirtd.conf": "", "virtlogd.conf": ""}


def cover() -> None:
    """Empty folders over everything that a libvirtd writes to, and a loopback interface."""
    for folder in COVERED:
        Path(folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder], check=True)
    for name, content in CONFIGURATION.items():
        (Path("/etc/libvirt") / name).write_text(content)
    # Debian gives it to the group kvm. Where it is root's alone, as in some containers, libvirtd asks QEMU again and
    # again what it can do: root could use KVM, and libvirt-qemu, who runs QEMU, says it cannot.
    open_kvm_to_all(Path("/run/kvm"))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def open_kvm_to_all(node: Path) -> None:
    """Let every user have /dev/kvm, where there is one, by another `node` in its place in this mount name space."""
    kvm = Path("/dev/kvm")
    if kvm.exists():
        os.mknod(node, stat.S_IFCHR, kvm.stat().st_rdev)
        node.chmod(0o666)
        subprocess.run(["mount", "--bind", node, kvm], check=True)


@contextlib.contextmanager
def daemon(name: str, socket: Path) -> Iterator[None]:
    """One of libvirt's daemons, from the moment that its socket is there."""
    process = subprocess.Popen([f"/usr/sbin/{name}"], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    end = time.monotonic() + 120
    while not socket.exists():
        assert process.poll() is None and time.monotonic() < end, f"{name} did not start"
        time.sleep(0.05)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def owner_of_qemu(uuid: str) -> int:
    """The user that the machine's QEMU runs as."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if uuid in (folder / "cmdline").read_text():
                return folder.stat().st_uid
    raise AssertionError("no QEMU runs the machine")


def main() -> None:
    """Start a machine by the system daemon, start the daemon anew, start the machine from its saved state, delete it."""
    cover()
    seen: dict[str, object] = {}
    with user_home(), daemon("virtlogd", Path("/run/libvirt/virtlogd-sock")):
        client = Client(user_paths())
        client.change_settings(image=str(image_folder()), accelerator="tcg", memory_mib=1024, cpus=1, disk_gib=4)
        with daemon("libvirtd", SOCKET):
            started = client.start()
            seen |= {"uri": started.libvirt_uri, "state": started.state}
            connection = libvirt.open("qemu:///system")
            (domain,) = connection.listAllDomains()
            seen |= {"domain": domain.name(), "qemu_user": owner_of_qemu(domain.UUIDString())}
            connection.close()
        with daemon("libvirtd", SOCKET):
            client.stop()
            wait_saved(user_paths())
            client.start()
            seen["restarted"] = client.status().state
            seen["restored"] = "saved here; restored" in user_paths().console_log.read_text(errors="replace")
            client.delete()
            connection = libvirt.open("qemu:///system")
            seen["left"] = [domain.name() for domain in connection.listAllDomains()]
            connection.close()
        client.stop_backend()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
