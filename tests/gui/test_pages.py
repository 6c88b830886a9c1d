"""Containers, live restore and resources, as the window shows them."""

from dataclasses import replace

from moorage_contract.agent import PipeFill
from moorage_gui.dashboard.restore import words
from moorage_gui.theme import DARK, LIGHT, dress, theme_for
from moorage_gui.views import MachineState
from moorage_gui.window import MainWindow
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QLineEdit,
    QPlainTextEdit,
    QSlider,
    QSpinBox,
    QTableView,
)
from pytestqt.qtbot import QtBot

from tests.support.gui import FakeBackend, FakeEngine, engine_status

WAIT = 20_000


def choose(window: MainWindow, name: str) -> None:
    page = window.containers
    page.table.selectRow([row.name for row in page.model.rows].index(name))


def test_running_containers_come_first(window: MainWindow) -> None:
    assert [row.name for row in window.containers.model.rows] == ["database", "web", "worker", "migrate"]


def test_log_of_the_chosen_container_is_shown_from_its_end(qtbot: QtBot, window: MainWindow) -> None:
    choose(window, "web")
    qtbot.waitUntil(lambda: "GET /items/119" in window.containers.log.toPlainText(), timeout=WAIT)
    bar = window.containers.log.verticalScrollBar()
    assert bar.value() == bar.maximum()


def test_chosen_container_is_stopped_and_started(qtbot: QtBot, window: MainWindow, engine: FakeEngine) -> None:
    choose(window, "web")
    assert window.containers.stop.isEnabled() and not window.containers.start.isEnabled()
    window.containers.stop.click()
    qtbot.waitUntil(window.containers.start.isEnabled, timeout=WAIT)
    window.containers.start.click()
    qtbot.waitUntil(window.containers.stop.isEnabled, timeout=WAIT)
    assert engine.calls == [f"stop {'a1' * 32}", f"start {'a1' * 32}"]


def test_choice_stays_on_its_container_when_the_list_changes(
    qtbot: QtBot, window: MainWindow, engine: FakeEngine
) -> None:
    choose(window, "web")
    engine.rows = [
        replace(engine.rows[0], status="Up 3 hours"),
        replace(engine.rows[1], name="zebra"),
        *engine.rows[2:],
        replace(engine.rows[2], id="ee", name="aa"),
    ]
    qtbot.waitUntil(lambda: window.containers.model.rows[0].name == "aa", timeout=WAIT)
    assert window.containers.chosen is not None and window.containers.chosen.status == "Up 3 hours"
    [picked] = window.containers.table.selectionModel().selectedRows()
    assert window.containers.model.rows[picked.row()].name == "web"


def test_container_that_goes_away_takes_the_choice_with_it(
    qtbot: QtBot, window: MainWindow, engine: FakeEngine
) -> None:
    choose(window, "web")
    engine.rows = engine.rows[1:]
    qtbot.waitUntil(lambda: window.containers.chosen is None and not window.containers.stop.isEnabled(), timeout=WAIT)


def test_search_narrows_the_list_by_name_and_image(window: MainWindow) -> None:
    window.containers.search.setText("postgres data")
    assert [row.name for row in window.containers.model.rows] == ["database"]
    window.containers.search.setText("nothing like it")
    assert window.containers.empty.text() == "No container matches the search."


def test_machine_off_empties_the_list_with_a_word_on_it(qtbot: QtBot, window: MainWindow, backend: FakeBackend) -> None:
    backend.state = MachineState.OFF
    qtbot.waitUntil(lambda: not window.containers.model.rows and not window.restore.model.rows, timeout=WAIT)
    assert "not running" in window.containers.empty.text() and "not running" in window.restore.empty.text()


def test_pipes_show_fill_rate_time_and_who_is_blocked(window: MainWindow) -> None:
    window.show_page(window.restore)
    model = window.restore.model
    shown = [[model.data(model.index(row, column)) for column in range(6)] for row in range(model.rowCount())]
    assert shown[0] == ["worker", "stdout", "64.0 KiB", "0 B/s", "full", "Blocked: pipe full"]
    assert ["database", "stderr", "50.8 KiB", "2.0 KiB/s", "7 s", "Nearly full"] in shown
    assert window.restore.waiting.more.text() == "1 blocked: worker"


