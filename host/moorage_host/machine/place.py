"""Where a machine runs, as far as starting it depends on that: the seam between machine.py and `here.py`, `there.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moorage_contract.image_manifest import Manifest

from moorage_host.machine.accelerator import Circumstances
from moorage_host.machine.library import libvirt
from moorage_host.settings import Settings

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Files:
    """The paths that QEMU is given, as they are on the host that it runs on."""

    kernel: Path
    initrd: Path
    root: Path
    disk: Path
    guest_config: Path
    console_log: Path


class Place(Protocol):
    """A host that QEMU runs on. Everything raises HostError; the machine is off but where it says otherwise."""

    saves: bool
    """Whether a machine there may be saved and restored."""

    run_as_root: bool
    """Whether QEMU needs root's rights for the files."""

    def check(self) -> None:
        """Raise HostError when the machine is in another place than the settings say."""

    async def arch(self) -> str:
        """The host's own architecture in Debian's words."""

    async def emulator(self, arch: str) -> Path:
        """QEMU's program for `arch`."""

    async def circumstances(self, emulator: Path) -> Circumstances:
        """What an accelerator's failure depends on."""

    async def offered(self, arch: str) -> str | None:
        """The accelerator that the host seems to offer, if any."""

    async def furnish(self, settings: Settings, manifest: Manifest, folder: Path, progress: Progress) -> Files:
        """Have all there that a start needs: image (in `folder` here), disk at its size, keys, what the guest is told. Idempotent."""

    async def clear_console(self) -> None:
        """Forget what the console has said."""

    async def console_size(self) -> int:
        """Bytes on the console of the machine, on or off; the local log holds them by then."""

    def owns(self, domain: libvirt.virDomain) -> bool:
        """Whether a domain that is called like ours has our disk. Blocks; run in libvirt's thread."""

    def way_in(self, port: int) -> int:
        """The port on 127.0.0.1 here that leads to `port` on the host's own 127.0.0.1. Blocks for a moment."""

    def unused_port(self, preferred: int) -> int:
        """A port of the host's 127.0.0.1 that seems to be free, `preferred` when it is one."""

    async def clear(self) -> None:
        """Remove what `furnish` made. Idempotent; what is only here is removed by the caller."""
