"""The Qt library and this Python get along: PySide 6.12 gives references away that it does not own, which ends a Python 3.11 process."""

import sys

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QLabel
from pytestqt.qtbot import QtBot

CALLS = 3000


class Sender(QObject):
    told = Signal(object)


def test_calls_into_qt_keep_the_interpreters_counts(qtbot: QtBot) -> None:
    label = QLabel()
    qtbot.addWidget(label)
    heard: list[object] = []
    sender = Sender()
    sender.told.connect(heard.append)
    before = (sys.getrefcount(None), sys.getrefcount(True))
    for _ in range(CALLS):
        label.setText("x")
        sender.told.emit("x")
    after = (sys.getrefcount(None), sys.getrefcount(True))
    assert len(heard) == CALLS
    assert all(abs(now - then) < CALLS / 2 for then, now in zip(before, after, strict=True))
