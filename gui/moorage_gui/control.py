"""The backend's control API in the window's terms, through the host's own client."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from moorage_contract.agent import PipeFill
from moorage_host.client import Client, MachineStatus

from moorage_gui.views import Applied, MachineSettings, MachineState, MachineView

_STATES = {
    "absent": MachineState.ABSENT,
    "stopped": MachineState.OFF,
    "starting": MachineState.STARTING,
    "booted": MachineState.RUNNING,
    "ready": MachineState.RUNNING,
    "stopping": MachineState.STOPPING,
    "paused": MachineState.PAUSED,
    "failed": MachineState.FAILED,
}


MOST_CPUS, MOST_MEMORY_MIB = 256, 1 << 20  # what the settings allow


class HostBackend:
    """Starts the backend when there is none. Methods block and may be called from any thread; errors are the client's own."""

    def __init__(self, client: Client | None = None) -> None:
        self._client = Client() if client is None else client

    @property
    def state_folder(self) -> Path:
        """Where the backend of this user keeps its state."""
        return self._client.paths.state

    def docker_socket(self) -> Path | None:
        """The engine's socket on this computer while there is one."""
        path = self._client.paths.docker_socket
        return path if path.exists() else None

    def status(self) -> MachineView:
        """Where the machine stands, the agent asked anew."""
        return view(self._client.status())

    def start(self, progress: Callable[[str], None]) -> None:
        """Returns when the engine answers."""
        self._client.start(progress)

    def stop(self) -> None:
        """Stop containers, then the machine."""
        self._client.stop()

    def restart(self, progress: Callable[[str], None]) -> None:
        """Stop, then start."""
        self._client.restart(progress)

    def pipes(self) -> Sequence[PipeFill]:
        """Fill of every log pipe, also while moored is dead."""
        return self._client.pipes()

    def config(self) -> str:
        """daemon.json, also with the machine off."""
        return self._client.engine_config().content

    def apply_config(self, text: str) -> Applied:
        """Put daemon.json in force, or store it while the engine is down."""
        answer = self._client.apply_engine_config(text)
        return Applied(answer.ok, answer.message, answer.rolled_back, answer.pending)

    def restart_daemon(self) -> None:
        """Restart moored; containers keep running."""
        self._client.daemon("restart")

    def settings(self) -> MachineSettings:
        """The machine's resources, with what this computer has for bounds; another host's are not known here."""
        found = self._client.settings()
        away = "ssh://" in found.libvirt_uri
        return MachineSettings(
            found.cpus,
            found.memory_mib,
            found.disk_gib,
            MOST_CPUS if away else max(found.cpus, os.cpu_count() or 1),
            MOST_MEMORY_MIB if away else max(found.memory_mib, host_memory_mib()),
            found.saved_start != "off",
            found.libvirt_uri,
        )

    def save_settings(self, settings: MachineSettings) -> None:
        """Store what the window shows; other settings stay as they are."""
        kept = self._client.settings().saved_start
        wished = "auto" if kept == "off" else kept  # `on` is more than a tick can say
        self._client.change_settings(
            cpus=settings.cpus,
            memory_mib=settings.memory_mib,
            disk_gib=settings.disk_gib,
            saved_start=wished if settings.saved_start else "off",
            libvirt_uri=settings.libvirt_uri,
        )


def host_memory_mib() -> int:
    """Memory of this computer; a generous guess where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):
        return 65536


def view(status: MachineStatus) -> MachineView:
    """A status of the control API as the window shows it."""
    path = Path(status.docker_socket) if status.docker_socket else None
    return MachineView(
        state=_STATES[status.state],
        detail=status.step or status.message,
        warning=" ".join(text for text in (status.warning, status.config_problem) if text),
        engine=status.engine,
        docker_socket=path,
        accelerator=status.accelerator,
        restart_needed=status.restart_needed,
    )
