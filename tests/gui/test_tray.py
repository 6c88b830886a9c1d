"""The tray's menu fits the machine's state."""

from collections.abc import Iterator

import pytest
from moorage_gui.bridge import Bridge
from moorage_gui.tray import Tray
from moorage_gui.views import MachineState
from pytestqt.qtbot import QtBot

from tests.support.gui import FakeBackend

WAIT = 20_000


@pytest.fixture
def tray(bridge: Bridge) -> Iterator[Tray]:
    made = Tray(bridge)
    yield made
    made.close()


def look(qtbot: QtBot, bridge: Bridge, state: MachineState) -> None:
    """Ask for the machine until it is seen in a state."""

    def seen() -> bool:
        bridge.refresh()
        return bridge.machine.state is state

    qtbot.waitUntil(seen, timeout=WAIT)


def shown(tray: Tray) -> list[str]:
    return [
        action.text()
        for action in tray.menu.actions()
        if action.isVisible() and action.isEnabled() and not action.isSeparator()
    ]


def test_running_machine_can_be_stopped_and_restarted(qtbot: QtBot, bridge: Bridge, tray: Tray) -> None:
    look(qtbot, bridge, MachineState.RUNNING)
    assert shown(tray) == ["Stop", "Restart", "Containers…", "Settings…", "Quit Moorage"]
    assert tray.state.text() == "Machine: running" and tray.engine.text() == "Engine running"
    assert "Running" in tray.icon.toolTip()


def test_machine_that_is_off_can_be_started(qtbot: QtBot, bridge: Bridge, tray: Tray, backend: FakeBackend) -> None:
    backend.state = MachineState.OFF
    look(qtbot, bridge, MachineState.OFF)
    assert shown(tray)[0] == "Start" and "Stop" not in shown(tray)
    tray.start.trigger()
    assert tray.state.text() == "Machine: starting…" and "Start" not in shown(tray)
    look(qtbot, bridge, MachineState.RUNNING)
    assert tray.state.text() == "Machine: running"
    assert "start" in backend.calls


def test_icon_differs_by_state(qtbot: QtBot, bridge: Bridge, tray: Tray, backend: FakeBackend) -> None:
    images = {}
    for state in (MachineState.RUNNING, MachineState.OFF, MachineState.FAILED, MachineState.STARTING):
        backend.state = state
        look(qtbot, bridge, state)
        picture = tray.icon.icon().pixmap(32, 32).toImage()
        images[state] = bytes(picture.constBits())
    assert len(set(images.values())) == 4


def test_menu_asks_for_windows_and_the_end(qtbot: QtBot, tray: Tray) -> None:
    for action, asked in (
        (tray.containers, tray.containers_wanted),
        (tray.settings, tray.settings_wanted),
        (tray.quit, tray.quit_wanted),
    ):
        with qtbot.waitSignal(asked, timeout=WAIT):
            action.trigger()
