"""The machine on another host: image, disk and console log are files of a storage pool there, which libvirt makes and fills.

Nothing there listens beyond its own 127.0.0.1: the guest's SSH port is reached through the host's sshd.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from moorage_contract.image_manifest import ImageFile, Manifest
from moorage_contract.postponed import postponed

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import write_atomically
from moorage_host.link import keys, remote_uri
from moorage_host.machine import console
from moorage_host.machine.accelerator import NATIVE, QEMU, Circumstances
from moorage_host.machine.connection import Connection
from moorage_host.machine.domain_xml import MACHINES
from moorage_host.machine.library import libvirt
from moorage_host.machine.place import Files, Progress
from moorage_host.machine.volumes import PIECE, Pool
from moorage_host.paths import Paths
from moorage_host.settings import Settings

with postponed("moorage_host.link.remote_host"):
    from moorage_host.link import remote_host

T = TypeVar("T")

FORMAT = 1
DISK = "data.qcow2"
GUEST_CONFIG = "guest-config.json"
CONSOLE = "console.log"
LEAST_FREE_MIB = 512
PORTS = range(20000, 32768)  # below those that systems give out by themselves
IDLE, IDLE_PERIOD = (
    60.0,
    10.0,
)  # a console that has said nothing for the first (seconds) is looked at once in the second
SYSTEM_FOLDER = "/var/lib/libvirt/images"


@dataclass(frozen=True)
class Record:
    """Our pool on the other host, which is the one that `uri` names, and which files of the image are whole there."""

    uri: str
    pool: str
    folder: str
    whole: tuple[str, ...] = ()


class There:
    """A `Place`. The pool's name comes from the machine's own key, so that users of one host do not meet."""

    saves = False
    run_as_root = False  # libvirt gives the files to the user whom it runs QEMU as

    def __init__(self, paths: Paths, connection: Connection, host: remote_host.RemoteHost) -> None:
        self._paths = paths
        self._connection = connection
        self._host = host
        self._console_at = console.size(paths.console_log)
        self._console_due = self._console_grew = 0.0  # monotonic

    def check(self) -> None:
        record = self._load()
        if record is not None and not remote_uri.same_place(record.uri, self._connection.uri):
            raise elsewhere(record, self._paths)
        if self._paths.disk.exists():
            raise HostError(
                "there is a machine on this host already",
                hint="moorage settings libvirt_uri=auto, and moorage delete when its disk may go",
                code=ErrorCode.CONFLICT,
            )

    async def arch(self) -> str:
        found = await self._connection.call(lambda one: ET.fromstring(one.getCapabilities()).findtext("host/cpu/arch"))
        try:
            return NATIVE[found or ""]
        except KeyError:
            raise HostError(
                f"there is no guest image for {found} machines like {self._host.name}", code=ErrorCode.UNAVAILABLE
            ) from None

    async def emulator(self, arch: str) -> Path:
        def ask(connection: libvirt.virConnect) -> Path:
            try:
                path = _capabilities(connection, arch, "qemu").findtext("path")
            except libvirt.libvirtError as error:
                if not connection.isAlive():
                    raise
                package = "qemu-system-x86" if arch == "amd64" else "qemu-system-arm"
                raise HostError(
                    f"libvirt on {self._host.name} finds no {QEMU[arch]}: {error}",
                    hint=f"install QEMU there (Debian: {package})",
                    code=ErrorCode.UNAVAILABLE,
                ) from error
            return Path(path or QEMU[arch])

        return await self._connection.call(ask)

    async def circumstances(self, emulator: Path) -> Circumstances:
        survey = await asyncio.to_thread(self._host.connect)

        def ask(connection: libvirt.virConnect) -> Circumstances:
            identity = ET.fromstring(connection.getCapabilities()).findtext("host/uuid") or self._host.name
            return Circumstances(f"{emulator} {connection.getVersion()}", survey.kernel, identity)

        return await self._connection.call(ask)

    async def offered(self, arch: str) -> str | None:
        def ask(connection: libvirt.virConnect) -> str | None:
            for name in ("kvm", "hvf"):
                with contextlib.suppress(libvirt.libvirtError):
                    _capabilities(connection, arch, name)
                    return name
            return None

        return await self._connection.call(ask)

    async def furnish(self, settings: Settings, manifest: Manifest, folder: Path, progress: Progress) -> Files:
        pair = await asyncio.to_thread(keys.ensure, self._paths.client_key, self._paths.host_key)
        survey = await asyncio.to_thread(self._host.connect)
        record = self._ours(pair, survey)
        images = {image_name(file): file for file in (manifest.kernel, manifest.initrd, manifest.root)}
        missing = await self._in(record, lambda pool: self._prepare(pool, record, images))
        record = replace(record, whole=tuple(name for name in images if name not in missing))
        self._write(record)
        for name in missing:
            await self._send(record, name, folder / images[name].name, progress)
            record = replace(record, whole=(*record.whole, name))
            self._write(record)
        told = keys.guest_config(pair, settings.name).encode()
        size = settings.disk_gib << 30

        def finish(pool: Pool) -> Files:
            present = pool.size(DISK)
            if present is None:
                pool.make_file(DISK, size, kind="qcow2")
            elif present < size:
                pool.grow(DISK, size)
            pool.make_file(GUEST_CONFIG, len(told))
            pool.write(GUEST_CONFIG, 0, told)
            kernel, initrd, root = (Path(pool.path(name)) for name in images)
            return Files(
                kernel=kernel,
                initrd=initrd,
                root=root,
                disk=Path(pool.path(DISK)),
                guest_config=Path(pool.path(GUEST_CONFIG)),
                console_log=Path(pool.path(CONSOLE)),
            )

        return await self._in(record, finish)

    def _prepare(self, pool: Pool, record: Record, images: dict[str, ImageFile]) -> list[str]:
        """Have the pool, without files of images that are not wanted or not whole; the names of those still to be sent."""
        # The system's QEMU runs as another user than libvirt, who has to get through to the files.
        pool.make(record.folder, "0700" if self._host.session else "0711")
        for name in pool.names():
            stale = name not in images or name not in record.whole or pool.size(name) != images[name].size
            if stale and name not in (DISK, CONSOLE, GUEST_CONFIG):
                pool.remove(name)
        present = pool.names()
        missing = [name for name in images if name not in present]
        needed = (sum(images[name].size for name in missing) >> 20) + LEAST_FREE_MIB
        free = pool.free_bytes() >> 20
        if free < needed:
            raise HostError(
                f"only {free} MiB are free in {record.folder} on {self._host.name}, the machine needs {needed} MiB at the least",
                hint="free some space there",
                code=ErrorCode.UNAVAILABLE,
            )
        return missing

    async def _send(self, record: Record, name: str, source: Path, progress: Progress) -> None:
        """Copy a file of the image into the pool. Only what has been sent whole is noted in the record."""
        size = source.stat().st_size
        await self._in(record, lambda pool: pool.make_file(name, size))
        with source.open("rb") as file:
            tenth = -1
            for offset in range(0, size, PIECE):
                if offset * 10 // size > tenth:
                    tenth = offset * 10 // size
                    progress(f"copying {source.name} ({size >> 20} MiB) to {self._host.name}: {tenth * 10} %")
                data = await asyncio.to_thread(file.read, PIECE)
                await self._in(record, lambda pool, at=offset, piece=data: pool.write(name, at, piece))  # type: ignore[misc]
        await asyncio.to_thread(self._host.flush)

    async def clear_console(self) -> None:
        def clear(pool: Pool) -> None:
            pool.read_anew()
            for name in pool.names():
                if name.startswith(CONSOLE):
                    pool.remove(name)

        self._paths.console_log.unlink(missing_ok=True)
        self._console_at = 0
        self._console_due, self._console_grew = 0.0, time.monotonic()
        record = self._load()
        if record is not None:
            await self._in(record, clear)

    async def console_size(self) -> int:
        record, now = self._load(), time.monotonic()
        if record is not None and now >= self._console_due:
            before = self._console_at
            await self._in(record, self._fetch_console)
            if self._console_at != before:
                self._console_grew = now
            self._console_due = now + (IDLE_PERIOD if now - self._console_grew > IDLE else 0)
        return console.size(self._paths.console_log)

    def _fetch_console(self, pool: Pool) -> None:
        """Append to the local log what the console has said meanwhile."""
        if CONSOLE not in pool.names():
            pool.read_anew()
        if (pool.size(CONSOLE) or 0) < self._console_at:
            self._console_at = 0  # libvirt's log daemon has begun another file
        while data := pool.read(CONSOLE, self._console_at):
            with self._paths.console_log.open("ab") as log:
                log.write(data)
            self._console_at += len(data)

    def owns(self, domain: libvirt.virDomain) -> bool:
        record = self._load()
        return record is not None and f"{record.folder}/{DISK}" in domain.XMLDesc()

    def way_in(self, port: int) -> int:
        return self._host.guest_port(port)

    def unused_port(self, preferred: int) -> int:
        return preferred or random.choice(PORTS)

    async def clear(self) -> None:
        record = self._load()
        if record is None and self._paths.client_key.exists():
            pair = await asyncio.to_thread(keys.ensure, self._paths.client_key, self._paths.host_key)
            record = Record(self._connection.uri, _pool_name(pair), "")
        if record is not None:
            await self._in(record, lambda pool: pool.clear())

    async def _in(self, record: Record, action: Callable[[Pool], T]) -> T:
        return await self._connection.call(lambda one: action(Pool(one, record.pool, self._host.name)))

    def _ours(self, pair: keys.Keys, survey: remote_host.Survey) -> Record:
        pool = _pool_name(pair)
        record = self._load()
        if record is not None and record.pool == pool:
            return replace(record, uri=self._connection.uri)
        parent = f"{survey.home}/.local/share" if self._host.session else SYSTEM_FOLDER
        return Record(self._connection.uri, pool, f"{parent}/{pool}")

    def _load(self) -> Record | None:
        return load(self._paths)

    def _write(self, record: Record) -> None:
        write_atomically(self._paths.remote_record, json.dumps({"format": FORMAT} | asdict(record), indent=2) + "\n")


def elsewhere(record: Record, paths: Paths) -> HostError:
    """What to say when the settings name another place than the one where the machine is."""
    return HostError(
        f"the machine is on another host ({record.uri})",
        hint=f"moorage settings libvirt_uri='{record.uri}', and moorage delete when its disk may go; or, when that host is gone for "
        f"good, remove {paths.machine}",
        code=ErrorCode.CONFLICT,
    )


def load(paths: Paths) -> Record | None:
    """Where the machine is, when it is on another host; None for one of this host, or none."""
    try:
        content = json.loads(paths.remote_record.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return None
        return Record(str(content["uri"]), str(content["pool"]), str(content["folder"]), tuple(content["whole"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def image_name(file: ImageFile) -> str:
    """What a file of an image is called in the pool: another content, another name."""
    return f"{file.sha256[:20]}-{file.name}"


def _pool_name(pair: keys.Keys) -> str:
    return f"moorage-{hashlib.sha256(pair.authorized.encode()).hexdigest()[:12]}"


def _capabilities(connection: libvirt.virConnect, arch: str, kind: str) -> ET.Element:
    guest_arch, machine = MACHINES[arch]
    return ET.fromstring(connection.getDomainCapabilities(None, guest_arch, machine, kind))
