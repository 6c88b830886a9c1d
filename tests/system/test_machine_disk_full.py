"""The host's disk runs full under a running machine: it pauses with a sentence, and goes on when there is space again."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.vm import Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)


@pytest.fixture
def small_disk(own_vm: Vm) -> Iterator[Path]:
    """The machine's folder is a file system of its own."""
    folder = own_vm.paths.machine
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g,mode=700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        own_vm.client.kill()
        subprocess.run(["umount", folder], check=True)


def test_machine_waits_for_space_and_loses_nothing(own_vm: Vm, small_disk: Path) -> None:
    own_vm.client.start(accelerator="tcg")
    boot = own_vm.run("cat /proc/sys/kernel/random/boot_id")
    used = int(subprocess.run(["du", "-sk", small_disk], capture_output=True, text=True).stdout.split()[0])
    resize(small_disk, f"{used + 16_384}k")
    own_vm.run(
        "(head -c 64000000 /dev/urandom | tee /var/lib/moorage/big | sha256sum > /var/lib/moorage/sum; sync) < /dev/null > /dev/null 2>&1 &"
    )
    said = own_vm.wait("paused")
    assert "ioerror" in said.message.replace(" ", "") and "goes on when the host's disk has space" in said.message
    resize(small_disk, "2g")
    own_vm.wait("ready")
    written = (
        "n=0; until [ -s /var/lib/moorage/sum ]; do usleep 200000; n=$((n+1)); [ $n -lt 900 ] || exit 1; done; sync"
    )
    # read back from the disk, not from the guest's memory
    again = "echo 3 > /proc/sys/vm/drop_caches; sha256sum < /var/lib/moorage/big; cat /var/lib/moorage/sum"
    first, second = own_vm.run(f"{written}; {again}").splitlines()
    assert first == second
    assert own_vm.run("cat /proc/sys/kernel/random/boot_id") == boot
