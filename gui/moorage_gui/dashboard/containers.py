"""The Containers page: what there is, how it is, its log, and stopping and starting it."""

from __future__ import annotations

from PySide6.QtCore import QTimer
from PySide6.QtGui import QTextCursor
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QPlainTextEdit, QSplitter, QStackedWidget, QVBoxLayout, QWidget

from moorage_gui.bridge import Bridge
from moorage_gui.dashboard.tables import Column, DotDelegate, Rows, Table
from moorage_gui.parts import Card, Chip, Page, button, label
from moorage_gui.theme import Theme, monospace
from moorage_gui.views import ContainerView, MachineState, MachineView

LOG_MS = 1500


def tone(row: ContainerView, theme: Theme) -> str:
    """Colour of a container's dot."""
    return {"running": theme.good, "paused": theme.warning, "restarting": theme.warning, "dead": theme.bad}.get(
        row.state, theme.muted
    )


class ContainersPage(Page):
    """The choice stays on its container while the list changes around it."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__("Containers", "Everything the engine holds. Closing this window stops nothing.")
        self._bridge = bridge
        self._chosen = ""
        self.state = Chip("…", "plain")
        self.head.addWidget(self.state)
        self._all: list[ContainerView] = []
        columns: list[Column[ContainerView]] = [
            Column("Name", lambda row: row.name, lambda row: row.id[:12], stretch=True),
            Column("Image", lambda row: row.image),
            Column("Status", lambda row: row.status or row.state),
            Column("Ports", lambda row: row.ports or "–"),
        ]
        self.model = Rows(columns, lambda row: row.id, self)
        self.table = Table(self.model, "Containers")
        self._dots = DotDelegate(tone, self)
        self.table.setItemDelegateForColumn(0, self._dots)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search names and images")
        self.search.setAccessibleName("Search")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._show)
        bar = QHBoxLayout()
        bar.addWidget(self.search, 1)
        self.start = button("Start", "Start the chosen container")
        self.stop = button("Stop", "Stop the chosen container with its stop signal")
        bar.addWidget(self.start)
        bar.addWidget(self.stop)
        self.column.addLayout(bar)
        self._split = QSplitter()
        self._split.setOrientation(self._split.orientation().Vertical)
        self._split.setChildrenCollapsible(False)
        self._stack = QStackedWidget()
        self._stack.addWidget(self.table)
        empty = Card()
        empty.column.addStretch(1)
        self.empty = label("", "muted", wrap=True)
        empty.column.addWidget(self.empty)
        empty.column.addStretch(1)
        self._stack.addWidget(empty)
        self._split.addWidget(self._stack)
        self._split.addWidget(self._log_panel())
        self._split.setSizes([300, 220])
        self.column.addWidget(self._split, 1)
        self.start.clicked.connect(lambda: bridge.start_container(self._chosen))
        self.stop.clicked.connect(lambda: bridge.stop_container(self._chosen))
        self.table.selectionModel().selectionChanged.connect(self._choose)
        bridge.containers_changed.connect(self._containers_changed)
        bridge.machine_changed.connect(self._machine_changed)
        bridge.logs_loaded.connect(self._logs_loaded)
        self._follow = QTimer(self)
        self._follow.setInterval(LOG_MS)
        self._follow.timeout.connect(self._load_logs)
        self._show()

    @property
    def chosen(self) -> ContainerView | None:
        """The container that buttons and log are about."""
        return next((row for row in self._all if row.id == self._chosen), None)

    def shown(self) -> None:
        """Go on following the log."""
        self._load_logs()

    def _log_panel(self) -> QWidget:
        panel = QWidget()
        column = QVBoxLayout(panel)
        column.setContentsMargins(0, 6, 0, 0)
        self.log_title = label("Log", "heading")
        column.addWidget(self.log_title)
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setAccessibleName("Log of the chosen container")
        self.log.setFont(monospace(9.5))
        self.log.setTabChangesFocus(True)
        self.log.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.log.setPlaceholderText("Choose a container to see the end of its log.")
        column.addWidget(self.log, 1)
        return panel

    def _machine_changed(self, machine: MachineView) -> None:
        self.state.say(machine.state.words, machine.state.tone)
        self._show()

    def _containers_changed(self, rows: list[ContainerView]) -> None:
        self._all = rows
        self._show()

    def _show(self) -> None:
        words = self.search.text().lower().split()
        rows = [row for row in self._all if all(word in f"{row.name} {row.image}".lower() for word in words)]
        rows.sort(key=lambda row: (not row.running, row.name))
        if self.model.show_rows(rows):
            self._choose_again()
        if rows:
            self._stack.setCurrentIndex(0)
        else:
            self._stack.setCurrentIndex(1)
            if self._bridge.machine.state is MachineState.UNKNOWN:
                self.empty.setText("The backend does not answer. It is asked again.")
            elif self._bridge.machine.state is not MachineState.RUNNING:
                self.empty.setText("The machine is not running. Start it to see its containers.")
            elif self._all:
                self.empty.setText("No container matches the search.")
            else:
                self.empty.setText("No containers yet. Try:  docker --context moorage run -d busybox sleep 1h")
        self._judge()

    def _choose_again(self) -> None:
        for number, row in enumerate(self.model.rows):
            if row.id == self._chosen:
                self.table.selectRow(number)
                return

    def _choose(self) -> None:
        picked = self.table.selectionModel().selectedRows()
        if not picked:
            return
        row = self.model.rows[picked[0].row()]
        if row.id != self._chosen:
            self._chosen = row.id
            self.log.clear()
            self.log_title.setText(f"Log of {row.name}")
            self.log.setPlaceholderText("Nothing logged yet.")
            self._load_logs()
            self._follow.start()
        self._judge()

    def _judge(self) -> None:
        chosen = self.chosen
        self.start.setEnabled(chosen is not None and not chosen.running)
        self.stop.setEnabled(chosen is not None and chosen.running)
        if chosen is None and self._chosen:
            self._chosen = ""
            self._follow.stop()
            self.log.clear()
            self.log_title.setText("Log")

    def _load_logs(self) -> None:
        if self._chosen and self.isVisible():
            self._bridge.load_logs(self._chosen)

    def _logs_loaded(self, container_id: str, text: str) -> None:
        if container_id != self._chosen or text == self.log.toPlainText():
            return
        bar = self.log.verticalScrollBar()
        at_end = bar.value() >= bar.maximum() - 2
        place = bar.value()
        self.log.setPlainText(text)
        if at_end:
            self.log.moveCursor(QTextCursor.MoveOperation.End)
            self.log.moveCursor(QTextCursor.MoveOperation.StartOfLine)
        else:
            bar.setValue(place)
