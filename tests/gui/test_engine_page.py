"""The Docker Engine page: faults at their lines, the plan beforehand, Apply, and what a failure leaves."""

import json

import pytest
from moorage_contract.agent import ConfigState, RolledBack
from moorage_contract.daemon_config import set_key
from moorage_gui.settings.engine import FAILED, EnginePage, daemon_words
from moorage_gui.views import Identity, MachineState
from moorage_gui.window import MainWindow
from PySide6.QtCore import Qt
from PySide6.QtGui import QTextCursor
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QScrollArea
from pytestqt.qtbot import QtBot

from tests.support.gui import FILE, FakeBackend, FakeEngine, engine_status

WAIT = 20_000


@pytest.fixture
def page(window: MainWindow) -> EnginePage:
    window.show_page(window.engine)
    return window.engine


def write(qtbot: QtBot, page: EnginePage, text: str) -> None:
    """Put a text in and wait until it has been judged."""
    page.editor.setPlainText(text)
    qtbot.waitUntil(lambda: not page._typing.isActive(), timeout=WAIT)


def apply(qtbot: QtBot, page: EnginePage) -> None:
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)
    with qtbot.waitSignal(page._bridge.applied, timeout=WAIT):
        page.apply.click()


def test_file_in_force_is_shown_and_nothing_is_to_apply(page: EnginePage) -> None:
    assert page.editor.toPlainText() == FILE
    assert not page.apply.isEnabled() and not page.revert.isEnabled()
    assert page.plan_view.currentWidget() is page.plan_view._idle


def test_syntax_error_is_marked_at_its_line_as_one_types(qtbot: QtBot, page: EnginePage) -> None:
    write(qtbot, page, '{\n  "debug": true,,\n}')
    [fault] = page.editor.faults
    assert (fault.line, fault.column) == (2, 17)
    assert any(mark.cursor.blockNumber() == 1 and mark.cursor.hasSelection() for mark in page.editor.extraSelections())
    assert page.plan_view.problems.item(0).text().startswith("Line 2: invalid JSON")
    assert not page.apply.isEnabled()


def test_unknown_mistyped_and_wrong_keys_are_all_marked(qtbot: QtBot, page: EnginePage) -> None:
    write(qtbot, page, '{\n "debug": "yes",\n "live-restor": true,\n "pipe-size": 1,\n "bip": "nonsense"\n}')
    assert [fault.line for fault in page.editor.faults] == [2, 3, 4, 5]
    said = "\n".join(page.plan_view.problems.item(number).text() for number in range(4))
    assert "did you mean" in said and "fixed at 64 KiB" in said and "invalid bip" in said


def test_choosing_a_problem_goes_to_its_place(qtbot: QtBot, page: EnginePage) -> None:
    write(qtbot, page, '{\n "debug": true,\n "dns": 3\n}')
    page.plan_view.problems.itemActivated.emit(page.plan_view.problems.item(0))
    assert page.editor.textCursor().blockNumber() == 2
    assert page.editor.textCursor().positionInBlock() == 8


def test_mark_is_right_behind_characters_outside_of_the_basic_plane(qtbot: QtBot, page: EnginePage) -> None:
    write(qtbot, page, '{"labels": ["anchor=\N{ANCHOR}\N{SAILBOAT}\N{SPOUTING WHALE}"], "debug": 7}')
    [mark] = [mark for mark in page.editor.extraSelections() if mark.cursor.hasSelection()]
    assert mark.cursor.selectedText() == "7"


def test_log_pipe_size_is_a_row_that_cannot_be_edited(page: EnginePage) -> None:
    assert page.pipe_size.text().startswith("64 KiB")
    assert "no setting" in page.pipe_words.text()


@pytest.mark.parametrize(
    ("key", "value", "chip", "containers"),
    [
        ("debug", True, "Reload", "Keep running, untouched: database, web, worker"),
        ("dns", ["1.1.1.1"], "Daemon restart", "Keep running: database, web, worker"),
        ("bip", "10.9.0.1/24", "Containers", "Must be stopped and started to follow: database, web, worker"),
    ],
)
def test_plan_names_cost_and_containers_beforehand(
    qtbot: QtBot, page: EnginePage, key: str, value: object, chip: str, containers: str
) -> None:
    write(qtbot, page, set_key(FILE, key, value))  # type: ignore[arg-type]  # a literal of the table above
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)
    assert page.plan_view.mode.text() == chip
    assert page.plan_view.containers.text() == containers
    assert page.plan_view._grid.itemAtPosition(0, 0).widget().text() == key  # type: ignore[union-attr]  # there is a row


