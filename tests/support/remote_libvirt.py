"""A machine on another host, which is this one by its loopback: a user of its own, with sshd and libvirt's session daemon.

`tini python -m tests.support.remote_libvirt` as root under `unshare --mount --pid --fork --kill-child --mount-proc`; what was seen goes
to stdout as one JSON object. The other host's user has nobody's number, and a home and a shell.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage_host.client import Client
from moorage_host.link.keys import ensure
from moorage_host.paths import user_paths

from tests.support.host import backend_pid, user_home, wait_ended
from tests.support.images import BUSYBOX_IMAGE, busybox_archive
from tests.support.sshd import free_port, sshd
from tests.support.system_libvirt import open_kvm_to_all
from tests.support.vm import Vm, image_folder

USER = "there"
UID, GID = pwd.getpwnam("nobody")[2:4]
BE_USER = ("setpriv", "--reuid", str(UID), "--regid", str(GID), "--clear-groups")


def prepare_user(home: Path) -> None:
    """Have a user with a home and a shell in nobody's place, in this mount name space alone: sshd finds nobody locked."""
    lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
    changed = home / "passwd"
    changed.write_text(
        f"{USER}:x:{UID}:{GID}::{home}:/bin/sh\n" + "".join(one for one in lines if f":{UID}:" not in one)
    )
    changed.chmod(0o644)
    subprocess.run(["mount", "--bind", str(changed), "/etc/passwd"], check=True)


@dataclass
class OtherHost:
    """The other host: its user's home, and its sshd on a port of 127.0.0.1."""

    home: Path
    port: int
    sshd: contextlib.ExitStack

    def start(self) -> None:
        """Have sshd listen."""
        self.sshd.enter_context(sshd(self.home / "sshd", self.port, BE_USER))

    def stop(self) -> None:
        """End sshd with all connections, as when the network goes."""
        self.sshd.close()
        for pid, line in processes().items():
            if line.startswith(f"sshd: {USER}"):
                os.kill(pid, 9)


@contextlib.contextmanager
def other_host(laptop: Path) -> Iterator[OtherHost]:
    """The other host, reachable. `laptop` is a folder here, where known_hosts and a key come to be."""
    home = Path(tempfile.mkdtemp(prefix="moorage-there-"))
    try:
        prepare_user(home)
        folder = home / "sshd"
        folder.mkdir()
        port = free_port()
        (laptop / ".ssh").mkdir(mode=0o700)
        pair = ensure(laptop / ".ssh" / "key", folder / "host")
        (folder / "authorized").write_text(pair.authorized + "\n")
        known = f"[127.0.0.1]:{port} {pair.host.get_name()} {pair.host.get_base64()}\n"
        (laptop / ".ssh" / "known_hosts").write_text(known)
        for path in (home, folder, *folder.iterdir()):
            os.chown(path, UID, GID)
        with contextlib.ExitStack() as stack:
            there = OtherHost(home, port, stack)
            there.start()
            yield there
    finally:
        subprocess.run(["umount", "/etc/passwd"], check=True)
        shutil.rmtree(home, ignore_errors=True)


def processes() -> dict[int, str]:
    """Command lines of the user's processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == UID:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def listening(pid: int) -> list[str]:
    """Addresses that a process listens on by TCP."""
    told = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    return [line.split()[3] for line in told.splitlines() if f"pid={pid}," in line]


def main() -> None:
    """Start a machine over there, use it, lose the connection and the backend, start it again and delete it."""
    seen: dict[str, Any] = {}
    with user_home() as laptop:
        os.environ["HOME"] = str(laptop)
        with other_host(laptop) as there:
            open_kvm_to_all(laptop / "kvm")
            uri = f"qemu+ssh://{USER}@127.0.0.1:{there.port}/session?keyfile={laptop}/.ssh/key"
            vm = Vm(user_paths(), Client(user_paths()))
            vm.client.change_settings(image=str(image_folder()), memory_mib=1024, cpus=1, disk_gib=4, libvirt_uri=uri)
            try:
                use(vm, there, seen)
            except BaseException:
                for path in (vm.paths.backend_log, vm.paths.console_log):
                    with contextlib.suppress(OSError):
                        sys.stderr.write(f"== {path.name}\n{path.read_text(errors='replace')[-6000:]}\n")
                raise
            finally:
                with contextlib.suppress(Exception):
                    vm.client.delete()
                vm.client.stop_backend()
            seen["left"] = sorted(str(path) for path in there.home.rglob("*moorage*") if "qemu/log" not in str(path))
            seen["left_running"] = [line for line in processes().values() if "qemu-system" in line]
            seen["left_here"] = vm.paths.machine.exists()
    json.dump(seen, sys.stdout)


def use(vm: Vm, there: OtherHost, seen: dict[str, Any]) -> None:
    """What the test looks at, in the order in which a user would do it."""
    steps: list[str] = []
    started = vm.client.start(steps.append)
    seen |= {
        "warning": started.warning,
        "kvm": Path("/dev/kvm").exists(),
        "state": started.state,
        "uri": started.libvirt_uri,
        "accelerator": started.accelerator,
    }
    seen["copied"] = [step for step in steps if step.startswith("copying")]
    (qemu,) = [pid for pid, line in processes().items() if "qemu-system" in line]
    seen["listening"] = listening(qemu)
    (pool,) = there.home.glob(".local/share/moorage-*")
    seen["pool"] = sorted(re.sub("^[0-9a-f]{20}-", "DIGEST-", path.name) for path in pool.iterdir())
    seen["console"] = "sshd starts" in vm.paths.console_log.read_text(errors="replace")

    vm.docker("load", "-i", str(busybox_archive()))
    script = "mkdir /www; echo over there > /www/index.html; exec httpd -f -p 80 -h /www"
    container = vm.docker(
        "run", "-d", "--stop-signal", "KILL", "-p", "127.0.0.1:0:80", BUSYBOX_IMAGE, "sh", "-c", script
    ).strip()
    address = f"http://{vm.docker('port', container, '80').strip()}/"
    wait_for_port(vm)
    seen["published"] = urllib.request.urlopen(address, timeout=60).read().decode()
    seen["shell"] = vm.run("hostname").strip()

    pid = backend_pid(vm.paths)
    assert pid is not None
    os.kill(pid, 9)
    wait_ended(pid)
    vm.wait("ready")
    wait_for_port(vm)
    seen["after_backend"] = urllib.request.urlopen(address, timeout=60).read().decode()

    started_at = vm.api().api.inspect_container(container)["State"]["StartedAt"]
    for pid, line in processes().items():
        if "/libvirtd" in line:
            os.kill(pid, 9)
    seen["state_without_libvirtd"] = vm.client.status().state

    there.stop()
    seen["lost"] = vm.wait("starting").state
    there.start()
    vm.wait("ready")
    seen["after_loss"] = vm.api().api.inspect_container(container)["State"]["StartedAt"] == started_at
    wait_for_port(vm)
    seen["published_after_loss"] = urllib.request.urlopen(address, timeout=60).read().decode()

    vm.client.change_settings(disk_gib=5)
    steps.clear()
    vm.client.restart(steps.append)
    seen["copied_again"] = [step for step in steps if step.startswith("copying")]
    seen["disk_mib"] = int(vm.run("cat /sys/block/vdb/size")) >> 11
    seen["images"] = BUSYBOX_IMAGE.partition(":")[0] in vm.docker("images")


def wait_for_port(vm: Vm) -> None:
    """Until the container's port is published here."""
    for status in vm.client.watch():
        if status.ports and not status.ports[0].error:
            return


if __name__ == "__main__":
    main()
