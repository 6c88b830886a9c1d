"""The graphical program: builds its objects once, shows tray or window, and ends when told to."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PySide6.QtCore import QEvent, QTimer
from PySide6.QtWidgets import QApplication

from moorage_gui import desktop
from moorage_gui.bridge import Backend, Bridge, Engine
from moorage_gui.control import HostBackend
from moorage_gui.engine import DockerEngine
from moorage_gui.single import Doorbell, ask_running, server_name
from moorage_gui.theme import follow_system
from moorage_gui.tray import Tray
from moorage_gui.window import MainWindow

PAGES = ("containers", "restore", "general", "engine")
_SIGNAL_MS = 250


class Program:
    """Bridge, window and tray, wired. Make it after the QApplication and close it before that ends."""

    def __init__(self, app: QApplication, backend: Backend, engine: Engine) -> None:
        self._app = app
        self.bridge = Bridge(backend, engine)
        self.window = MainWindow(self.bridge)
        self.tray = Tray(self.bridge)
        self.tray.containers_wanted.connect(lambda: self.window.show_page(self.window.containers))
        self.tray.settings_wanted.connect(lambda: self.window.show_page(self.window.engine))
        self.tray.quit_wanted.connect(app.quit)

    def begin(self, page: str | None) -> None:
        """Show the tray, and the window where there is no tray or a page was asked for."""
        in_tray = self.tray.show()
        self._app.setQuitOnLastWindowClosed(not in_tray)
        self.bridge.begin()
        if page is not None or not in_tray:
            self.show(page or PAGES[0])
        else:
            self.bridge.set_watched(False)

    def show(self, page: str) -> None:
        """Bring a page to the front; a name that is none means the containers."""
        self.window.show_page(getattr(self.window, page if page in PAGES else PAGES[0]))

    def close(self) -> bool:
        """Take everything away and end the threads; widgets must not outlive the QApplication. The machine runs on.

        False when a thread is left behind in a call that does not end: the process must then end without tidying up.
        """
        self.tray.close()
        self.window.hide()
        ended = self.bridge.close()
        if ended:
            self.window.deleteLater()
            self.bridge.deleteLater()
            self._app.sendPostedEvents(None, int(QEvent.Type.DeferredDelete.value))
        return ended


def application(arguments: Sequence[str]) -> QApplication:
    """The QApplication, dressed; there can be one in a process."""
    QApplication.setApplicationName("moorage")
    QApplication.setApplicationDisplayName("Moorage")
    QApplication.setDesktopFileName("moorage")
    app = QApplication(list(arguments))
    follow_system(app)
    return app


def run(backend: Backend, engine: Engine, name: str, page: str | None = None) -> int:
    """Run until the user quits, or until SIGINT or SIGTERM; returns the exit code.

    Where the program runs already under `name`, its window comes to the front and this returns at once.
    """
    app = application(sys.argv[:1])
    if ask_running(name, page or PAGES[0]):
        return 0
    program = Program(app, backend, engine)
    door = Doorbell(name)
    door.rung.connect(program.show)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: app.quit())
    # Python sees a signal only when the interpreter runs, which Qt's loop would keep it from doing.
    ticking = QTimer()
    ticking.timeout.connect(lambda: None)
    ticking.start(_SIGNAL_MS)
    program.begin(page)
    code = app.exec()
    door.close()
    if not program.close():
        logging.shutdown()
        os._exit(code)
    engine.close()
    return code


def display_missing(environ: Mapping[str, str], platform: str) -> bool:
    """Whether there is no screen to draw on, which Qt would answer by aborting."""
    return platform == "linux" and not any(
        environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    )


def enter_desktop(choice: str) -> int:
    """The option --desktop: 0 when done, 1 with the reason when not."""
    if sys.platform != "linux":
        sys.stderr.write("moorage-gui: --desktop is for Linux desktops; use your system's own settings\n")
        return 1
    try:
        said = desktop.enter(choice, Path(sys.argv[0]).absolute(), os.environ)
    except OSError as error:
        sys.stderr.write(f"moorage-gui: {error.filename} cannot be written: {error.strerror}; is the folder yours?\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="moorage-gui", description="Tray icon and settings window of Moorage.")
    made.add_argument("--page", choices=PAGES, help="open the window on this page at once")
    made.add_argument(
        "--desktop",
        choices=desktop.CHOICES,
        help="enter the program into the desktop's menu, start its tray icon with the session too, or take both back; then end",
    )
    made.add_argument("--debug", action="store_true", help="log to standard error")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `moorage-gui`."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.WARNING)
    if options.desktop is not None:
        return enter_desktop(options.desktop)
    if display_missing(os.environ, sys.platform):
        sys.stderr.write(
            "moorage-gui: there is no display; start it in a desktop session, or use the moorage command\n"
        )
        return 1
    backend = HostBackend()
    return run(backend, DockerEngine(backend.docker_socket), server_name(backend.state_folder), options.page)
