"""The real window in a process of its own, driven as a person would: types a daemon.json, applies it, says what the window shows.

Run as `python -m tests.support.window_driver FILE PICTURE`; prints one JSON object. Needs a display and the user's folders in
the environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from moorage_gui import app as program
from moorage_gui.control import HostBackend
from moorage_gui.engine import DockerEngine
from moorage_gui.views import ApplyOutcome, MachineState
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

DEADLINE_S = 180


def wait(reached: Callable[[], bool], what: str) -> None:
    """Let the window live until something is so."""
    end = time.monotonic() + DEADLINE_S
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {DEADLINE_S} s")
        QTest.qWait(20)


def drive(text: str, picture: Path, *, faulty: bool) -> dict[str, object]:
    """Type `text` over what is there, apply it, take a picture. One that is `faulty` should not get as far as that."""
    application = program.application(sys.argv[:1])
    backend = HostBackend()
    engine = DockerEngine(backend.docker_socket)
    running = program.Program(application, backend, engine)
    outcomes: list[ApplyOutcome] = []
    begun: list[bool] = []
    try:
        running.begin("engine")
        window, page = running.window, running.window.engine
        running.bridge.applied.connect(outcomes.append)
        wait(lambda: not page.editor.isReadOnly(), "reading daemon.json")
        wait(
            lambda: running.bridge.machine.state is MachineState.RUNNING and running.bridge.machine.engine is not None,
            "seeing the machine run",
        )
        before = page.editor.toPlainText()
        page.editor.setFocus()
        page.editor.selectAll()
        QTest.keyClicks(page.editor, text)
        if faulty:
            wait(lambda: not page._typing.isActive() and bool(page.editor.faults), "the faults")
            running.bridge.apply_started.connect(lambda: begun.append(True))
            QTest.keyClick(page.editor, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
            QTest.mouseClick(page.apply, Qt.MouseButton.LeftButton)
            window.grab().save(str(picture))
            return {"faults": [fault.message for fault in page.editor.faults], "begun": bool(begun)}
        wait(page.apply.isEnabled, "the plan")
        plan = {"mode": page.plan_view.mode.text(), "sentence": page.plan_view.sentence.text()}
        QTest.keyClick(page.editor, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
        wait(lambda: bool(outcomes), "the answer to Apply")
        wait(lambda: not page.banner.isHidden(), "the banner")
        window.grab().save(str(picture))
        return {
            "before": before,
            "plan": plan,
            "tone": page.banner.tone,
            "heading": page.banner.heading.text(),
            "text": page.banner.text.text(),
            "editor": page.editor.toPlainText(),
            "kept": [item.kept for item in outcomes[0].proof],
        }
    finally:
        running.close()
        engine.close()


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]).read_text(), Path(sys.argv[2]), faulty="faulty" in sys.argv[3:])))
