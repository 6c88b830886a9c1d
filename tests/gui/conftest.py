"""Widgets without a screen, in front of a backend that answers from memory. Any warning of Qt fails a test."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest
from moorage_gui.bridge import Bridge
from moorage_gui.theme import dress
from moorage_gui.window import MainWindow
from PySide6.QtCore import QEvent
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from tests.support.gui import FakeBackend, FakeEngine, populated


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.qt_log_level_fail("WARNING"))
    # without a window system there is neither an order of windows nor a keyboard to grab
    item.add_marker(pytest.mark.qt_log_ignore("This plugin does not support (raise|grabbing the keyboard)"))


@pytest.fixture
def fakes() -> tuple[FakeBackend, FakeEngine]:
    return populated()


@pytest.fixture
def backend(fakes: tuple[FakeBackend, FakeEngine]) -> FakeBackend:
    return fakes[0]


@pytest.fixture
def engine(fakes: tuple[FakeBackend, FakeEngine]) -> FakeEngine:
    return fakes[1]


@pytest.fixture
def bridge(qapp: QApplication, backend: FakeBackend, engine: FakeEngine) -> Iterator[Bridge]:
    dress(qapp, False)
    made = Bridge(backend, engine)
    yield made
    backend.gate.set()
    made.close()
    made.deleteLater()
    qapp.sendPostedEvents(None, int(QEvent.Type.DeferredDelete.value))


@pytest.fixture
def window(qtbot: QtBot, bridge: Bridge) -> Iterator[MainWindow]:
    """The window, open, with everything loaded."""
    made = MainWindow(bridge)
    qtbot.addWidget(made)
    made.show()
    bridge.begin()
    qtbot.waitUntil(
        lambda: not made.engine.editor.isReadOnly() and bool(bridge.containers) and bool(bridge.pipes), timeout=20_000
    )
    yield made
    made.hide()
