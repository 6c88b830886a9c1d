"""One virtual machine at libvirt: define, start and watch with fallback to tcg, stop, delete.

What the machine is for (SSH, the engine) is left to control.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from moorage_contract.image_manifest import Manifest

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import private_folder, write_atomically
from moorage_host.link import keys
from moorage_host.machine import accelerator, disk, domain_xml, forward, image, preparing, saved
from moorage_host.machine.accelerator import Circumstances
from moorage_host.machine.connection import Connection
from moorage_host.machine.here import Here
from moorage_host.machine.library import libvirt
from moorage_host.machine.place import Place, Progress
from moorage_host.machine.there import There
from moorage_host.paths import Paths
from moorage_host.settings import Settings

logger = logging.getLogger(__name__)

FORMAT = 1
FIRST_OUTPUT = 6.0  # seconds; kvm and hvf have printed within one
SILENCE = 60.0  # seconds that tcg, or an accelerator that was chosen, gets
SETTLE = 1.0  # seconds after the first output that an untried accelerator is still watched closely
POLL = 0.1


class Power(Enum):
    """What libvirt says of the domain, in the words that matter here."""

    ABSENT = "absent"
    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Record:
    """What must be known of the machine besides what libvirt knows."""

    uuid: str
    accelerator: str = ""
    ssh_port: int = 0
    engine_version: str = ""
    arch: str = ""
    accelerator_note: str = ""


@dataclass(frozen=True)
class Started:
    """How a start went. `warning` is one sentence when another accelerator was tried first and failed.

    `fallback_seconds` is then how long it took from the first try until QEMU ran with tcg. `restored`: the guest waits for its
    release.
    """

    accelerator: str
    ssh_port: int
    warning: str
    fallback_seconds: float = 0.0
    restored: bool = False


class Machine:
    """The domain of one user. Methods are not to be called at the same time but for `power`."""

    def __init__(self, paths: Paths, connection: Connection) -> None:
        self._paths = paths
        self._connection = connection
        self._place: Place = (
            Here(paths, connection.uri) if connection.remote is None else There(paths, connection, connection.remote)
        )
        self._runs_since = 0.0  # monotonic, of the last start
        self._saved = saved.SavedState(paths)
        self._saved_key = ""  # of the start under way, or the last
        self._to_save: domain_xml.Domain | None = None  # what to prepare a state of when the machine is off

    @property
    def connection(self) -> Connection:
        return self._connection

    def record(self) -> Record:
        """The machine's record; a new one, not yet written, when there is none or it cannot be read."""
        try:
            content = json.loads(self._paths.machine_record.read_text(encoding="utf-8"))
            if content.pop("format") == FORMAT:
                return Record(
                    **{field.name: content[field.name] for field in dataclasses.fields(Record) if field.name in content}
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("no usable machine record: %s", error)
        return Record(str(uuid.uuid4()))

    def _write(self, record: Record) -> None:
        write_atomically(
            self._paths.machine_record, json.dumps({"format": FORMAT} | dataclasses.asdict(record), indent=2) + "\n"
        )

    async def power(self, name: str) -> Power:
        """Whether the machine is there and on, by libvirt's word."""

        def look(connection: libvirt.virConnect) -> Power:
            domain = self._own(connection, name)
            return Power.ABSENT if domain is None else _power(domain)

        found = await self._connection.call(look)
        if found is Power.RUNNING:
            with contextlib.suppress(HostError):  # the console is worth a look, not a failure
                await self._place.console_size()
        return found

    async def start(
        self, settings: Settings, progress: Progress, *, cpu_model: str = "", use_saved: bool = True
    ) -> Started:
        """Define and start the machine; returns when it runs and has printed something, with its SSH port.

        With the accelerator `auto`, one that fails within seconds is given up for tcg, and remembered. Raises HostError.
        `cpu_model` overrides the processor model that an accelerator implies. With a saved state that fits, the machine goes on from
        that, unless not `use_saved`; one that cannot be restored is removed, and the machine boots.
        """
        private_folder(self._paths.machine)
        self._place.check()
        self._to_save = None
        await self.end_preparation()
        arch = await self._place.arch()
        folder = self._paths.image if settings.image == "auto" else Path(settings.image)
        program = await self._place.emulator(arch)
        progress("checking the image")
        manifest = await asyncio.to_thread(image.checked, folder, self._paths.machine / "image.checked")
        if manifest.arch != arch:
            raise HostError(
                f"the image in {folder} is for {manifest.arch}, the machine's host is {arch}",
                hint=f"moorage image build --arch {arch}",
                code=ErrorCode.INVALID,
            )
        files = await self._place.furnish(settings, manifest, folder, progress)
        pair = await asyncio.to_thread(keys.ensure, self._paths.client_key, self._paths.host_key)
        now = await self._place.circumstances(program)
        memory = accelerator.Memory(self._paths.accelerators, now)
        offered = await self._place.offered(arch) if settings.accelerator == "auto" else None
        choice = accelerator.choose(settings.accelerator, memory, lambda: offered)
        record = self.record()
        domain = domain_xml.Domain(
            name=settings.name,
            uuid=record.uuid,
            arch=arch,
            accelerator=choice.name,
            emulator=program,
            cpus=settings.cpus,
            memory_mib=settings.memory_mib,
            cmdline=manifest.cmdline,
            cpu_model=cpu_model,
            run_as_root=self._place.run_as_root,
            **vars(files),
        )
        warning = ""
        began, fallback_seconds = time.monotonic(), 0.0

        async def planned(domain: domain_xml.Domain) -> saved.Plan:
            if not (use_saved and self._place.saves):
                return saved.Plan.BOOT
            return await self._plan(settings, dataclasses.replace(domain, held=True), manifest, now, pair)

        plan = await planned(domain)
        domain = dataclasses.replace(domain, held=plan is saved.Plan.RESTORE)
        port = 0
        if plan is saved.Plan.RESTORE:
            try:
                progress(f"restoring the machine ({choice.name})")
                port = await self.restore(domain)
            except HostError as error:
                warning = f"{error.message}: the machine boots instead"
                logger.warning("%s", warning)
                progress(warning)
                domain = dataclasses.replace(domain, held=False)
                plan = await planned(domain)
        try:
            if not port:
                progress(f"starting the machine ({choice.name})")
                port = await self._boot(domain, record, untried=choice.may_fall_back)
        except HostError as error:
            if not choice.may_fall_back:
                raise
            memory.remember(choice.name, error.message)
            warning = f"{choice.name} does not work on this host ({error.message}); the machine runs with tcg, which is slower"
            logger.warning("%s", warning)
            progress(warning)
            domain = dataclasses.replace(domain, accelerator="tcg", cpu_model="", held=False)
            port = await self._boot(domain, record, untried=False)
            fallback_seconds = self._runs_since - began
            self._to_save = None
            await planned(domain)
            logger.info("the machine ran with tcg %.1f s after the first try", fallback_seconds)
        self._write(
            dataclasses.replace(
                record,
                uuid=domain.uuid,
                accelerator=domain.accelerator,
                ssh_port=port,
                engine_version=manifest.engine_version,
                arch=arch,
                accelerator_note=warning or choice.note,
            )
        )
        return Started(domain.accelerator, port, warning, fallback_seconds, plan is saved.Plan.RESTORE)

    async def _plan(
        self, settings: Settings, domain: domain_xml.Domain, manifest: Manifest, now: Circumstances, pair: keys.Keys
    ) -> saved.Plan:
        """How to start, with or without a saved state."""
        if not saved.wanted(settings.saved_start, domain.accelerator, domain.arch):
            self._saved.drop()
            return saved.Plan.BOOT
        library = await self._connection.call(lambda connection: int(connection.getLibVersion()))

        def look() -> saved.Plan:
            self._saved_key = saved.key(domain, manifest, now, pair, library, disk.virtual_size(self._paths.disk))
            return self._saved.plan(self._saved_key)

        plan = await asyncio.to_thread(look)
        if plan is saved.Plan.SAVE:
            self._to_save = domain
        return plan

    def preparation(self) -> preparing.Preparation | None:
        """What makes the saved state that the last start found missing, once; to be run when the machine is off. None: nothing to make."""
        domain, self._to_save = self._to_save, None
        if domain is None or domain.uuid != self.record().uuid:  # libvirt had it under another: the next start knows
            return None
        return preparing.Preparation(self._connection, self._saved, domain, self._saved_key)

    async def end_preparation(self) -> None:
        """Cut the power of a machine that an earlier backend was preparing, which nobody has started. Quiet when there is none."""
        await preparing.end(self._connection, self._saved, self.record().uuid)

    async def restore(self, domain: domain_xml.Domain) -> int:
        """Define the machine and let it go on from its saved state; its SSH port.

        Raises HostError when it cannot, with no machine running and the state removed.
        """
        self._saved.continue_console()
        preferred = self.record().ssh_port

        def run(connection: libvirt.virConnect) -> int:
            if self._define(connection, domain) != domain.uuid:
                raise HostError("it is another machine's")
            saved.restore(connection, self._saved.path)
            return forward.ensure(connection.lookupByUUIDString(domain.uuid), self._place.unused_port, preferred)

        try:
            return await self._connection.call(run, deadline=saved.DEADLINE)
        except (HostError, libvirt.libvirtError) as error:
            self._saved.failed(self._saved_key)
            with contextlib.suppress(HostError):
                await self.kill(domain.name)
            raise HostError(f"the machine's saved state cannot be used ({_first_fault(str(error))})") from error

    def distrust_saved(self) -> None:
        """The machine was restored, and does not answer: remove the state that it came from."""
        self._saved.failed(self._saved_key)

    def trust_saved(self) -> None:
        """The machine was restored, and its engine answers."""
        self._saved.works()

    async def blame(self, reason: str) -> str | None:
        """Remember that the accelerator of the running machine failed after boot; the warning to show, or None when it was tcg."""
        record = self.record()
        if record.accelerator not in ("kvm", "hvf"):
            return None
        now = await self._place.circumstances(await self._place.emulator(record.arch or await self._place.arch()))
        accelerator.Memory(self._paths.accelerators, now).remember(record.accelerator, reason)
        return f"{record.accelerator} does not work on this host ({reason}); the machine runs with tcg, which is slower"

    async def _boot(self, domain: domain_xml.Domain, record: Record, *, untried: bool) -> int:
        """Start `domain` and watch it until it has said something; the SSH port. Leaves no running machine when it raises."""
        await self._place.clear_console()
        identity = await self._connection.call(lambda connection: self._define(connection, domain))
        self._write(dataclasses.replace(record, uuid=identity))
        domain = dataclasses.replace(domain, uuid=identity)
        try:
            port = await self._connection.call(lambda connection: self._create(connection, identity, record.ssh_port))
            self._runs_since = time.monotonic()
            await self._watch(identity, domain.accelerator, untried=untried)
        except BaseException:
            with contextlib.suppress(HostError):
                await asyncio.shield(self._connection.call(lambda connection: _destroy(connection, identity)))
            raise
        return port

    async def _watch(self, identity: str, name: str, *, untried: bool) -> None:
        """Until the console says something (and for a moment after, with an accelerator that has not proved itself)."""
        patience = FIRST_OUTPUT if untried else SILENCE
        deadline = time.monotonic() + patience
        settled = 0.0
        while True:
            power, reason = await self._connection.call(lambda connection: _power_and_reason(connection, identity))
            if power is not Power.RUNNING:
                raise HostError(f"the machine stopped while it started ({reason})", hint="see `moorage console`")
            now = time.monotonic()
            if settled == 0.0 and await self._place.console_size():
                settled = now + (SETTLE if untried else 0)
            if settled and now >= settled:
                return
            if not settled and now > deadline:
                raise HostError(
                    f"the machine said nothing within {patience:.0f} s of its start with {name}",
                    hint="see `moorage console`",
                    code=ErrorCode.TIMEOUT,
                )
            await asyncio.sleep(POLL)

    def _create(self, connection: libvirt.virConnect, identity: str, preferred_port: int) -> int:
        domain = connection.lookupByUUIDString(identity)
        try:
            domain.create()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and domain.isActive():
                return forward.ensure(domain, self._place.unused_port, preferred_port)
            raise HostError(f"QEMU did not start: {_first_fault(str(error))}", hint="see the backend's log") from error
        try:
            return forward.ensure(domain, self._place.unused_port, preferred_port)
        except libvirt.libvirtError as error:
            raise HostError(f"QEMU ended right after its start: {_first_fault(str(error))}") from error

    def _define(self, connection: libvirt.virConnect, domain: domain_xml.Domain) -> str:
        """Define the domain, over its older self; its UUID. Raises HostError when the name belongs to somebody else."""
        with contextlib.suppress(libvirt.libvirtError):
            present = connection.lookupByName(domain.name)
            if present.UUIDString() != domain.uuid:
                if not self._place.owns(present):
                    raise HostError(
                        f"libvirt already has a virtual machine named {domain.name} that is not Moorage's",
                        hint="rename it, or choose another `name` in the settings",
                        code=ErrorCode.CONFLICT,
                    )
                domain = dataclasses.replace(domain, uuid=present.UUIDString())
        try:
            return str(connection.defineXML(domain_xml.render(domain)).UUIDString())
        except libvirt.libvirtError as error:
            raise HostError(
                f"libvirt does not take the machine: {error}",
                hint="`moorage start --accelerator tcg` asks the least of the host",
            ) from error

    def _own(self, connection: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
        """Our domain: by its UUID, or, when our record was lost, by name and disk."""
        domain = _look_up(lambda: connection.lookupByUUIDString(self.record().uuid))
        if domain is None:
            domain = _look_up(lambda: connection.lookupByName(name))
            if domain is not None and not self._place.owns(domain):
                return None
        return domain

    async def ssh_port(self, name: str) -> int:
        """The port on 127.0.0.1 that leads to the running guest's sshd, made anew when it is gone."""

        def ask(connection: libvirt.virConnect) -> int:
            domain = self._own(connection, name)
            if domain is None:
                raise HostError(f"there is no machine {name}", hint="moorage start", code=ErrorCode.NOT_FOUND)
            return forward.ensure(domain, self._place.unused_port, self.record().ssh_port)

        port = await self._connection.call(ask)
        record = self.record()
        if port != record.ssh_port:
            self._write(dataclasses.replace(record, ssh_port=port))
        return self._place.way_in(port)

    def known_ssh_port(self) -> int:
        """The same by the record alone, 0 when the machine has none yet."""
        port = self.record().ssh_port
        return self._place.way_in(port) if port else 0

    async def reason(self, name: str) -> str:
        """Why the machine is in the power state that it is in, in libvirt's words."""

        def ask(connection: libvirt.virConnect) -> str:
            domain = self._own(connection, name)
            return "gone" if domain is None else _power_and_reason(connection, domain.UUIDString())[1]

        return await self._connection.call(ask)

    async def press_power_button(self, name: str) -> None:
        """Ask the guest to power off; returns at once, quietly when it is off already."""
        await self._on_own(name, lambda domain: domain.shutdown())

    async def goes_off(self, name: str, deadline: float) -> bool:
        """Wait up to `deadline` seconds for the machine to be off; whether it is."""
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            if await self.power(name) not in (Power.RUNNING, Power.PAUSED):
                return True
            await asyncio.sleep(POLL)
        return False

    async def resume(self, name: str) -> None:
        """Let a paused machine run on."""
        await self._on_own(name, lambda domain: domain.resume())

    async def kill(self, name: str) -> None:
        """Cut the machine's power; returns when it is off. Quiet when it is off already."""
        await self._on_own(name, lambda domain: domain.destroy())

    async def _on_own(self, name: str, action: Callable[[libvirt.virDomain], object]) -> None:
        def run(connection: libvirt.virConnect) -> None:
            domain = self._own(connection, name)
            if domain is not None and domain.isActive():
                with contextlib.suppress(libvirt.libvirtError):
                    action(domain)

        await self._connection.call(run)

    async def delete(self, name: str) -> None:
        """Remove the machine, its disk and everything on it. Idempotent."""
        self._place.check()

        def remove(connection: libvirt.virConnect) -> None:
            domain = self._own(connection, name)
            if domain is not None:
                if domain.isActive():
                    domain.destroy()
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

        if self._connection.remote is None or self._paths.machine.is_dir():
            try:
                await self._connection.call(remove)
            except libvirt.libvirtError as error:
                raise HostError(f"libvirt does not let the machine go: {error}") from error
            await self._place.clear()
        for path in sorted(self._paths.machine.glob("*")) if self._paths.machine.is_dir() else []:
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._paths.machine.rmdir()


def _look_up(look: Callable[[], libvirt.virDomain]) -> libvirt.virDomain | None:
    """The domain, or None when libvirt says that there is none; any other answer of its passes through."""
    try:
        return look()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _first_fault(message: str) -> str:
    """The telling line of libvirt's report of QEMU's last words."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in lines:
        if " error: " in line:
            return line.rsplit(" error: ", 1)[1]
    return lines[0].removeprefix("internal error: ") if lines else "no reason given"


def _destroy(connection: libvirt.virConnect, identity: str) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.lookupByUUIDString(identity).destroy()


def _power(domain: libvirt.virDomain) -> Power:
    state = domain.state()[0]
    if state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED, libvirt.VIR_DOMAIN_SHUTDOWN):
        return Power.RUNNING
    if state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
        return Power.PAUSED
    return Power.CRASHED if state == libvirt.VIR_DOMAIN_CRASHED else Power.OFF


def _power_and_reason(connection: libvirt.virConnect, identity: str) -> tuple[Power, str]:
    try:
        domain = connection.lookupByUUIDString(identity)
        power = _power(domain)
        state, reason = domain.state()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return Power.ABSENT, "it is gone"
    kinds = {
        libvirt.VIR_DOMAIN_RUNNING: "RUNNING",
        libvirt.VIR_DOMAIN_PAUSED: "PAUSED",
        libvirt.VIR_DOMAIN_SHUTOFF: "SHUTOFF",
        libvirt.VIR_DOMAIN_CRASHED: "CRASHED",
    }
    prefix = f"VIR_DOMAIN_{kinds.get(state, 'NOSTATE')}_"
    word = next(
        (
            name.removeprefix(prefix)
            for name, value in vars(libvirt).items()
            if name.startswith(prefix) and value == reason
        ),
        str(reason),
    )
    return power, f"{power.value}: {word.lower().replace('_', ' ')}"
