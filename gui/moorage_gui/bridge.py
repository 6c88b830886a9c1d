"""Between the window and everything that may take time: the backend's control API and the engine's API.

The bridge lives in the window's thread and speaks in signals. Four lanes keep slow things apart: a start that takes a minute
holds up neither the gauges nor the list of containers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from moorage_contract.agent import PipeFill
from PySide6.QtCore import QObject, QTimer, Signal

from moorage_gui.lane import Lane
from moorage_gui.views import (
    Applied,
    ApplyOutcome,
    ContainerView,
    Identity,
    Kept,
    MachineSettings,
    MachineState,
    MachineView,
    compare,
)

POLL_MS = 1000
QUIET_POLL_MS = 4000
LOG_LINES = 500
BACK_SECONDS = 60

log = logging.getLogger(__name__)


class Backend(Protocol):
    """The control API as the window needs it. Every method may block; failures are exceptions whose text is for the user."""

    def status(self) -> MachineView: ...

    def start(self, progress: Callable[[str], None]) -> None: ...

    def stop(self) -> None: ...

    def restart(self, progress: Callable[[str], None]) -> None: ...

    def pipes(self) -> Sequence[PipeFill]: ...

    def config(self) -> str: ...

    def apply_config(self, text: str) -> Applied: ...

    def settings(self) -> MachineSettings: ...

    def save_settings(self, settings: MachineSettings) -> None: ...

    def restart_daemon(self) -> None: ...


class Engine(Protocol):
    """The engine's containers. Every method may block and raises when the engine does not answer."""

    def containers(self) -> Sequence[ContainerView]: ...

    def identities(self) -> Sequence[Identity]: ...

    def start(self, container_id: str) -> None: ...

    def stop(self, container_id: str) -> None: ...

    def logs(self, container_id: str, lines: int) -> str: ...

    def close(self) -> None: ...


