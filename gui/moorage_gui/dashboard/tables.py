"""A table of rows that are values, refreshed once a second without losing the selection, and the bar that a fill is drawn as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPalette
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QStyledItemDelegate, QStyleOptionViewItem, QTableView

from moorage_gui.theme import Theme, theme_for

Row = TypeVar("Row")
Index = QModelIndex | QPersistentModelIndex

ROW_ROLE = int(Qt.ItemDataRole.UserRole)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """Heading, what a cell says, and its tool tip."""

    heading: str
    text: Callable[[Row], str]
    help: Callable[[Row], str] = lambda _: ""
    right: bool = False
    stretch: bool = False


class Rows(QAbstractTableModel, Generic[Row]):
    """Rows are told apart by `key`; an update of the same rows changes cells, any other resets the table."""

    def __init__(
        self, columns: Sequence[Column[Row]], key: Callable[[Row], object], parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self.columns = columns
        self._key = key
        self._rows: list[Row] = []

    @property
    def rows(self) -> list[Row]:
        """What is shown."""
        return self._rows

    def show_rows(self, rows: Sequence[Row]) -> bool:
        """Show these; True when the table was reset, so that a selection has to be made again."""
        same = [self._key(row) for row in rows] == [self._key(row) for row in self._rows]
        if same:
            changed = [number for number, row in enumerate(rows) if row != self._rows[number]]
            self._rows = [*rows]
            for number in changed:
                self.dataChanged.emit(self.index(number, 0), self.index(number, len(self.columns) - 1))
            return False
        self.beginResetModel()
        self._rows = [*rows]
        self.endResetModel()
        return True

    def rowCount(self, parent: Index | None = None) -> int:
        """For Qt."""
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def columnCount(self, parent: Index | None = None) -> int:
        """For Qt."""
        return 0 if parent is not None and parent.isValid() else len(self.columns)

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = int(Qt.ItemDataRole.DisplayRole)
    ) -> Any:
        """For Qt."""
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return self.columns[section].heading
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.TextAlignmentRole:
            return int(
                Qt.AlignmentFlag.AlignVCenter
                | (Qt.AlignmentFlag.AlignRight if self.columns[section].right else Qt.AlignmentFlag.AlignLeft)
            )
        return None

    def data(self, index: Index, role: int = int(Qt.ItemDataRole.DisplayRole)) -> Any:
        """For Qt."""
        if not index.isValid() or index.row() >= len(self._rows):
            return None
        row, column = self._rows[index.row()], self.columns[index.column()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole):
            return column.text(row)
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.help(row) or column.text(row)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return int(
                Qt.AlignmentFlag.AlignVCenter
                | (Qt.AlignmentFlag.AlignRight if column.right else Qt.AlignmentFlag.AlignLeft)
            )
        return row if role == ROW_ROLE else None


class Table(QTableView):
    """Whole rows are chosen; Tab leaves the table."""

    def __init__(self, model: Rows[Any], name: str) -> None:
        super().__init__()
        self.setModel(model)
        self.setAccessibleName(name)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setAlternatingRowColors(True)
        self.setShowGrid(False)
        self.setTabKeyNavigation(False)
        self.setWordWrap(False)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(34)
        self.horizontalHeader().setHighlightSections(False)
        self.horizontalHeader().setMinimumSectionSize(60)
        for number, column in enumerate(model.columns):
            mode = QHeaderView.ResizeMode.Stretch if column.stretch else QHeaderView.ResizeMode.ResizeToContents
            self.horizontalHeader().setSectionResizeMode(number, mode)


class DotDelegate(QStyledItemDelegate):
    """A coloured dot before the text; colours never stand alone."""

    def __init__(self, tone: Callable[[Any, Theme], str], parent: QObject) -> None:
        super().__init__(parent)
        self._tone = tone

    def initStyleOption(self, option: QStyleOptionViewItem, index: Index) -> None:
        """Leave room for the dot."""
        super().initStyleOption(option, index)
        option.text = "     " + option.text

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Text by Qt, then the dot."""
        super().paint(painter, option, index)
        box = option.rect
        theme = theme_for(option.palette)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(self._tone(index.data(ROW_ROLE), theme)))
        painter.drawEllipse(QRectF(box.left() + 11, box.center().y() - 4, 9, 9))
        painter.restore()


class BarDelegate(QStyledItemDelegate):
    """A fill from 0 to 1 as a bar with its text at the right."""

    def __init__(self, fraction: Callable[[Any], float], tone: Callable[[Any, Theme], str], parent: QObject) -> None:
        super().__init__(parent)
        self._fraction = fraction
        self._tone = tone

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Ground by Qt, then the bar, then the text."""
        row = index.data(ROW_ROLE)
        box = option.rect
        palette: QPalette = option.palette
        theme = theme_for(palette)
        ground = QStyleOptionViewItem(option)
        self.initStyleOption(ground, index)
        ground.text = ""
        widget = ground.widget
        widget.style().drawControl(widget.style().ControlElement.CE_ItemViewItem, ground, painter, widget)
        text = str(index.data())
        room = painter.fontMetrics().horizontalAdvance("64.0 KiB ") + 12
        track = QRectF(box.left() + 10, box.center().y() - 4, max(24, box.width() - room - 22), 9)
        fraction = min(1.0, max(0.0, self._fraction(row)))
        painter.save()
        painter.setClipRect(box)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.border))
        painter.drawRoundedRect(track, 4.5, 4.5)
        if fraction > 0:
            filled = QRectF(track.left(), track.top(), max(9.0, track.width() * fraction), track.height())
            painter.setBrush(QColor(self._tone(row, theme)))
            painter.drawRoundedRect(filled, 4.5, 4.5)
        painter.setPen(QColor(theme.text))
        painter.drawText(
            QRectF(track.right() + 10, box.top(), room, box.height()),
            Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter,
            text,
        )
        painter.restore()
