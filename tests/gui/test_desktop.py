"""The program's entry in a desktop's menu and its start with the session, as files."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from moorage_gui import desktop
from PySide6.QtSvg import QSvgRenderer

PROGRAM = Path(sys.executable).with_name("moorage")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user without files and without a display."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "QT_", "DISPLAY"))}
    return found | {"HOME": str(tmp_path)}


def run(environment: dict[str, str], choice: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "gui", "--desktop", choice], env=environment, capture_output=True, text=True, timeout=120
    )


def command(path: Path) -> list[str]:
    entry = configparser.ConfigParser(interpolation=None, strict=True)
    entry.read(path, encoding="utf-8")
    section = entry["Desktop Entry"]
    assert (section["type"], section["name"], section["icon"]) == ("Application", "Moorage", "moorage")
    line = section["exec"].replace("\\\\", "\\").replace("%%", "%")
    # the rules for quoted words are those of the shell
    return subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout.splitlines()


def test_entry_is_made_by_the_command_and_taken_back(environment: dict[str, str], tmp_path: Path) -> None:
    places = desktop.places(environment)
    result = run(environment, "autostart")
    assert (result.returncode, "comes with the session" in result.stdout) == (0, True), result.stderr
    gui = str(PROGRAM.with_name("moorage-gui"))
    assert command(places.menu) == [gui, "--page", "containers"]
    assert command(places.autostart) == [gui]
    assert QSvgRenderer(str(places.icon)).isValid() and "Color" not in places.icon.read_text()
    assert run(environment, "off").returncode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_menu_alone_ends_the_start_with_the_session(environment: dict[str, str]) -> None:
    places = desktop.places(environment)
    desktop.enter("autostart", PROGRAM, environment)
    desktop.enter("menu", PROGRAM, environment)
    assert places.menu.exists() and places.icon.exists() and not places.autostart.exists()
    desktop.enter("off", PROGRAM, environment)
    desktop.enter("off", PROGRAM, environment)
    assert not places.menu.exists() and not places.icon.exists()


@pytest.mark.parametrize("name", ["/opt/a b/moorage-gui", '/x/"q"/$HOME/`x`/100%/\\back'])
def test_any_path_is_quoted(environment: dict[str, str], name: str) -> None:
    desktop.enter("autostart", Path(name), environment)
    assert command(desktop.places(environment).autostart) == [name]


def test_folder_in_the_way_is_a_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".local").write_text("in the way")
    result = run(environment, "menu")
    assert result.returncode == 1 and "cannot be written" in result.stderr and "Traceback" not in result.stderr
