"""Small pieces that all pages are made of: titles, chips, cards, banners."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QAction, QKeySequence, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QScrollArea, QSizePolicy, QVBoxLayout, QWidget


def label(text: str = "", role: str = "", *, wrap: bool = False) -> QLabel:
    """A label in one of the style sheet's roles: title, heading, muted, value."""
    made = QLabel(text)
    made.setTextFormat(Qt.TextFormat.PlainText)
    if role:
        made.setProperty("role", role)
    made.setWordWrap(wrap)
    if wrap:
        made.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return made


def restyle(widget: QWidget) -> None:
    """Look the style sheet's rules up again after a property changed."""
    widget.style().unpolish(widget)
    widget.style().polish(widget)


class Chip(QLabel):
    """A word on coloured ground; `tone` is good, warning, bad, info or plain."""

    def __init__(self, text: str = "", tone: str = "plain") -> None:
        super().__init__(text)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Maximum)
        self.setProperty("chip", tone)

    def say(self, text: str, tone: str) -> None:
        """Change word and ground."""
        self.setText(text)
        if self.property("chip") != tone:
            self.setProperty("chip", tone)
            restyle(self)


class Card(QFrame):
    """A framed piece of page with a column of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("card", True)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(14, 12, 14, 12)
        self.column.setSpacing(6)


class Words(QScrollArea):
    """A text that takes as many lines as it needs, up to a limit; one that is longer, or has less room, is scrolled."""

    LEAST, MOST = 40, 132  # pixels

    def __init__(self) -> None:
        super().__init__()
        self.label = label("", wrap=True)
        self.label.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.label.setStyleSheet("background: transparent;")
        policy = QSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.label.setSizePolicy(policy)
        self.label.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.setWidget(self.label)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        self.viewport().setAutoFillBackground(False)
        self._height = 0
        self._fit()

    def say(self, text: str) -> None:
        """Show a text from its beginning."""
        self.label.setText(text)
        self.verticalScrollBar().setValue(0)
        self._fit()

    def sizeHint(self) -> QSize:
        """Room for the whole text, or for as much of it as is shown at once."""
        return QSize(200, self._height)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Another width breaks the text into other lines."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        # The scroll bar's room is taken off always: with and without it the text then has the same number of lines.
        width = max(80, self.width() - self.verticalScrollBar().sizeHint().width())
        needed = max(self.label.heightForWidth(width), self.label.minimumSizeHint().height())
        self._height = min(self.MOST, needed)
        self.setMinimumHeight(min(self.LEAST, self._height))
        self.setMaximumHeight(self._height)
        self.updateGeometry()


class Banner(QFrame):
    """A message over the page that stays until it is closed or replaced. Hidden while there is none."""

    closed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("banner", "info")
        row = QHBoxLayout(self)
        row.setContentsMargins(14, 10, 10, 10)
        texts = QVBoxLayout()
        texts.setSpacing(3)
        self.heading = label("", "heading", wrap=True)
        self._words = Words()
        self._words.setAccessibleName("What happened")
        self.text = self._words.label
        texts.addWidget(self.heading)
        texts.addWidget(self._words)
        row.addLayout(texts, 1)
        self.button = QPushButton("Dismiss")
        self.button.clicked.connect(self.clear)
        row.addWidget(self.button, 0, Qt.AlignmentFlag.AlignTop)
        self.hide()

    @property
    def tone(self) -> str:
        """good, warning, bad or info."""
        return str(self.property("banner"))

    def say(self, tone: str, heading: str, text: str = "") -> None:
        """Show a message; screen readers get it as the banner's description."""
        self.setProperty("banner", tone)
        restyle(self)
        self.heading.setText(heading)
        self._words.say(text)
        self._words.setVisible(bool(text))
        self.setAccessibleName(heading)
        self.setAccessibleDescription(text)
        self.show()

    def clear(self) -> None:
        """Take the message away."""
        if not self.isHidden():
            self.hide()
            self.closed.emit()


class Page(QWidget):
    """A page of the window: title, a line below it, a banner, then what the page is about."""

    def __init__(self, title: str, about: str) -> None:
        super().__init__()
        self.setAccessibleName(title)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(26, 20, 26, 18)
        self.column.setSpacing(10)
        self.head = QHBoxLayout()
        self.head.addWidget(label(title, "title"), 1)
        self.column.addLayout(self.head)
        self.column.addWidget(label(about, "muted", wrap=True))
        self.banner = Banner()
        self.column.addWidget(self.banner)

    def shown(self) -> None:
        """The page has come to the front."""


def button(text: str, help: str = "", *, primary: bool = False, shortcut: str = "") -> QPushButton:
    """A push button; `shortcut` works while the button's page is in front and is told in the tool tip."""
    made = QPushButton(text)
    if primary:
        made.setProperty("primary", True)
    if shortcut:
        action = QAction(made)
        action.setShortcut(QKeySequence(shortcut))
        action.setShortcutContext(Qt.ShortcutContext.WindowShortcut)
        action.triggered.connect(made.click)
        made.addAction(action)
        shown = QKeySequence(shortcut).toString(QKeySequence.SequenceFormat.NativeText)
        help = f"{help} ({shown})" if help else shown
    made.setToolTip(help)
    return made