def test_every_state_of_a_pipe_has_words() -> None:
    def pipe(count: int, blocked: bool = False) -> PipeFill:
        return PipeFill(container="a", stream="stdout", bytes=count, capacity=65536, blocked=blocked)

    assert [words(pipe(0)), words(pipe(100)), words(pipe(60000)), words(pipe(65536, True))] == [
        "Flowing",
        "Filling",
        "Nearly full",
        "Blocked: pipe full",
    ]


def test_daemon_card_follows_the_daemon(qtbot: QtBot, window: MainWindow, backend: FakeBackend) -> None:
    assert window.restore.daemon.more.text() == "PID 412, for 6 min, 1 restart"
    backend.engine = engine_status("starting", pid=None, restarts=2, since=None)  # type: ignore[arg-type]  # pydantic reads the word
    qtbot.waitUntil(lambda: window.restore.daemon.value.text() == "Starting", timeout=WAIT)
    assert window.restore.daemon.more.text() == "2 restarts"
    assert window.restore.model.rowCount() == 6


def test_daemon_is_restarted_with_proof_that_containers_went_on(
    qtbot: QtBot, window: MainWindow, backend: FakeBackend
) -> None:
    window.show_page(window.restore)
    qtbot.waitUntil(window.restore.restart.isEnabled, timeout=WAIT)
    window.restore.restart.click()
    qtbot.waitUntil(window.restore.banner.isVisible, timeout=WAIT)
    assert window.restore.banner.tone == "good" and "3 of 3" in window.restore.banner.heading.text()
    assert [item.kept for item in window.restore.proof_model.rows] == [True] * 3
    assert "daemon" in backend.calls


def test_container_lost_over_a_restart_is_named(
    qtbot: QtBot, window: MainWindow, backend: FakeBackend, engine: FakeEngine
) -> None:
    backend.on_apply = lambda: engine.who.pop(0)
    window.show_page(window.restore)
    qtbot.waitUntil(window.restore.restart.isEnabled, timeout=WAIT)
    window.restore.restart.click()
    qtbot.waitUntil(window.restore.banner.isVisible, timeout=WAIT)
    assert window.restore.banner.tone == "warning" and window.restore.banner.text.text() == "web"


def test_live_restore_card_reads_the_file(qtbot: QtBot, window: MainWindow, backend: FakeBackend) -> None:
    assert window.restore.setting.value.text() == "On"
    backend.text = '{"live-restore": false}'
    window.engine.shown()
    qtbot.waitUntil(lambda: window.restore.setting.value.text() == "Off", timeout=WAIT)


def test_resources_are_saved_and_the_restart_is_offered_not_made(
    qtbot: QtBot, window: MainWindow, backend: FakeBackend
) -> None:
    window.show_page(window.general)
    page = window.general
    qtbot.waitUntil(lambda: page.cpus.field.maximum() == 8, timeout=WAIT)
    assert not page.save.isEnabled()
    page.cpus.slider.setValue(4)
    page.memory.field.setValue(4096)
    assert page.save.isEnabled() and page.memory.slider.value() == 16
    page.saved_start.click()
    with qtbot.waitSignal(window._bridge.settings_saved, timeout=WAIT):
        page.save.click()
    assert (backend.stored.cpus, backend.stored.memory_mib, backend.stored.disk_gib) == (4, 4096, 32)
    assert not backend.stored.saved_start
    assert page.banner.isVisible() and "Restart the machine" in page.banner.text.text()
    assert "restart" not in backend.calls
    page.restart.click()
    qtbot.waitUntil(lambda: "restart" in backend.calls, timeout=WAIT)


