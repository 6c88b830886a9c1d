"""A text field for JSON with line numbers, colours, and faults marked where they are. What a fault is, others decide."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moorage_contract.daemon_config import Fault
from PySide6.QtCore import QEvent, QPoint, QRect, QSize, Qt
from PySide6.QtGui import (
    QColor,
    QHelpEvent,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QResizeEvent,
    QTextBlock,
    QTextCharFormat,
    QTextCursor,
    QTextFormat,
)
from PySide6.QtWidgets import QPlainTextEdit, QTextEdit, QToolTip, QWidget

from moorage_gui.settings.completion import KEY_ROLE, KeyCompleter, help_for, typed_key
from moorage_gui.settings.highlighter import JsonHighlighter
from moorage_gui.theme import monospace, theme_for

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\w.+-]+|.')
_KEY = re.compile(r'(?P<quoted>"(?P<key>[^"\\]*)")\s*:')
_INDENT = "  "
_POPUP_KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Tab, Qt.Key.Key_Backtab, Qt.Key.Key_Escape)


def utf16(text: str) -> int:
    """Length as Qt counts it."""
    return len(text.encode("utf-16-le")) // 2


class Gutter(QWidget):
    """The strip with line numbers; a dot marks a line with a fault."""

    def __init__(self, editor: JsonEditor) -> None:
        super().__init__(editor)
        self._editor = editor
        self.setCursor(Qt.CursorShape.ArrowCursor)

    def sizeHint(self) -> QSize:
        """As wide as the last number needs."""
        return QSize(self._editor.gutter_width(), 0)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Paint the numbers of the lines in sight."""
        self._editor.paint_gutter(self, event.rect())

    def event(self, event: QEvent) -> bool:
        """Show a line's faults when the mouse rests on it."""
        if isinstance(event, QHelpEvent):
            block = self._editor.cursorForPosition(QPoint(0, event.pos().y())).block()
            self._editor.tell_faults(block.blockNumber() + 1, event.globalPos())
            return True
        return super().event(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Put the caret into the line."""
        self._editor.setTextCursor(self._editor.cursorForPosition(QPoint(0, int(event.position().y()))))
        self._editor.setFocus()


class JsonEditor(QPlainTextEdit):
    """Tab moves on to the next control, as everywhere else; Enter keeps the indentation and opens braces."""

    def __init__(self) -> None:
        super().__init__()
        self._faults: tuple[Fault, ...] = ()
        self._gutter = Gutter(self)
        self.setFont(monospace(10.5))
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setTabChangesFocus(True)
        self.setAccessibleName("daemon.json")
        self.setAccessibleDescription("Configuration of the daemon as JSON")
        self._highlighter = JsonHighlighter(self.document(), theme_for(self.palette()))
        self._completer = KeyCompleter(self)
        self._completer.setWidget(self)
        self._completer.list.setFont(monospace(9.5))
        self._completer.list.setAccessibleName("Keys of daemon.json")
        self._completer.chosen.connect(self._complete)
        self.blockCountChanged.connect(self._fit)
        self.updateRequest.connect(self._scrolled)
        self.cursorPositionChanged.connect(self._mark)
        self._fit()
        self._mark()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is marked."""
        return self._faults

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Mark these and no others."""
        self._faults = tuple(faults)
        self._mark()
        self._gutter.update()

    def show_fault(self, fault: Fault) -> None:
        """Put the caret at a fault and go there."""
        cursor = self._cursor_at(fault.line, fault.column)
        if cursor is not None:
            cursor.setPosition(cursor.selectionStart())
            self.setTextCursor(cursor)
            self.centerCursor()
        self.setFocus(Qt.FocusReason.OtherFocusReason)

    def replace_text(self, text: str) -> None:
        """Put another text in, so that undo brings the one before back."""
        cursor = QTextCursor(self.document())
        cursor.select(QTextCursor.SelectionType.Document)
        cursor.insertText(text)
        cursor.movePosition(QTextCursor.MoveOperation.Start)
        self.setTextCursor(cursor)

    def tell_faults(self, line: int, where: QPoint) -> bool:
        """Show a line's faults in a tool tip; False when it has none."""
        texts = [fault.message for fault in self._faults if fault.line == line]
        QToolTip.showText(where, "\n".join(texts), self)  # no text hides what was shown
        return bool(texts)

    def help_at(self, cursor: QTextCursor) -> str:
        """The help of the key in which a cursor stands; empty elsewhere."""
        for match in _KEY.finditer(cursor.block().text()):
            if match.start() <= cursor.positionInBlock() <= match.end("quoted"):
                return help_for(match.group("key"))
        return ""

    def gutter_width(self) -> int:
        """In pixels: dot, number, margins."""
        digits = max(2, len(str(self.blockCount())))
        return 26 + self.fontMetrics().horizontalAdvance("9") * digits

    def paint_gutter(self, gutter: QWidget, area: QRect) -> None:
        """Called by the gutter when it is to paint itself."""
        theme = theme_for(self.palette())
        painter = QPainter(gutter)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(area, QColor(theme.sunken))
        painter.setFont(self.font())
        wrong = {fault.line for fault in self._faults}
        here = self.textCursor().blockNumber()
        height = self.fontMetrics().height()
        block = self.firstVisibleBlock()
        while block.isValid():
            top = self.blockBoundingGeometry(block).translated(self.contentOffset()).top()
            if top > area.bottom():
                break
            number = block.blockNumber()
            if block.isVisible():
                row = QRect(0, round(top), gutter.width() - 8, height)
                colour = theme.bad if number + 1 in wrong else theme.text if number == here else theme.muted
                painter.setPen(QColor(colour))
                painter.drawText(row, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, str(number + 1))
                if number + 1 in wrong:
                    painter.setPen(Qt.PenStyle.NoPen)
                    painter.setBrush(QColor(theme.bad))
                    painter.drawEllipse(QPoint(9, round(top) + height // 2), 3, 3)
            block = block.next()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Keep the gutter at the left edge."""
        super().resizeEvent(event)
        inside = self.contentsRect()
        self._gutter.setGeometry(QRect(inside.left(), inside.top(), self.gutter_width(), inside.height()))

    def changeEvent(self, event: QEvent) -> None:
        """Change colours with the theme."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange) and hasattr(self, "_highlighter"):
            self._highlighter.wear(theme_for(self.palette()))
            self._mark()

    def event(self, event: QEvent) -> bool:
        """Show the faults of the line on which the mouse rests, or the help of its key."""
        if isinstance(event, QHelpEvent) and event.type() is QEvent.Type.ToolTip:
            cursor = self.cursorForPosition(self.viewport().mapFrom(self, event.pos()))
            if not self.tell_faults(cursor.blockNumber() + 1, event.globalPos()):
                QToolTip.showText(event.globalPos(), self.help_at(cursor), self)
            return True
        return super().event(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter keeps the indentation; between braces it opens them. Ctrl+Space offers keys, as does typing one."""
        plain = event.modifiers() in (Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.KeypadModifier)
        popup = self._completer.list
        if popup.isVisible() and event.key() in _POPUP_KEYS:
            event.ignore()  # the list of keys takes it
            return
        if event.key() == Qt.Key.Key_Space and event.modifiers() == Qt.KeyboardModifier.ControlModifier:
            self._offer(asked=True)
            return
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and plain:
            self._new_line()
            return
        super().keyPressEvent(event)
        command = (
            Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier | Qt.KeyboardModifier.MetaModifier
        )
        if (event.text() and event.text().isprintable() and not event.modifiers() & command) or popup.isVisible():
            self._offer(asked=False)

    def _before_caret(self) -> str:
        cursor = self.textCursor()
        line = QTextCursor(cursor)
        line.movePosition(QTextCursor.MoveOperation.StartOfBlock, QTextCursor.MoveMode.KeepAnchor)
        return line.selectedText()

    def _offer(self, *, asked: bool) -> None:
        """Show the keys that fit what stands before the caret; unasked only once a letter of a key is there."""
        key = typed_key(self._before_caret())
        popup = self._completer.list
        if self.isReadOnly() or key is None or (not key and not asked):
            popup.hide()
            return
        self._completer.setCompletionPrefix(key)
        if self._completer.completionCount() == 0 or (
            self._completer.completionCount() == 1 and self._completer.currentIndex().data(KEY_ROLE) == key
        ):
            popup.hide()
            return
        popup.setCurrentIndex(self._completer.completionModel().index(0, 0))
        area = self.cursorRect()
        area.translate(self.gutter_width(), 0)
        area.setWidth(min(max(popup.sizeHintForColumn(0) + 30, 320), self.width() - self.gutter_width()))
        self._completer.complete(area)

    def _complete(self, key: str) -> None:
        """Put the chosen key in, with a value to begin with selected."""
        typed = typed_key(self._before_caret()) or ""
        cursor = self.textCursor()
        cursor.beginEditBlock()
        cursor.movePosition(QTextCursor.MoveOperation.Left, QTextCursor.MoveMode.KeepAnchor, len(typed))
        cursor.insertText(f'{key}"')
        rest = cursor.block().text()[cursor.positionInBlock() :]
        if rest.startswith('"'):
            cursor.deleteChar()
            rest = rest[1:]
        if not rest.lstrip().startswith(":"):
            value = self._completer.sample_for(key)
            cursor.insertText(f": {value}")
            cursor.movePosition(QTextCursor.MoveOperation.Left, QTextCursor.MoveMode.KeepAnchor, len(value))
        cursor.endEditBlock()
        self.setTextCursor(cursor)

    def _new_line(self) -> None:
        cursor = self.textCursor()
        line = cursor.block().text()
        before, after = line[: cursor.positionInBlock()].rstrip(), line[cursor.positionInBlock() :].lstrip()
        indent = line[: len(line) - len(line.lstrip())]
        opened = before.endswith(("{", "["))
        cursor.beginEditBlock()
        cursor.insertText("\n" + indent + (_INDENT if opened else ""))
        if opened and after.startswith(("}", "]")):
            place = cursor.position()
            cursor.insertText("\n" + indent)
            cursor.setPosition(place)
        cursor.endEditBlock()
        self.setTextCursor(cursor)
        self.ensureCursorVisible()

    def _cursor_at(self, line: int, column: int) -> QTextCursor | None:
        """A cursor over the token that begins there; None outside of the text."""
        block: QTextBlock = self.document().findBlockByNumber(line - 1)
        if line < 1 or not block.isValid():
            return None
        text = block.text()
        start = min(column - 1, max(0, len(text) - 1))
        token = _TOKEN.match(text, start)
        end = token.end() if token else len(text)
        cursor = QTextCursor(block)
        cursor.setPosition(block.position() + utf16(text[:start]))
        cursor.setPosition(block.position() + utf16(text[:end]), QTextCursor.MoveMode.KeepAnchor)
        return cursor

    def _mark(self) -> None:
        theme = theme_for(self.palette())
        here = QTextEdit.ExtraSelection()
        here.format.setBackground(QColor(theme.sunken))
        here.format.setProperty(QTextFormat.Property.FullWidthSelection, True)
        here.cursor = self.textCursor()
        here.cursor.clearSelection()
        marks = [here]
        for fault in self._faults:
            cursor = self._cursor_at(fault.line, fault.column)
            if cursor is not None:
                mark = QTextEdit.ExtraSelection()
                mark.cursor = cursor
                mark.format.setUnderlineStyle(QTextCharFormat.UnderlineStyle.WaveUnderline)
                mark.format.setUnderlineColor(QColor(theme.bad))
                mark.format.setBackground(QColor(theme.bad_soft))
                marks.append(mark)
        self.setExtraSelections(marks)
        self._gutter.update()

    def _fit(self) -> None:
        self.setViewportMargins(self.gutter_width(), 0, 0, 0)

    def _scrolled(self, area: QRect, pixels: int) -> None:
        if pixels:
            self._gutter.scroll(0, pixels)
        else:
            self._gutter.update(0, area.y(), self._gutter.width(), area.height())
