"""The machine: how long until the engine answers, how much it takes on disk and in memory."""

from __future__ import annotations

import json
import os
import selectors
import statistics
import subprocess
import time
from pathlib import Path

from tests.bench.registry import Result, bench
from tests.support.vm import Vm, image_folder, moorage, vm_of_its_own, wait_saved

STARTS = 5
DEADLINE_S = 300
MARK = "first-process"


@bench("image_mib")
def image_mib() -> list[Result]:
    """Kernel, initrd and root together."""
    files = json.loads((image_folder() / "manifest.json").read_text())["files"].values()
    size = sum(file["size"] for file in files) / 2**20
    return [Result("image_mib", size, None, "MiB", 1, "kernel + initrd + root", "≤ 80")]


@bench("cold_start_floor", "first_start_floor", "guest_used_mib")
def cold_start() -> list[Result]:
    """All from one machine under tcg: starts that boot, starts from what was saved after the stop, both by turns with the bare
    kernel's, and the memory after the last one."""
    first, later, floor = [], [], []
    with vm_of_its_own(accelerator="tcg", memory_mib=2048) as vm:
        for turn in range(STARTS + 1):
            vm.paths.saved_state.unlink(missing_ok=True)
            booted = start_seconds(vm)
            vm.client.stop()
            wait_saved(vm.paths)
            restored, bare = start_seconds(vm), first_process_seconds(image_folder())
            if turn:  # the first is a warm-up: it makes and formats the disk
                first.append(booted)
                later.append(restored)
                floor.append(bare)
            if turn == STARTS:
                used = used_mib(vm)
            vm.client.stop()
    command = "moorage start; docker version (tcg), {} / the same kernel and initrd until their first process"
    peer = statistics.median(floor)
    from_saved = command.format("from the second start on: from the state saved after a stop")
    booting = command.format("without a saved state: a boot")
    return [
        Result("cold_start_floor", statistics.median(later), peer, "s", STARTS, from_saved, "≤ 2.5"),
        Result("first_start_floor", statistics.median(first), peer, "s", STARTS, booting, "–"),
        Result("guest_used_mib", used, None, "MiB", 1, "MemTotal − MemAvailable after the start, 2 GiB", "≤ 120"),
    ]


def start_seconds(vm: Vm) -> float:
    """Seconds from the command to the engine's answer."""
    begin = time.perf_counter()
    done = moorage("start", timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    vm.docker("version")
    return time.perf_counter() - begin


def used_mib(vm: Vm) -> float:
    """Memory that is not available any more in the guest."""
    pairs = (line.split() for line in vm.run("cat /proc/meminfo").splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in pairs}
    return (kib["MemTotal"] - kib["MemAvailable"]) / 1024


def first_process_seconds(image: Path) -> float:
    """Seconds from QEMU's start until the kernel has run one program of the initrd."""
    manifest = json.loads((image / "manifest.json").read_text())
    files = manifest["files"]
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", "2048", "-smp", "2"]
    command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(image / files["kernel"]["name"]), "-initrd", str(image / files["initrd"]["name"])]
    command += ["-append", f'{manifest["cmdline"]} rdinit=/bin/sh -- -c "echo {MARK}; sleep 99"']
    begin = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            seen = b""
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while MARK.encode() not in seen:
                    assert selector.select(DEADLINE_S), f"the kernel did not start its first process: {seen!r}"
                    data = os.read(process.stdout.fileno(), 65536)
                    assert data, f"QEMU ended: {seen!r}"
                    seen += data
            return time.perf_counter() - begin
        finally:
            process.kill()