class Bridge(QObject):
    """Signals carry values of `views`; every public method returns at once."""

    machine_changed = Signal(MachineView)
    pipes_changed = Signal(list)
    containers_changed = Signal(list)
    config_loaded = Signal(str)
    apply_started = Signal()
    applied = Signal(ApplyOutcome)
    daemon_restarted = Signal(list)
    settings_loaded = Signal(MachineSettings)
    settings_saved = Signal()
    logs_loaded = Signal(str, str)
    progress = Signal(str)
    failed = Signal(str, str)

    def __init__(self, backend: Backend, engine: Engine, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._backend = backend
        self._engine = engine
        self._control = Lane("moorage control", self)
        self._machine_poll = Lane("moorage status", self)
        self._engine_poll = Lane("moorage containers", self)
        self._logs = Lane("moorage logs", self)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.refresh)
        self._machine = MachineView()
        self._containers: list[ContainerView] = []
        self._pipes: list[PipeFill] = []
        self._engine_answers = True

    @property
    def machine(self) -> MachineView:
        """The last view of the machine."""
        return self._machine

    @property
    def containers(self) -> list[ContainerView]:
        """The last list of containers."""
        return self._containers

    @property
    def pipes(self) -> list[PipeFill]:
        """The last fills."""
        return self._pipes

    def begin(self) -> None:
        """Look at everything now and from then on once a second."""
        self._timer.start(POLL_MS)
        self.refresh()
        self.load_config()
        self.load_settings()

    def set_watched(self, watched: bool) -> None:
        """Poll at leisure while no window is open: the tray needs only the state."""
        if self._timer.isActive():
            self._timer.start(POLL_MS if watched else QUIET_POLL_MS)

    def close(self) -> bool:
        """Stop polling and end the threads. False when a call would not end within some seconds: its thread is left behind."""
        self._timer.stop()
        ended = [lane.close() for lane in (self._machine_poll, self._engine_poll, self._logs, self._control)]
        if not all(ended):
            log.warning("a call to the backend did not end")
        return all(ended)

    def refresh(self) -> None:
        """Ask for the machine, the pipes and the containers, each unless the last question is still open."""
        if self._machine_poll.idle:
            self._machine_poll.submit(self._backend.status, self._got_machine, self._lost_machine)
            if self._machine.state is MachineState.RUNNING:
                self._machine_poll.submit(self._backend.pipes, self._got_pipes, lambda _: self._got_pipes([]))
        if self._engine_poll.idle and self._machine.state is MachineState.RUNNING:
            self._engine_poll.submit(self._engine.containers, self._got_containers, self._lost_containers)

    def start(self) -> None:
        """Start the machine."""
        self._control.submit(
            lambda: self._backend.start(self.progress.emit),
            self._settled,
            self._failure("The machine did not start"),
        )
        self._show_state(MachineState.STARTING)

    def stop(self) -> None:
        """Stop the machine; containers get their stop signal."""
        self._control.submit(self._backend.stop, self._settled, self._failure("The machine did not stop"))
        self._show_state(MachineState.STOPPING)

    def restart(self) -> None:
        """Stop and start the machine."""
        self._control.submit(
            lambda: self._backend.restart(self.progress.emit),
            self._settled,
            self._failure("The machine did not restart"),
        )
        self._show_state(MachineState.STOPPING)

    def load_config(self) -> None:
        """Read the daemon's configuration; works with the machine off."""
        self._control.submit(
            self._backend.config,
            self.config_loaded.emit,
            self._failure("The daemon's configuration could not be read"),
        )

    def apply_config(self, text: str) -> None:
        """Apply a configuration, noting which containers run before and after."""
        self.apply_started.emit()
        running = self._machine.state is MachineState.RUNNING

        def work() -> ApplyOutcome:
            before = self._identities() if running else []
            applied = self._backend.apply_config(text)
            after = self._identities_again(before)
            return ApplyOutcome(applied, text, compare(before, after))

        def failed(error: Exception) -> None:
            self.applied.emit(ApplyOutcome(Applied(False, str(error)), text))

        self._control.submit(work, self._applied, failed)

    def restart_daemon(self) -> None:
        """Restart the daemon and say of each container whether it went on."""

        def work() -> list[Kept]:
            before = self._identities()
            self._backend.restart_daemon()
            return [*compare(before, self._identities_again(before))]

        self._control.submit(work, self._daemon_restarted, self._failure("The daemon did not restart"))

    def load_settings(self) -> None:
        """Read the machine's resources."""
        self._control.submit(
            self._backend.settings,
            self.settings_loaded.emit,
            self._failure("The machine's settings could not be read"),
        )

    def save_settings(self, settings: MachineSettings) -> None:
        """Store the machine's resources; they count from its next start."""

        def done(_: None) -> None:
            self.settings_saved.emit()
            self.load_settings()

        self._control.submit(
            lambda: self._backend.save_settings(settings), done, self._failure("The settings were not saved")
        )

    def start_container(self, container_id: str) -> None:
        """Start one container."""
        self._logs.submit(
            lambda: self._engine.start(container_id), self._settled, self._failure("The container did not start")
        )

    def stop_container(self, container_id: str) -> None:
        """Stop one container."""
        self._logs.submit(
            lambda: self._engine.stop(container_id), self._settled, self._failure("The container did not stop")
        )

    def load_logs(self, container_id: str) -> None:
        """Fetch the last lines of a container's log, unless that is still under way."""

        def done(text: str) -> None:
            self.logs_loaded.emit(container_id, text)

        if self._logs.idle:
            self._logs.submit(
                lambda: self._engine.logs(container_id, LOG_LINES),
                done,
                lambda error: done(f"The log could not be read: {error}"),
            )

    def _identities(self) -> list[Identity]:
        try:
            return [*self._engine.identities()]
        except Exception:  # no proof is no reason not to apply; the page says that there is none
            log.info("no identities of containers", exc_info=True)
            return []

    def _identities_again(self, before: Sequence[Identity]) -> Sequence[Identity]:
        """The same question once the daemon is back; called in a lane, waits for it."""
        deadline = time.monotonic() + BACK_SECONDS
        while before:
            try:
                return self._engine.identities()
            except Exception as error:  # whatever a client raises while nobody answers
                if time.monotonic() > deadline:
                    log.info("no identities of containers: %s", error)
                    return []
                time.sleep(0.2)
        return []

    def _daemon_restarted(self, proof: list[Kept]) -> None:
        self.daemon_restarted.emit(proof)
        self.refresh()

    def _applied(self, outcome: ApplyOutcome) -> None:
        self.applied.emit(outcome)
        self.refresh()

    def _settled(self, _: object) -> None:
        self.progress.emit("")
        self.refresh()

    def _failure(self, title: str) -> Callable[[Exception], None]:
        def report(error: Exception) -> None:
            self.progress.emit("")
            self.failed.emit(title, str(error) or type(error).__name__)
            self.refresh()

        return report

    def _show_state(self, state: MachineState) -> None:
        self._got_machine(MachineView(state, docker_socket=self._machine.docker_socket))

    def _got_machine(self, machine: MachineView) -> None:
        was = self._machine.state
        self._machine = machine
        self.machine_changed.emit(machine)
        if machine.state is not MachineState.RUNNING and was is MachineState.RUNNING:
            self._show_containers([])
            self._show_pipes([])
        if machine.state is MachineState.RUNNING and was is not MachineState.RUNNING:
            self.refresh()

    def _lost_machine(self, error: Exception) -> None:
        self._got_machine(MachineView(MachineState.UNKNOWN, str(error)))

    def _got_pipes(self, pipes: Sequence[PipeFill]) -> None:
        """An answer that was under way when the machine stopped is of no use any more."""
        if self._machine.state is MachineState.RUNNING:
            self._show_pipes(pipes)

    def _got_containers(self, containers: Sequence[ContainerView]) -> None:
        if self._machine.state is MachineState.RUNNING:
            self._show_containers(containers)

    def _show_pipes(self, pipes: Sequence[PipeFill]) -> None:
        self._pipes = [*pipes]
        self.pipes_changed.emit(self._pipes)

    def _show_containers(self, containers: Sequence[ContainerView]) -> None:
        self._containers = [*containers]
        self.containers_changed.emit(self._containers)

    def _lost_containers(self, error: Exception) -> None:
        log.debug("containers could not be listed: %s", error)
