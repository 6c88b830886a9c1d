from itertools import product
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from moorage_host.machine.domain_xml import Domain, render

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
CASES = list(product(("amd64", "arm64"), ("kvm", "hvf", "tcg")))


def domain(arch: str = "amd64", accelerator: str = "tcg", **more: object) -> Domain:
    values: dict[str, object] = {
        "name": "moorage",
        "uuid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "arch": arch,
        "accelerator": accelerator,
        "emulator": Path("/usr/bin/qemu-system-x86_64"),
        "cpus": 2,
        "memory_mib": 2048,
        "kernel": Path("/image/vmlinuz"),
        "initrd": Path("/image/initrd.img"),
        "root": Path("/image/root.squashfs"),
        "disk": Path("/state/data & more.qcow2"),
        "cmdline": "quiet console=ttyS0",
        "guest_config": Path("/state/guest-config.json"),
        "console_log": Path("/state/console.log"),
    }
    return Domain(**{**values, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(("arch", "accelerator"), CASES)
def test_domain_is_valid_by_libvirts_schema(arch: str, accelerator: str) -> None:
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    for more in ({}, {"run_as_root": True}, {"cpu_model": "Westmere"}, {"held": True}):
        document = etree.fromstring(render(domain(arch, accelerator, **more)))
        assert schema.validate(document), schema.error_log


def attribute(parent: etree._Element, path: str, name: str) -> str | None:
    found = parent.find(path)
    assert found is not None, f"no {path}"
    return found.get(name)


@pytest.mark.parametrize(("arch", "accelerator"), CASES)
def test_every_domain_names_a_processor(arch: str, accelerator: str) -> None:
    document = etree.fromstring(render(domain(arch, accelerator)))
    assert attribute(document, "cpu", "mode") == ("maximum" if accelerator == "tcg" else "host-passthrough")


def test_root_image_is_first_and_read_only_and_data_disk_second() -> None:
    root, data = etree.fromstring(render(domain())).findall("devices/disk")
    assert (attribute(root, "target", "dev"), root.find("readonly") is not None) == ("vda", True)
    assert (attribute(data, "target", "dev"), data.find("readonly") is not None) == ("vdb", False)
    assert attribute(data, "source", "file") == "/state/data & more.qcow2"


def test_libvirt_takes_the_domain_and_keeps_one_definition() -> None:
    connection = libvirt.open("test:///default")
    try:
        text = (
            render(domain())
            .replace('type="qemu"', 'type="test"')
            .replace("<emulator>/usr/bin/qemu-system-x86_64</emulator>", "")
        )
        text = text.replace('arch="x86_64" machine="q35"', 'arch="i686"')
        first, second = connection.defineXML(text), connection.defineXML(text)
        assert first.UUIDString() == second.UUIDString()
        assert first.name() == "moorage"
    finally:
        connection.close()


def test_held_guest_is_told_on_the_kernels_command_line_and_renews_its_random_numbers() -> None:
    document = etree.fromstring(render(domain(held=True)))
    assert document.findtext("os/cmdline") == "quiet console=ttyS0 moorage.hold"
    assert etree.fromstring(render(domain())).findtext("os/cmdline") == "quiet console=ttyS0"
    assert document.find("genid") is not None
