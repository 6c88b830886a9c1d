"""What Apply will cost, shown while the user types: keys, old and new values, cost of each, and the containers concerned."""

from __future__ import annotations

import json
from collections.abc import Sequence

from moorage_contract.daemon_config import Cost, Fault, Json, Plan
from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QListWidget,
    QListWidgetItem,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from moorage_gui.parts import Card, Chip, label

TONES = {Cost.RELOAD: "good", Cost.RESTART: "warning", Cost.CONTAINERS: "bad", Cost.VM: "bad"}
WORDS = {Cost.RELOAD: "Reload", Cost.RESTART: "Daemon restart", Cost.CONTAINERS: "Containers", Cost.VM: "Machine"}
_SHOWN = 60


def value_text(value: Json) -> str:
    """A value on one line, cut when it is long; a dash for none."""
    if value in ("", [], {}, None):
        return "not set"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def concerned(plan: Plan, running: Sequence[str], kept: bool) -> str:
    """The sentence on running containers; `kept` is whether live restore is on before and after."""
    if not running or not plan.changes:
        return ""
    names = ", ".join(running[:8]) + (f" and {len(running) - 8} more" if len(running) > 8 else "")
    if plan.mode is Cost.RELOAD:
        return f"Keep running, untouched: {names}"
    if not kept:
        return f"Will be stopped, as live restore is off: {names}"
    if plan.mode is Cost.RESTART:
        return f"Keep running: {names}"
    return f"Must be stopped and started to follow: {names}"


class PlanView(QStackedWidget):
    """Either the faults, to be gone to, or the plan, or the word that nothing has changed."""

    fault_chosen = Signal(Fault)

    def __init__(self) -> None:
        super().__init__()
        self._idle = self._made_idle()
        self._problems = self._made_problems()
        self._planned = self._made_plan()
        for page in (self._idle, self._problems, self._planned):
            self.addWidget(page)
        self.setMinimumHeight(116)
        self.setMaximumHeight(170)

    def say_nothing(self, sentence: str) -> None:
        """There is nothing to apply, and why."""
        self.idle_text.setText(sentence)
        self.setCurrentWidget(self._idle)

    def say_faults(self, faults: Sequence[Fault]) -> None:
        """List what is wrong; each goes to its place when chosen."""
        self.fault_chip.say(f"{len(faults)} problem{'s' if len(faults) != 1 else ''}", "bad")
        chosen = self.problems.currentRow()
        self.problems.clear()
        for fault in faults:
            item = QListWidgetItem(f"Line {fault.line}: {fault.message}")
            item.setData(Qt.ItemDataRole.UserRole, fault)
            item.setToolTip(fault.message)
            self.problems.addItem(item)
        self.problems.setCurrentRow(min(max(chosen, 0), len(faults) - 1))
        self.setCurrentWidget(self._problems)

    def say_plan(self, plan: Plan, running: Sequence[str], *, kept: bool, machine_on: bool) -> None:
        """Show what applying costs; with the machine off it costs nothing but waits."""
        self.mode.say(WORDS[plan.mode] if machine_on else "Next start", TONES[plan.mode] if machine_on else "info")
        self.sentence.setText(
            plan.sentence if machine_on else "The machine is off: the file is saved and in force when it starts next."
        )
        names = concerned(plan, running, kept) if machine_on else ""
        self.containers.setText(names)
        self.containers.setVisible(bool(names))
        self._fill(plan)
        self.setCurrentWidget(self._planned)

    def _fill(self, plan: Plan) -> None:
        while self._grid.count():
            item = self._grid.takeAt(0)
            widget = item.widget() if item else None
            if widget is not None:
                widget.setParent(None)
                widget.deleteLater()
        for row, change in enumerate(plan.changes):
            self._grid.addWidget(label(change.key), row, 0)
            values = label(f"{value_text(change.old)}  →  {value_text(change.new)}", "muted")
            values.setToolTip(change.sentence)
            self._grid.addWidget(values, row, 1)
            chip = Chip(WORDS[change.cost], TONES[change.cost])
            chip.setToolTip(change.sentence)
            self._grid.addWidget(chip, row, 2, Qt.AlignmentFlag.AlignRight)
        self._grid.setRowStretch(len(plan.changes), 1)
        for row in range(len(plan.changes)):
            self._grid.setRowStretch(row, 0)

    def _made_idle(self) -> QWidget:
        card = Card()
        card.column.addWidget(label("Nothing to apply", "heading"))
        self.idle_text = label("", "muted", wrap=True)
        card.column.addWidget(self.idle_text)
        card.column.addStretch(1)
        return card

    def _made_problems(self) -> QWidget:
        card = Card()
        head = QHBoxLayout()
        head.addWidget(label("Not to be applied yet", "heading"))
        self.fault_chip = Chip("", "bad")
        head.addWidget(self.fault_chip)
        head.addStretch(1)
        card.column.addLayout(head)
        self.problems = QListWidget()
        self.problems.setObjectName("problems")
        self.problems.setAccessibleName("Problems")
        self.problems.setWordWrap(True)
        self.problems.itemActivated.connect(self._choose)
        self.problems.itemClicked.connect(self._choose)
        card.column.addWidget(self.problems, 1)
        return card

    def _made_plan(self) -> QWidget:
        card = Card()
        head = QHBoxLayout()
        self.sentence = label("", "heading", wrap=True)
        self.mode = Chip()
        head.addWidget(self.sentence, 1)
        head.addWidget(self.mode, 0, Qt.AlignmentFlag.AlignTop)
        card.column.addLayout(head)
        self.containers = label("", wrap=True)
        card.column.addWidget(self.containers)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setAccessibleName("Changes")
        inside = QWidget()
        inside.setObjectName("changes")
        inside.setStyleSheet("#changes { background: transparent; }")
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 4, 4, 0)
        self._grid = QGridLayout()
        self._grid.setColumnStretch(1, 1)
        self._grid.setHorizontalSpacing(16)
        self._grid.setVerticalSpacing(4)
        column.addLayout(self._grid)
        area.setWidget(inside)
        area.viewport().setAutoFillBackground(False)
        card.column.addWidget(area, 1)
        return card

    def _choose(self, item: QListWidgetItem) -> None:
        self.fault_chosen.emit(item.data(Qt.ItemDataRole.UserRole))