def test_plan_says_that_containers_stop_when_live_restore_is_off(qtbot: QtBot, page: EnginePage) -> None:
    write(qtbot, page, '{"live-restore": false, "dns": ["1.1.1.1"]}')
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)
    assert page.plan_view.containers.text().startswith("Will be stopped")


def test_apply_puts_the_text_in_force_and_proves_that_containers_went_on(
    qtbot: QtBot, page: EnginePage, backend: FakeBackend, window: MainWindow
) -> None:
    text = set_key(FILE, "debug", True)
    write(qtbot, page, text)
    apply(qtbot, page)
    assert backend.text == text and backend.applied == [text]
    assert page.banner.tone == "good" and "3 of 3 containers went on" in page.banner.heading.text()
    assert "PID 700" in page.banner.text.text()
    assert not page.apply.isEnabled()
    assert [item.kept for item in window.restore.proof_model.rows] == [True, True, True]


def test_container_that_did_not_go_on_is_named(
    qtbot: QtBot, page: EnginePage, backend: FakeBackend, engine: FakeEngine
) -> None:
    def lose() -> None:
        engine.who = [
            Identity(item.id, item.name, item.pid + (item.name == "web"), item.started_at) for item in engine.who
        ]

    backend.on_apply = lose
    write(qtbot, page, set_key(FILE, "dns", ["1.1.1.1"]))
    apply(qtbot, page)
    assert page.banner.tone == "warning" and page.banner.text.text().endswith("web")


def test_refused_file_shows_the_daemons_message_and_keeps_the_users_text(
    qtbot: QtBot, page: EnginePage, backend: FakeBackend
) -> None:
    backend.refuse = "failed to start daemon: invalid bip"
    text = set_key(FILE, "bip", "10.9.0.1/24")
    write(qtbot, page, text)
    apply(qtbot, page)
    assert page.banner.tone == "bad"
    assert "previous file is in force again" in page.banner.heading.text()
    assert "failed to start daemon: invalid bip" in page.banner.text.text()
    assert page.editor.toPlainText() == text and backend.text == FILE
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)


def test_long_message_is_scrolled_and_the_editor_keeps_its_place(
    qtbot: QtBot, page: EnginePage, backend: FakeBackend, window: MainWindow
) -> None:
    window.resize(window.minimumSize())
    backend.refuse = "conflicts with another network of this machine. " * 40 + "\nThe last line."
    write(qtbot, page, set_key(FILE, "bip", "10.9.0.1/24"))
    apply(qtbot, page)
    qtbot.waitUntil(lambda: page._bridge.machine is not None and page.banner.isVisible(), timeout=WAIT)
    bar = page.banner.findChild(QScrollArea).verticalScrollBar()  # type: ignore[union-attr]  # it has one
    qtbot.waitUntil(lambda: bar.maximum() > 0, timeout=WAIT)
    assert page.banner.text.text().endswith("The last line.\nYour text is kept here.")
    assert page.banner.height() < window.height() / 3 and page.editor.height() >= 60
    assert page.apply.geometry().bottom() <= page.height()


def test_backend_that_breaks_during_apply_is_said_and_the_text_stays(
    qtbot: QtBot, page: EnginePage, backend: FakeBackend
) -> None:
    text = set_key(FILE, "debug", True)
    write(qtbot, page, text)
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)
    backend.broken = "the backend has gone"
    with qtbot.waitSignal(page._bridge.applied, timeout=WAIT):
        page.apply.click()
    assert page.banner.tone == "bad" and "the backend has gone" in page.banner.text.text()
    assert page.editor.toPlainText() == text


def test_revert_brings_the_file_in_force_back_and_undo_the_text(qtbot: QtBot, page: EnginePage) -> None:
    page.editor.moveCursor(QTextCursor.MoveOperation.End)
    QTest.keyClicks(page.editor, "x")
    qtbot.waitUntil(page.revert.isEnabled, timeout=WAIT)
    page.revert.click()
    assert page.editor.toPlainText() == FILE
    page.editor.undo()
    assert page.editor.toPlainText() == FILE + "x"


