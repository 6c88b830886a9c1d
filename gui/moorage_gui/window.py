"""The window: navigation at the left, one page at the right, and the machine's state with its button below the navigation."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QSize, Qt
from PySide6.QtGui import QCloseEvent, QHideEvent, QKeySequence, QShortcut, QShowEvent
from PySide6.QtWidgets import (
    QHBoxLayout,
    QListWidget,
    QListWidgetItem,
    QMainWindow,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from moorage_gui import icons
from moorage_gui.bridge import Bridge
from moorage_gui.dashboard.containers import ContainersPage
from moorage_gui.dashboard.restore import RestorePage
from moorage_gui.parts import Chip, Page, button, label
from moorage_gui.settings.engine import EnginePage
from moorage_gui.settings.general import GeneralPage
from moorage_gui.theme import theme_for
from moorage_gui.views import MachineState, MachineView

LEAST = QSize(880, 620)


class MainWindow(QMainWindow):
    """Closing hides it; the tray, or `quit_on_close`, decides about the application."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge
        self.setWindowTitle("Moorage")
        self.setMinimumSize(LEAST)
        self.resize(1040, 740)
        self.containers = ContainersPage(bridge)
        self.restore = RestorePage(bridge)
        self.general = GeneralPage(bridge)
        self.engine = EnginePage(bridge)
        self._pages: list[tuple[str, str, Page]] = [
            ("Containers", "containers", self.containers),
            ("Live restore", "restore", self.restore),
            ("General", "general", self.general),
            ("Docker Engine", "engine", self.engine),
        ]
        self.navigation = QListWidget()
        self.navigation.setObjectName("navigation")
        self.navigation.setAccessibleName("Pages")
        self.navigation.setIconSize(QSize(20, 20))
        self.stack = QStackedWidget()
        for number, (name, _, page) in enumerate(self._pages):
            item = QListWidgetItem(name)
            item.setToolTip(
                f"{name} ({QKeySequence(f'Ctrl+{number + 1}').toString(QKeySequence.SequenceFormat.NativeText)})"
            )
            self.navigation.addItem(item)
            self.stack.addWidget(page)
            shortcut = QShortcut(QKeySequence(f"Ctrl+{number + 1}"), self)
            shortcut.activated.connect(lambda number=number: self.navigation.setCurrentRow(number))
        QShortcut(QKeySequence.StandardKey.Close, self).activated.connect(self.close)
        self.navigation.currentRowChanged.connect(self._turned)
        middle = QWidget()
        row = QHBoxLayout(middle)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(self._side())
        row.addWidget(self.stack, 1)
        self.setCentralWidget(middle)
        self._colour()
        bridge.machine_changed.connect(self._machine_changed)
        bridge.progress.connect(self._progress)
        bridge.failed.connect(self._failed)
        self._machine_changed(bridge.machine)
        self.navigation.setCurrentRow(0)

    def show_page(self, page: Page) -> None:
        """Bring the window to the front with this page."""
        self.navigation.setCurrentRow(self.stack.indexOf(page))
        self.show()
        self.raise_()
        self.activateWindow()

    def showEvent(self, event: QShowEvent) -> None:
        """Poll each second while somebody looks."""
        super().showEvent(event)
        self._bridge.set_watched(True)
        self._page().shown()

    def hideEvent(self, event: QHideEvent) -> None:
        """Poll at leisure."""
        super().hideEvent(event)
        self._bridge.set_watched(False)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Closing takes nothing away: text that was not applied is still there when the window comes back."""
        event.accept()

    def changeEvent(self, event: QEvent) -> None:
        """Colour icons for the theme."""
        super().changeEvent(event)
        if event.type() is QEvent.Type.PaletteChange and hasattr(self, "navigation"):
            self._colour()

    def _side(self) -> QWidget:
        side = QWidget()
        side.setObjectName("side")
        side.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        side.setFixedWidth(200)
        column = QVBoxLayout(side)
        column.setContentsMargins(0, 16, 0, 14)
        brand = QHBoxLayout()
        brand.setContentsMargins(18, 0, 12, 8)
        brand.setSpacing(10)
        self._logo = label()
        brand.addWidget(self._logo)
        brand.addWidget(label("Moorage", "value"), 1)
        column.addLayout(brand)
        column.addWidget(self.navigation, 1)
        foot = QVBoxLayout()
        foot.setContentsMargins(16, 0, 16, 0)
        foot.setSpacing(8)
        self.progress = label("", "muted", wrap=True)
        self.machine = Chip()
        self.power = button("Start machine")
        self.power.clicked.connect(self._press)
        foot.addWidget(self.progress)
        foot.addWidget(self.machine)
        foot.addWidget(self.power)
        column.addLayout(foot)
        return side

    def _colour(self) -> None:
        theme = theme_for(self.palette())
        for number, (_, drawing, _) in enumerate(self._pages):
            self.navigation.item(number).setIcon(icons.icon(drawing, theme.text))
        ratio = self.devicePixelRatioF()
        picture = icons.pixmap("moorage", theme.accent, QSize(round(28 * ratio), round(28 * ratio)))
        picture.setDevicePixelRatio(ratio)
        self._logo.setPixmap(picture)
        self.setWindowIcon(icons.icon("moorage", theme.accent))

    def _page(self) -> Page:
        return self._pages[max(0, self.navigation.currentRow())][2]

    def _turned(self, number: int) -> None:
        self.stack.setCurrentIndex(number)
        if self.isVisible():
            self._pages[number][2].shown()

    def _press(self) -> None:
        if self._bridge.machine.state is MachineState.RUNNING:
            self._bridge.stop()
        else:
            self._bridge.start()

    def _machine_changed(self, machine: MachineView) -> None:
        self.machine.say(machine.state.words, machine.state.tone)
        self.machine.setToolTip(machine.detail)
        self.power.setText("Stop machine" if machine.state is MachineState.RUNNING else "Start machine")
        self.power.setEnabled(not machine.state.busy)
        told = machine.detail if machine.state.busy or machine.state.tone == "bad" else ""
        if told or not machine.state.busy:
            self.progress.setText(told)

    def _progress(self, text: str) -> None:
        self.progress.setText(text)

    def _failed(self, title: str, text: str) -> None:
        self._page().banner.say("bad", title, text)
