"""Keys are offered with their help while one is typed, and only there."""

import pytest
from moorage_contract.daemon_config import check
from moorage_gui.settings.completion import KEY_ROLE, offered, typed_key
from moorage_gui.settings.editor import JsonEditor
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractItemView
from pytestqt.qtbot import QtBot

WAIT = 20_000


@pytest.fixture
def editor(qtbot: QtBot) -> JsonEditor:
    made = JsonEditor()
    qtbot.addWidget(made)
    made.resize(700, 400)
    made.show()
    made.setFocus()
    return made


def popup(editor: JsonEditor) -> QAbstractItemView:
    return editor._completer.list


@pytest.mark.parametrize(
    ("before", "key"),
    [
        ('  "deb', "deb"),
        ('{"', ""),
        ('{"debug": true, "dn', "dn"),
        ('  "debug": "tr', None),
        ("  deb", None),
        ('"a"', None),
        ('["x', None),
    ],
)
def test_key_is_told_from_value(before: str, key: str | None) -> None:
    assert typed_key(before) == key


def test_typing_a_key_offers_it_and_enter_puts_it_in_with_a_value(qtbot: QtBot, editor: JsonEditor) -> None:
    QTest.keyClicks(editor, '{"live')
    qtbot.waitUntil(popup(editor).isVisible, timeout=WAIT)
    assert popup(editor).currentIndex().data(KEY_ROLE) == "live-restore"
    assert "Keep containers running" in popup(editor).currentIndex().data(Qt.ItemDataRole.DisplayRole)
    QTest.keyClick(popup(editor), Qt.Key.Key_Return)
    assert editor.toPlainText() == '{"live-restore": false'
    assert editor.textCursor().selectedText() == "false"


def test_escape_closes_the_list_and_leaves_the_text(qtbot: QtBot, editor: JsonEditor) -> None:
    QTest.keyClicks(editor, '{"dns')
    qtbot.waitUntil(popup(editor).isVisible, timeout=WAIT)
    QTest.keyClick(popup(editor), Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: not popup(editor).isVisible(), timeout=WAIT)
    assert editor.toPlainText() == '{"dns'


def test_all_keys_are_offered_when_asked_for(qtbot: QtBot, editor: JsonEditor) -> None:
    QTest.keyClicks(editor, '{"')
    assert not popup(editor).isVisible()
    QTest.keyClick(editor, Qt.Key.Key_Space, Qt.KeyboardModifier.ControlModifier)
    qtbot.waitUntil(popup(editor).isVisible, timeout=WAIT)
    assert editor._completer.completionCount() == len([*offered()])


def test_values_are_left_alone(editor: JsonEditor) -> None:
    QTest.keyClicks(editor, '{"log-level": "deb')
    assert not popup(editor).isVisible()


def test_every_offer_is_a_text_that_has_no_fault() -> None:
    for key, help, value in offered():
        assert help
        assert check(f'{{"{key}": {value}}}') == [] or key == "icc"


def test_list_goes_away_when_the_key_is_closed_by_hand(qtbot: QtBot, editor: JsonEditor) -> None:
    QTest.keyClicks(editor, '{"dns')
    qtbot.waitUntil(popup(editor).isVisible, timeout=WAIT)
    QTest.keyClick(popup(editor), Qt.Key.Key_QuoteDbl, Qt.KeyboardModifier.ShiftModifier)
    qtbot.waitUntil(lambda: not popup(editor).isVisible(), timeout=WAIT)
    assert editor.hasFocus()


def test_key_under_the_mouse_tells_what_it_is_for_and_costs(editor: JsonEditor) -> None:
    editor.setPlainText('{"bip": "debug", "containerd": "x"}')
    cursor = editor.textCursor()
    said = []
    for position in (3, 11, 20):
        cursor.setPosition(position)
        said.append(editor.help_at(cursor))
    assert "IPv4 address of the default bridge" in said[0] and "containers must be stopped" in said[0]
    assert said[1] == "" and "No effect" in said[2]
