"""The saved start: the machine's state where every boot is alike, kept in one file that later starts go on from.

The guest does its part in moorage_guest/agent/hold.py: it waits, before the data disk is mounted, for its release. What is here
is the file, what it is valid for, and libvirt's two calls; preparing.py makes the file, when is machine.py's and control.py's business.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import shutil
import time
from enum import Enum
from pathlib import Path

from moorage_contract.image_manifest import Manifest

from moorage_host.errors import HostError
from moorage_host.files import write_atomically
from moorage_host.link.keys import Keys
from moorage_host.machine import console, domain_xml
from moorage_host.machine.accelerator import Circumstances
from moorage_host.machine.library import libvirt
from moorage_host.paths import Paths
from moorage_host.settings import SavedStartSetting

logger = logging.getLogger(__name__)

FORMAT = 1
LEAST_FREE_MIB = 1024  # in the state folder, for a file of some 200 MiB to be made
GIVE_UP = 2  # failures under the same circumstances after which no more is tried
DEADLINE = 300.0  # seconds for one of libvirt's calls; two are usual


class Plan(Enum):
    """How a start goes: `boot` and nothing else, boot and have a state `save`d once the machine is off, or `restore`."""

    BOOT = "boot"
    SAVE = "save"
    RESTORE = "restore"


def wanted(setting: SavedStartSetting, accelerator: str, arch: str) -> bool:
    """Whether a start with `accelerator` is to use a saved state. `auto`: where a boot is slow and this is tested."""
    return setting == "on" or (setting == "auto" and accelerator == "tcg" and arch == "amd64")


def key(
    domain: domain_xml.Domain, manifest: Manifest, now: Circumstances, pair: Keys, library: int, disk_bytes: int
) -> str:
    """What a saved state is valid for, in one word: everything that the guest's memory holds or QEMU must find the same."""
    parts = {
        "format": FORMAT,
        "domain": domain_xml.render(domain),
        "image": [
            manifest.engine_version,
            *(file.sha256 for file in (manifest.kernel, manifest.initrd, manifest.root)),
        ],
        "emulator": [now.qemu, domain.emulator.stat().st_mtime_ns],
        "libvirt": library,
        "host": [now.kernel, now.host, *_processor()],
        "keys": [pair.authorized, pair.host.get_base64()],
        "disk": disk_bytes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _processor(listing: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The processor: an emulated clock runs at its rate, an emulator uses what it can do."""
    try:
        first = listing.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return [platform.processor()]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    with contextlib.suppress(KeyError, ValueError):
        fields["bogomips"] = str(round(float(fields["bogomips"]), -2))  # measured anew at each boot of some hosts
    return [fields.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping", "flags", "bogomips")]


class SavedState:
    """The one file, with its record and what the console had said by then. Nothing here knows whether a machine runs."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    @property
    def path(self) -> Path:
        return self._paths.saved_state

    @property
    def staged(self) -> Path:
        """Where libvirt writes; never restored from."""
        return self.path.with_name(self.path.name + ".new")

    @property
    def staged_console(self) -> Path:
        """What a machine says that is being prepared. It is there for as long as one may run, whatever becomes of the backend."""
        return self._paths.saved_console.with_name(self._paths.saved_console.name + ".new")

    @property
    def preparing(self) -> bool:
        """Whether a machine that runs now may be one that is being prepared, and is nobody's yet."""
        return self.staged_console.exists()

    def begin_preparing(self) -> None:
        """A machine is about to run that is to be saved."""
        self.staged_console.write_bytes(b"")

    def end_preparing(self) -> None:
        """No machine runs; what is not whole is removed. Idempotent."""
        self.staged.unlink(missing_ok=True)
        self.staged_console.unlink(missing_ok=True)

    def plan(self, wanted_key: str) -> Plan:
        """What the next start can do. A state that is valid for something else is removed."""
        record = self._load()
        self.staged.unlink(missing_ok=True)
        if record.get("key") != wanted_key:
            self.drop()
            record = {}
        if record.get("state") is not None and record["state"] == self._found():
            return Plan.RESTORE
        self._remove_files()
        failures = record.get("failures", 0)
        if isinstance(failures, int) and failures >= GIVE_UP:
            return Plan.BOOT
        free = shutil.disk_usage(self._paths.machine).free >> 20
        if free < LEAST_FREE_MIB:
            logger.info("no saved start: only %d MiB are free in %s", free, self._paths.machine)
            return Plan.BOOT
        return Plan.SAVE

    def keep(self, new_key: str) -> None:
        """What libvirt has written is whole: the next starts may use it. Survives a power cut as all or nothing."""
        self.staged.chmod(0o600)
        self.staged.replace(self.path)
        write_atomically(self._paths.saved_console, console.text(self.staged_console))
        failures = self._load().get("failures", 0)
        self._write({"key": new_key, "state": self._found(), "failures": failures})

    def works(self) -> None:
        """A start from the state has come as far as the engine: earlier failures were no sign."""
        record = self._load()
        if record.get("failures"):
            self._write(record | {"failures": 0})

    def failed(self, tried_key: str) -> None:
        """Saving or restoring did not work: remove what there is, and try no more after the second time."""
        failures = self._load().get("failures", 0)
        self._remove_files()
        self._write({"key": tried_key, "failures": failures + 1 if isinstance(failures, int) else 1})

    def drop(self) -> None:
        """Remove everything. Idempotent."""
        self._remove_files()
        self._paths.saved_record.unlink(missing_ok=True)

    def continue_console(self) -> None:
        """Begin the console's log with what the machine had said when it was saved."""
        said = console.text(self._paths.saved_console)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        write_atomically(self._paths.console_log, f"{said}\nmoorage: saved here; restored at {stamp}\n")

    def _remove_files(self) -> None:
        for path in (self.path, self.staged, self._paths.saved_console):
            path.unlink(missing_ok=True)

    def _found(self) -> list[int] | None:
        """Size and time of the file as it lies there."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def _load(self) -> dict[str, object]:
        try:
            content = json.loads(self._paths.saved_record.read_text(encoding="utf-8"))
            return dict(content) if content["format"] == FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write(self, record: dict[str, object]) -> None:
        write_atomically(self._paths.saved_record, json.dumps(record | {"format": FORMAT}, indent=2) + "\n")


def save(domain: libvirt.virDomain, path: Path) -> bool:
    """Write the running domain's state to `path`, which ends it. False when it could not and the domain goes on.

    Blocks; run in libvirt's thread. Raises HostError when the state could not be written and the domain is off.
    """
    try:
        domain.saveFlags(str(path), None, 0)
    except libvirt.libvirtError as error:
        path.unlink(missing_ok=True)
        if not domain.isActive():
            raise HostError(f"the machine ended while it was saved: {error}") from error
        logger.warning("the machine cannot be saved: %s", error)
        if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
        return False
    return True


def restore(connection: libvirt.virConnect, path: Path) -> None:
    """Let the domain go on from `path`; it has no forward to its SSH port yet. Blocks; libvirt's errors pass through."""
    connection.restoreFlags(str(path), None, libvirt.VIR_DOMAIN_SAVE_RUNNING)
