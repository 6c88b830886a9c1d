"""The program as a process: one for each user, ends when told to, says so where it cannot start."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_gui.app import display_missing
from moorage_gui.single import Doorbell, ask_running, server_name
from moorage_host.client import Client
from moorage_host.paths import user_paths
from pytestqt.qtbot import QtBot

WAIT = 20_000
PROGRAM = str(Path(sys.executable).with_name("moorage-gui"))


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A user of its own, whose backend is ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="gui-") as home:
        found = os.environ | {
            "HOME": home,
            "QT_QPA_PLATFORM": "offscreen",
            "DOCKER_CONFIG": f"{home}/k",
            "TMPDIR": home,
        }
        found |= {"XDG_STATE_HOME": f"{home}/s", "XDG_CONFIG_HOME": f"{home}/c", "XDG_DATA_HOME": f"{home}/d"}
        yield found
        Client(user_paths(found), start_backend=False).stop_backend()


def test_second_start_rings_at_the_first(qtbot: QtBot) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = server_name(Path(folder))
        assert not ask_running(name, "engine")
        door = Doorbell(name)
        assert door.listening
        with qtbot.waitSignal(door.rung, timeout=WAIT) as heard:
            assert ask_running(name, "engine")
        assert heard.args == ["engine"]
        door.close()
        assert not ask_running(name, "engine")


def test_socket_left_by_a_killed_program_is_taken_over(qtbot: QtBot) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = server_name(Path(folder))
        code = f"import os; from PySide6.QtCore import QCoreApplication; from moorage_gui.single import Doorbell; a = QCoreApplication([]); d = Doorbell({name!r}); os._exit(0)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
        door = Doorbell(name)
        assert door.listening
        with qtbot.waitSignal(door.rung, timeout=WAIT):
            assert ask_running(name, "containers")
        door.close()


def test_program_ends_at_a_signal_and_a_second_start_leaves_it_alone(environment: dict[str, str]) -> None:
    with subprocess.Popen([PROGRAM, "--page", "engine"], env=environment, stderr=subprocess.PIPE, text=True) as first:
        try:
            client = Client(user_paths(environment), start_backend=False)
            for _ in range(600):
                if client.paths.backend_socket.exists():
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    first.wait(0.1)
            second = subprocess.run(
                [PROGRAM, "--page", "general"], env=environment, capture_output=True, text=True, timeout=120
            )
            assert second.returncode == 0 and not second.stderr
            assert first.poll() is None
            first.send_signal(signal.SIGTERM)
            _, said = first.communicate(timeout=120)
        finally:
            first.kill()
    assert first.returncode == 0
    assert "Traceback" not in said and "QThread" not in said


def test_missing_display_is_a_sentence_not_an_abort(environment: dict[str, str]) -> None:
    bare = {
        name: value
        for name, value in environment.items()
        if name not in ("QT_QPA_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")
    }
    done = subprocess.run([PROGRAM], env=bare, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no display" in done.stderr
    assert not display_missing({"WAYLAND_DISPLAY": "wayland-0"}, "linux") and not display_missing({}, "darwin")
