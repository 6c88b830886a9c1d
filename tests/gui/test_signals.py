"""Emitting does no harm however long the window is open."""

import sys

from moorage_gui.signals import emit
from PySide6.QtCore import QObject, Signal


class Sender(QObject):
    told = Signal(object)


def test_emitting_keeps_the_interpreters_count_of_true() -> None:
    heard: list[object] = []
    sender = Sender()
    sender.told.connect(heard.append)
    before = sys.getrefcount(True)
    for _ in range(5000):
        emit(sender.told, "x")
    assert len(heard) == 5000
    assert abs(sys.getrefcount(True) - before) < 500