def test_another_host_is_named_and_an_empty_field_is_this_one(
    qtbot: QtBot, window: MainWindow, backend: FakeBackend
) -> None:
    window.show_page(window.general)
    page = window.general
    qtbot.waitUntil(lambda: page.cpus.field.maximum() == 8, timeout=WAIT)
    for typed, stored in ((" qemu+ssh://me@box/system", "qemu+ssh://me@box/system"), ("", "auto")):
        page.host.setText(typed)
        page.save.click()
        qtbot.waitUntil(lambda wanted=stored: page._stored.libvirt_uri == wanted, timeout=WAIT)  # type: ignore[misc]
        assert backend.stored.libvirt_uri == stored
        assert not page.save.isEnabled()


def test_disk_is_never_offered_smaller(window: MainWindow) -> None:
    assert window.general.disk.field.minimum() == 32


def test_failure_becomes_a_banner_and_the_window_goes_on(
    qtbot: QtBot, window: MainWindow, backend: FakeBackend
) -> None:
    backend.state = MachineState.OFF
    qtbot.waitUntil(lambda: window.power.text() == "Start machine", timeout=WAIT)
    backend.broken = "no space left for the data disk"
    window.power.click()
    qtbot.waitUntil(window.containers.banner.isVisible, timeout=WAIT)
    assert "no space left for the data disk" in window.containers.banner.text.text()
    backend.broken = ""
    qtbot.waitUntil(lambda: window.machine.text() == "Off", timeout=WAIT)


def test_backend_that_does_not_answer_is_shown_as_such(qtbot: QtBot, window: MainWindow, backend: FakeBackend) -> None:
    backend.broken = "connection refused"
    qtbot.waitUntil(lambda: window.machine.text() == "Backend silent", timeout=WAIT)
    qtbot.waitUntil(lambda: "does not answer" in window.containers.empty.text(), timeout=WAIT)
    assert window.machine.sizeHint().width() <= window.machine.width()
    assert window.power.isEnabled()


def test_window_answers_while_the_backend_hangs(qtbot: QtBot, window: MainWindow, backend: FakeBackend) -> None:
    backend.gate.clear()
    window.power.click()
    assert window.machine.text() == "Stopping…"
    for number in range(4):
        window.navigation.setCurrentRow(number)
        assert window.stack.currentIndex() == number
    backend.gate.set()
    qtbot.waitUntil(lambda: window.machine.text() == "Off", timeout=WAIT)


def test_pages_are_reached_by_keys(qtbot: QtBot, window: MainWindow) -> None:
    window.activateWindow()
    for number in range(4):
        QTest.keyClick(window, Qt.Key(Qt.Key.Key_1 + number), Qt.KeyboardModifier.ControlModifier)
        assert window.stack.currentIndex() == number


def test_every_control_has_a_name_for_screen_readers(window: MainWindow) -> None:
    nameless = []
    for kind in (QAbstractButton, QLineEdit, QPlainTextEdit, QSlider, QSpinBox, QTableView):
        for widget in window.findChildren(kind):
            inner = widget.objectName().startswith("qt_") or isinstance(
                widget.parent(), QSpinBox | QTableView | QLineEdit
            )
            name = widget.text() if isinstance(widget, QAbstractButton) else ""
            if not inner and not (widget.accessibleName() or name):
                nameless.append(widget)
    assert not nameless


def test_theme_follows_light_and_dark(qtbot: QtBot, qapp: QApplication, window: MainWindow) -> None:
    assert theme_for(window.palette()) is LIGHT
    dress(qapp, True)
    try:
        qtbot.waitUntil(lambda: theme_for(window.engine.editor.palette()) is DARK, timeout=WAIT)
        for number in range(4):
            window.navigation.setCurrentRow(number)
            assert not window.grab().isNull()
    finally:
        dress(qapp, False)


def test_every_page_fits_the_least_size(window: MainWindow) -> None:
    window.resize(window.minimumSize())
    for number in range(4):
        window.navigation.setCurrentRow(number)
        page = window.stack.currentWidget()
        assert page is not None
        assert page.minimumSizeHint().width() <= page.width() and page.minimumSizeHint().height() <= page.height()
