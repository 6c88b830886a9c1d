"""The machine on this very host: QEMU opens the image and the disk where they lie."""

from __future__ import annotations

import asyncio
from pathlib import Path

from moorage_contract.image_manifest import Manifest

from moorage_host.files import write_atomically
from moorage_host.link import keys
from moorage_host.machine import accelerator, console, disk, forward, there
from moorage_host.machine.accelerator import Circumstances
from moorage_host.machine.library import libvirt
from moorage_host.machine.place import Files, Progress
from moorage_host.paths import Paths
from moorage_host.settings import Settings


class Here:
    """A `Place`. Its files lie in the user's own folders, which whoever removes the machine removes."""

    saves = True

    def __init__(self, paths: Paths, uri: str) -> None:
        self._paths = paths
        self.run_as_root = uri.startswith(("qemu:///system", "qemu+unix:///system"))

    def check(self) -> None:
        record = there.load(self._paths)
        if record is not None:
            raise there.elsewhere(record, self._paths)

    async def arch(self) -> str:
        return accelerator.native_arch()

    async def emulator(self, arch: str) -> Path:
        return accelerator.emulator(arch)

    async def circumstances(self, emulator: Path) -> Circumstances:
        return await asyncio.to_thread(accelerator.circumstances, emulator)

    async def offered(self, arch: str) -> str | None:
        return accelerator.hardware(arch)

    async def furnish(self, settings: Settings, manifest: Manifest, folder: Path, progress: Progress) -> Files:
        await asyncio.to_thread(disk.ensure, self._paths.disk, settings.disk_gib)
        pair = await asyncio.to_thread(keys.ensure, self._paths.client_key, self._paths.host_key)
        write_atomically(self._paths.guest_config, keys.guest_config(pair, settings.name))
        return Files(
            kernel=folder / manifest.kernel.name,
            initrd=folder / manifest.initrd.name,
            root=folder / manifest.root.name,
            disk=self._paths.disk,
            guest_config=self._paths.guest_config,
            console_log=self._paths.console_log,
        )

    async def clear_console(self) -> None:
        self._paths.console_log.unlink(missing_ok=True)

    async def console_size(self) -> int:
        return console.size(self._paths.console_log)

    def owns(self, domain: libvirt.virDomain) -> bool:
        return str(self._paths.disk) in domain.XMLDesc()

    def way_in(self, port: int) -> int:
        return port

    def unused_port(self, preferred: int) -> int:
        return forward.unused_port(preferred)

    async def clear(self) -> None:
        return
