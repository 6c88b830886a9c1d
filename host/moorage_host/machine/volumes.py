"""A folder of libvirt's host as a storage pool of ours, and the files in it. Everything blocks; run in libvirt's thread.

libvirt's errors come out as HostError in a sentence.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from moorage_host.errors import ErrorCode, HostError
from moorage_host.machine.library import libvirt

PIECE = 4 << 20  # bytes that go through one stream: between two of them libvirt is asked other things


class Pool:
    """The pool `name` in `folder` at `connection`. `where` is the host's name, for sentences."""

    def __init__(self, connection: libvirt.virConnect, name: str, where: str) -> None:
        self._connection = connection
        self._name = name
        self._where = where

    @property
    def exists(self) -> bool:
        with self._said("looked for"):
            return self._find() is not None

    def make(self, folder: str, mode: str) -> None:
        """Have the pool and its folder, active and read anew. Idempotent."""
        with self._said("made"):
            pool = self._find()
            if pool is None:
                pool = self._connection.storagePoolDefineXML(pool_xml(self._name, folder, mode))
            if not pool.isActive():
                pool.build(0)
                pool.create(0)
                pool.setAutostart(1)
            self.read_anew()

    def read_anew(self) -> None:
        """Let libvirt see files that others have made."""
        with contextlib.suppress(libvirt.libvirtError):  # it refuses while it does so by itself
            pool = self._find()
            if pool is not None:
                pool.refresh(0)

    def free_bytes(self) -> int:
        """Space that is left where the pool's folder is."""
        with self._said("looked into"):
            return int(self._pool().info()[3])

    def names(self) -> list[str]:
        """The files in the pool."""
        with self._said("looked into"):
            return [str(name) for name in self._pool().listVolumes()]

    def size(self, name: str) -> int | None:
        """Bytes that a file has, or, of a disk, that its guest sees; None when there is no such file."""
        with self._said("looked into"):
            volume = self._volume(name)
            return None if volume is None else int(volume.info()[1])

    def make_file(self, name: str, size: int, *, kind: str = "raw") -> None:
        """Make a file of `size` bytes, over the one of this name. A `qcow2` one takes its space as it is filled."""
        with self._said(f"given {name}"):
            self.remove(name)
            self._pool().createXML(volume_xml(name, size, kind), 0)

    def grow(self, name: str, size: int) -> None:
        """Let a disk have `size` bytes."""
        with self._said(f"asked to enlarge {name}"):
            volume = self._volume(name)
            if volume is not None:
                volume.resize(size, 0)

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write a piece of a file that has room for it."""
        with self._said(f"given {name}"):
            volume = self._volume(name)
            if volume is None:
                raise HostError(f"{name} has gone from the storage pool {self._name} on {self._where}")
            stream = self._connection.newStream(0)
            try:
                volume.upload(stream, offset, len(data), 0)
                left = memoryview(data)
                while left:
                    left = left[stream.send(bytes(left[: 256 << 10])) :]
                stream.finish()
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    stream.abort()
                raise

    def read(self, name: str, offset: int) -> bytes:
        """What a file has from `offset` on, at most `PIECE` bytes."""
        with self._said("read"):
            size = self.size(name) or 0
            volume = self._volume(name)
            if volume is None or size <= offset:
                return b""
            stream = self._connection.newStream(0)
            try:
                volume.download(stream, offset, min(size - offset, PIECE), 0)
                data = b""
                while more := stream.recv(256 << 10):
                    data += more
                stream.finish()
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    stream.abort()
                raise
            return data

    def path(self, name: str) -> str:
        """Where a file of the pool is, or would be."""
        with self._said("looked into"):
            folder = ET.fromstring(self._pool().XMLDesc()).findtext("target/path")
            return f"{folder}/{name}"

    def remove(self, name: str) -> None:
        """Remove a file. Idempotent."""
        with self._said(f"rid of {name}"):
            volume = self._volume(name)
            if volume is not None:
                volume.delete(0)

    def clear(self) -> None:
        """Remove the pool with its folder and all files in it. Idempotent."""
        with self._said("removed"):
            pool = self._find()
            if pool is None:
                return
            if not pool.isActive():
                pool.build(0)
                pool.create(0)
            self.read_anew()
            for name in self.names():
                self.remove(name)
            pool.destroy()
            pool.delete(0)
            pool.undefine()

    def _find(self) -> libvirt.virStoragePool | None:
        try:
            return self._connection.storagePoolLookupByName(self._name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                return None
            raise

    def _pool(self) -> libvirt.virStoragePool:
        pool = self._find()
        if pool is None:
            raise HostError(
                f"the storage pool {self._name} has gone from {self._where}",
                hint="moorage start makes it again; what was on the data disk is lost with it",
                code=ErrorCode.NOT_FOUND,
            )
        if not pool.isActive():
            pool.create(0)
        return pool

    def _volume(self, name: str) -> libvirt.virStorageVol | None:
        try:
            return self._pool().storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                return None
            raise

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        try:
            yield
        except libvirt.libvirtError as error:
            if not self._connection.isAlive():
                raise  # the connection's owner knows better what to say
            full = any(words in str(error) for words in ("No space left", "quota exceeded"))
            raise HostError(
                f"the storage pool {self._name} on {self._where} cannot be {what}: {error}",
                hint=f"free some space on {self._where}"
                if full
                else "does its libvirt have storage pools (virsh pool-list)?",
                code=ErrorCode.UNAVAILABLE,
            ) from error


def pool_xml(name: str, folder: str, mode: str) -> str:
    """The XML to define a pool with. Pure."""
    root = ET.Element("pool", type="dir")
    ET.SubElement(root, "name").text = name
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "path").text = folder
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = mode
    return ET.tostring(root, encoding="unicode")


def volume_xml(name: str, size: int, kind: str) -> str:
    """The XML to make a file with, which its owner alone may read. Pure."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "capacity", unit="bytes").text = str(size)
    if kind == "raw":
        ET.SubElement(root, "allocation", unit="bytes").text = str(size)
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", type=kind)
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = "0600"
    if kind == "qcow2":
        ET.SubElement(target, "compat").text = "1.1"
        ET.SubElement(ET.SubElement(target, "features"), "lazy_refcounts")
    return ET.tostring(root, encoding="unicode")