def test_keyboard_alone_suffices(qtbot: QtBot, page: EnginePage, backend: FakeBackend) -> None:
    page.editor.setFocus()
    QTest.keyClick(page.editor, Qt.Key.Key_Tab)
    assert not page.editor.hasFocus()
    page.editor.setFocus()
    page.editor.selectAll()
    QTest.keyClicks(page.editor, '{"debug": true}')
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)
    with qtbot.waitSignal(page._bridge.applied, timeout=WAIT):
        QTest.keyClick(page.editor, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
    assert json.loads(backend.text) == {"debug": True}


def test_enter_keeps_the_indentation_and_opens_braces(qtbot: QtBot, page: EnginePage) -> None:
    page.editor.setPlainText("{}")
    page.editor.moveCursor(QTextCursor.MoveOperation.Start)
    page.editor.moveCursor(QTextCursor.MoveOperation.Right)
    QTest.keyClick(page.editor, Qt.Key.Key_Return)
    QTest.keyClicks(page.editor, '"log-opts": {}')
    page.editor.moveCursor(QTextCursor.MoveOperation.Left)
    QTest.keyClick(page.editor, Qt.Key.Key_Return)
    assert page.editor.toPlainText() == '{\n  "log-opts": {\n    \n  }\n}'


def test_window_answers_while_an_apply_takes_its_time(qtbot: QtBot, page: EnginePage, backend: FakeBackend) -> None:
    write(qtbot, page, set_key(FILE, "debug", True))
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)
    backend.gate.clear()
    with qtbot.waitSignal(page._bridge.applied, timeout=WAIT):
        page.apply.click()
        assert not page.apply.isEnabled() and page.hint.text() == "Applying…"
        QTest.keyClicks(page.editor, "abc")
        assert "abc" in page.editor.toPlainText()
        backend.gate.set()
    assert "abc" in page.editor.toPlainText()


def test_editor_works_with_the_machine_off(qtbot: QtBot, page: EnginePage, backend: FakeBackend) -> None:
    backend.state = MachineState.OFF
    qtbot.waitUntil(lambda: page.state.text() == "Machine: off", timeout=WAIT)
    write(qtbot, page, set_key(FILE, "bip", "10.9.0.1/24"))
    qtbot.waitUntil(page.apply.isEnabled, timeout=WAIT)
    assert page.plan_view.mode.text() == "Next start" and not page.plan_view.containers.text()
    apply(qtbot, page)
    assert page.banner.heading.text() == "Saved" and "10.9.0.1/24" in backend.text


def test_engine_down_is_shown_and_the_file_can_still_be_mended(
    qtbot: QtBot, page: EnginePage, backend: FakeBackend
) -> None:
    backend.engine = engine_status("failed", last_error="moored: no space")  # type: ignore[arg-type]  # pydantic reads the word
    qtbot.waitUntil(lambda: page.state.text() == "Engine 26.11.0 failed", timeout=WAIT)
    bar = page.banner.findChild(QScrollArea).verticalScrollBar()  # type: ignore[union-attr]  # it has one
    qtbot.waitUntil(lambda: page.banner.text.height() > 0 and bar.maximum() == 0, timeout=WAIT)
    assert page.banner.isVisible() and (page.banner.heading.text(), page.banner.text.text()) == (FAILED, "no space")
    backend.engine = engine_status()
    qtbot.waitUntil(lambda: not page.banner.isVisible(), timeout=WAIT)
    write(qtbot, page, set_key(FILE, "debug", True))
    apply(qtbot, page)
    assert page.banner.tone == "good"


def test_rollback_that_happened_elsewhere_is_told_once(qtbot: QtBot, page: EnginePage, backend: FakeBackend) -> None:
    status = engine_status()
    backend.engine = status.model_copy(
        update={"config": ConfigState(sha256="1", rolled_back=RolledBack(message="invalid bip", at=5.0))}
    )
    qtbot.waitUntil(page.banner.isVisible, timeout=WAIT)
    assert "invalid bip" in page.banner.text.text()
    page.banner.button.click()
    with qtbot.waitSignal(page._bridge.machine_changed, timeout=WAIT):
        pass
    assert not page.banner.isVisible()


def test_change_by_somebody_else_is_taken_over_unless_there_is_text_of_ones_own(
    qtbot: QtBot, page: EnginePage, backend: FakeBackend
) -> None:
    backend.text = "{}\n"
    page.shown()
    qtbot.waitUntil(lambda: page.editor.toPlainText() == "{}\n", timeout=WAIT)
    write(qtbot, page, '{"debug": true}')
    backend.text = '{"icc": true}'
    with qtbot.waitSignal(page._bridge.config_loaded, timeout=WAIT):
        page.shown()
    assert page.editor.toPlainText() == '{"debug": true}'


def test_daemons_words_are_shown_once_and_without_the_trimmings_of_a_log() -> None:
    said = 'time="2026-11-24T17:50:11.489Z" level=ERROR msg="opening \\"x\\" failed; check seccomp-profile" module=moored\nmoored: opening "x" failed; check seccomp-profile\n'
    assert daemon_words(said) == 'opening "x" failed; check seccomp-profile'
    assert daemon_words("invalid bip") == "invalid bip"
    assert daemon_words('time="x" level=ERROR msg="broken \\q escape" module=m').startswith("time=")
