"""The domain as libvirt's XML: direct kernel boot, root image and data disk, user network, serial console into a file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

MACHINES = {"amd64": ("x86_64", "q35"), "arm64": ("aarch64", "virt")}
NETDEV = "hostnet0"  # libvirt's name for the first interface's back end
HOLD = "moorage.hold"  # on the kernel's command line: wait for the host's release before the data disk is mounted


@dataclass(frozen=True)
class Domain:
    """Everything that the XML depends on.

    `cpu_model` overrides the processor that the accelerator implies; `run_as_root` is for root at the system driver, whose
    own QEMU user could not reach the files in root's private folder. `held` makes the guest wait where it can be saved.
    """

    name: str
    uuid: str
    arch: str
    accelerator: str
    emulator: Path
    cpus: int
    memory_mib: int
    kernel: Path
    initrd: Path
    root: Path
    disk: Path
    cmdline: str
    guest_config: Path
    console_log: Path
    cpu_model: str = ""
    run_as_root: bool = False
    held: bool = False


def render(domain: Domain) -> str:
    """The XML to define `domain` with. Pure."""
    guest_arch, machine = MACHINES[domain.arch]
    root = ET.Element("domain", type={"kvm": "kvm", "hvf": "hvf", "tcg": "qemu"}[domain.accelerator])
    _text(root, "name", domain.name)
    _text(root, "uuid", domain.uuid)
    if domain.arch == "amd64":
        ET.SubElement(
            root, "genid"
        )  # a new one at each restore, upon which the kernel renews its random numbers at once
    _text(root, "title", "Moorage container engine")
    _text(root, "memory", str(domain.memory_mib), unit="MiB")
    _text(root, "vcpu", str(domain.cpus))
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch=guest_arch, machine=machine)
    _text(system, "kernel", str(domain.kernel))
    _text(system, "initrd", str(domain.initrd))
    _text(system, "cmdline", f"{domain.cmdline} {HOLD}" if domain.held else domain.cmdline)
    sysinfo = ET.SubElement(root, "sysinfo", type="fwcfg")
    ET.SubElement(sysinfo, "entry", name="opt/moorage/config", file=str(domain.guest_config))
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    if domain.arch == "arm64" and domain.accelerator == "tcg":
        ET.SubElement(features, "gic", version="3")  # hardware accelerators choose the one that the host has
    _cpu(root, domain)
    clock = ET.SubElement(root, "clock", offset="utc")
    if domain.arch == "amd64":
        ET.SubElement(clock, "timer", name="hpet", present="no")
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "restart")
    _text(root, "on_crash", "destroy")
    _devices(root, domain)
    if domain.run_as_root:
        _text(ET.SubElement(root, "seclabel", type="static", model="dac", relabel="no"), "label", "+0:+0")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")


def _cpu(root: ET.Element, domain: Domain) -> None:
    if domain.cpu_model:
        cpu = ET.SubElement(root, "cpu", mode="custom", match="exact", check="none")
        _text(cpu, "model", domain.cpu_model, fallback="forbid")
    elif domain.accelerator == "tcg":
        ET.SubElement(root, "cpu", mode="maximum")  # QEMU's `-cpu max`
    else:
        ET.SubElement(root, "cpu", mode="host-passthrough")


def _devices(root: ET.Element, domain: Domain) -> None:
    devices = ET.SubElement(root, "devices")
    _text(devices, "emulator", str(domain.emulator))
    _at(_disk(devices, domain.root, "raw", "vda", readonly=True), 2)
    _at(_disk(devices, domain.disk, "qcow2", "vdb", readonly=False), 3)
    ET.SubElement(devices, "controller", type="usb", model="none")
    interface = ET.SubElement(devices, "interface", type="user")
    ET.SubElement(interface, "model", type="virtio")
    _at(interface, 4)
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(domain.console_log), append="on")
    ET.SubElement(serial, "target", port="0")
    console = ET.SubElement(devices, "console", type="file")
    ET.SubElement(console, "source", path=str(domain.console_log), append="on")
    ET.SubElement(console, "target", type="serial", port="0")
    balloon = ET.SubElement(devices, "memballoon", model="virtio", freePageReporting="on")
    ET.SubElement(balloon, "stats", period="10")
    _at(balloon, 5)
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    _at(rng, 6)
    if domain.arch == "amd64":
        ET.SubElement(devices, "audio", id="1", type="none")


def _at(device: ET.Element, slot: int) -> None:
    """Put a device on the root bus: behind a port of its own, as libvirt would have it, the kernel takes longer to find it."""
    ET.SubElement(device, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}", function="0x0")


def _disk(devices: ET.Element, path: Path, kind: str, target: str, *, readonly: bool) -> ET.Element:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    if readonly:
        ET.SubElement(disk, "driver", name="qemu", type=kind)
    else:
        ET.SubElement(disk, "driver", name="qemu", type=kind, cache="writeback", discard="unmap", detect_zeroes="unmap")
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev=target, bus="virtio")
    if readonly:
        ET.SubElement(disk, "readonly")
    return disk


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
