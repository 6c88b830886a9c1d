"""The tray icon: the machine's state at a glance, and a menu that fits it."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QAction, QGuiApplication
from PySide6.QtWidgets import QMenu, QSystemTrayIcon

from moorage_gui import icons
from moorage_gui.bridge import Bridge
from moorage_gui.theme import DARK, LIGHT, theme_for
from moorage_gui.views import MachineState, MachineView


class Tray(QObject):
    """Signals ask for windows and for the end; start and stop go to the bridge."""

    containers_wanted = Signal()
    settings_wanted = Signal()
    quit_wanted = Signal()

    def __init__(self, bridge: Bridge, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._bridge = bridge
        self._drawn: MachineState | None = None
        self.menu = QMenu()
        self.state = self._action("", enabled=False)
        self.engine = self._action("", enabled=False)
        self.menu.addSeparator()
        self.start = self._action("Start")
        self.stop = self._action("Stop")
        self.restart = self._action("Restart")
        self.menu.addSeparator()
        self.containers = self._action("Containers…")
        self.settings = self._action("Settings…")
        self.menu.addSeparator()
        self.quit = self._action("Quit Moorage")
        self.quit.setToolTip("The machine and its containers run on")
        self.start.triggered.connect(bridge.start)
        self.stop.triggered.connect(bridge.stop)
        self.restart.triggered.connect(bridge.restart)
        self.containers.triggered.connect(self.containers_wanted)
        self.settings.triggered.connect(self.settings_wanted)
        self.quit.triggered.connect(self.quit_wanted)
        self.icon = QSystemTrayIcon(self)
        self.icon.setContextMenu(self.menu)
        self.icon.activated.connect(self._activated)
        bridge.machine_changed.connect(self._machine_changed)
        bridge.failed.connect(self._failed)
        self._machine_changed(bridge.machine)

    def show(self) -> bool:
        """Show the icon; False where the desktop has no tray."""
        if not QSystemTrayIcon.isSystemTrayAvailable():
            return False
        self.icon.show()
        return True

    def close(self) -> None:
        """Take icon and menu away, before the application ends."""
        self.icon.hide()
        self.menu.deleteLater()
        self.icon.deleteLater()

    def _action(self, text: str, *, enabled: bool = True) -> QAction:
        action = self.menu.addAction(text)
        action.setEnabled(enabled)
        return action

    def _machine_changed(self, machine: MachineView) -> None:
        running = machine.state is MachineState.RUNNING
        self.state.setText(f"Machine: {machine.state.words.lower()}")
        self.engine.setText(machine.engine_words)
        self.engine.setVisible(running)
        self.start.setVisible(not running)
        self.start.setEnabled(not machine.state.busy)
        self.stop.setVisible(running)
        self.restart.setVisible(running)
        self.icon.setToolTip(
            f"Moorage – {machine.state.words}" + (f", {machine.engine_words.lower()}" if running else "")
        )
        if machine.state is not self._drawn:
            self._drawn = machine.state
            self._draw(machine.state)

    def _draw(self, state: MachineState) -> None:
        theme = DARK if theme_for(QGuiApplication.palette()).dark else LIGHT
        mark = {
            MachineState.RUNNING: theme.good,
            MachineState.STARTING: theme.warning,
            MachineState.STOPPING: theme.warning,
            MachineState.FAILED: theme.bad,
            MachineState.UNKNOWN: theme.bad,
        }.get(state, "none")
        line = theme.muted if state in (MachineState.OFF, MachineState.ABSENT) else theme.text
        self.icon.setIcon(icons.icon("moorage", line, mark))

    def _activated(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason in (QSystemTrayIcon.ActivationReason.Trigger, QSystemTrayIcon.ActivationReason.DoubleClick):
            self.containers_wanted.emit()

    def _failed(self, title: str, text: str) -> None:
        if self.icon.isVisible():
            self.icon.showMessage(title, text, QSystemTrayIcon.MessageIcon.Warning)
