"""XML of pools and volumes by libvirt's schemas, and what libvirt's own test driver makes of it."""

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from moorage_contract.image_manifest import ImageFile
from moorage_host.errors import HostError
from moorage_host.machine.there import image_name
from moorage_host.machine.volumes import Pool, pool_xml, volume_xml

SCHEMAS = Path("/usr/share/libvirt/schemas")


def assert_valid(schema: str, text: str) -> None:
    rules = etree.RelaxNG(etree.parse(SCHEMAS / schema))
    assert rules.validate(etree.fromstring(text)), rules.error_log


@pytest.mark.parametrize("mode", ["0700", "0711"])
def test_pool_is_valid_by_libvirts_schema(mode: str) -> None:
    assert_valid("storagepool.rng", pool_xml("moorage-0123456789ab", "/var/lib/libvirt/images/a & b", mode))


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_volume_is_valid_by_libvirts_schema_and_its_owners_alone(kind: str) -> None:
    text = volume_xml("data & more", 5 << 30, kind)
    assert_valid("storagevol.rng", text)
    assert etree.fromstring(text).findtext("target/permissions/mode") == "0600"


def test_another_content_has_another_name() -> None:
    first, second = (image_name(ImageFile("vmlinuz", digest * 64, 1)) for digest in "ab")
    assert first != second
    assert first.endswith("-vmlinuz")


@pytest.fixture
def pool() -> Iterator[Pool]:
    connection = libvirt.open("test:///default")
    try:
        yield Pool(connection, "moorage-0123456789ab", "box")
    finally:
        connection.close()


def test_files_come_grow_and_go_with_the_pool(pool: Pool) -> None:
    assert not pool.exists
    pool.make("/pools/ours", "0700")
    pool.make("/pools/ours", "0700")
    assert pool.names() == []
    pool.make_file("data.qcow2", 4 << 30, kind="qcow2")
    pool.make_file("kernel", 1000)
    pool.make_file("kernel", 2000)
    assert (pool.size("kernel"), pool.size("data.qcow2"), pool.size("nothing")) == (2000, 4 << 30, None)
    assert pool.path("kernel") == "/pools/ours/kernel"
    pool.remove("kernel")
    pool.remove("kernel")
    assert pool.names() == ["data.qcow2"]
    pool.clear()
    pool.clear()
    assert not pool.exists


def test_pool_that_has_gone_is_told_with_its_host(pool: Pool) -> None:
    with pytest.raises(HostError, match="has gone from box"):
        pool.names()


def test_file_too_large_for_the_pool_is_told_with_its_name(pool: Pool) -> None:
    pool.make("/pools/ours", "0700")
    with pytest.raises(HostError, match=r"moorage-0123456789ab on box cannot be given huge"):
        pool.make_file("huge", 1 << 60)
