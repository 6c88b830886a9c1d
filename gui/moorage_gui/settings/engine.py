"""The Docker Engine page: daemon.json edited with its faults and its costs in sight, applied, and put back when it fails."""

from __future__ import annotations

import json
import re

from moorage_contract.agent import DaemonState, Status
from moorage_contract.daemon_config import ConfigError, DaemonConfig, check, parse, plan
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QHBoxLayout, QVBoxLayout

from moorage_gui.bridge import Bridge
from moorage_gui.parts import Card, Chip, Page, button, label
from moorage_gui.settings.editor import JsonEditor
from moorage_gui.settings.plan_view import PlanView
from moorage_gui.views import ApplyOutcome, ContainerView, MachineState, MachineView

TYPING_MS = 120
FAILED = "The daemon does not start"
_LOG_LINE = re.compile(r'^time="[^"]*" .*?msg="((?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)"')
PIPE_WORDS = (
    "A container's output waits in this pipe while the daemon is away; when it is full the container waits too, and nothing is lost. "
    "A larger pipe would only move that moment, so there is no setting for it."
)


class EnginePage(Page):
    """Keeps the user's text whatever happens: only Revert replaces it."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(
            "Docker Engine", "The daemon's configuration, daemon.json. Applying it never restarts the machine."
        )
        self._bridge = bridge
        self._in_force: str | None = None
        self._applying = False
        self._told: float | None = None
        self._failure = ""
        self.state = Chip("…", "plain")
        self.head.addWidget(self.state)
        self.editor = JsonEditor()
        self.column.addWidget(self.editor, 1)
        self.column.addWidget(self._pipe_row())
        self.plan_view = PlanView()
        self.column.addWidget(self.plan_view)
        self.column.addLayout(self._buttons())
        self._typing = QTimer(self)
        self._typing.setSingleShot(True)
        self._typing.setInterval(TYPING_MS)
        self._typing.timeout.connect(self.judge)
        self.editor.textChanged.connect(self._typed)
        self.plan_view.fault_chosen.connect(self.editor.show_fault)
        bridge.config_loaded.connect(self._loaded)
        bridge.applied.connect(self._applied)
        bridge.machine_changed.connect(self._machine_changed)
        bridge.containers_changed.connect(self._containers_changed)
        self._running: list[str] = []
        self._machine_on = False
        self.setTabOrder(self.editor, self.plan_view.problems)
        self.setTabOrder(self.plan_view.problems, self.revert)
        self.setTabOrder(self.revert, self.apply)
        self.editor.setPlaceholderText("Loading…")
        self.editor.setReadOnly(True)
        self.judge()

    @property
    def changed(self) -> bool:
        """Whether the text differs from the file in force."""
        return self._in_force is not None and self.editor.toPlainText() != self._in_force

    def shown(self) -> None:
        """Look whether somebody else changed the file, the CLI for one."""
        if not self._applying:
            self._bridge.load_config()
        self.editor.setFocus()

    def judge(self) -> None:
        """Find faults or make the plan; called once the user pauses."""
        text = self.editor.toPlainText()
        faults = check(text)
        self.editor.set_faults(faults)
        ready = False
        if self._in_force is None:
            self.plan_view.say_nothing("The file has not been read yet.")
        elif faults:
            self.plan_view.say_faults(faults)
        elif not self.changed:
            self.plan_view.say_nothing(
                "The text is the file in force. Change it to see beforehand what applying it would interrupt."
            )
        else:
            self._show_plan(text)
            ready = True
        self.apply.setEnabled(ready and not self._applying)
        self.revert.setEnabled(self.changed and not self._applying)

    def _show_plan(self, text: str) -> None:
        assert self._in_force is not None
        found = plan(self._in_force, text)
        kept = _lenient(self._in_force).live_restore and parse(text).live_restore
        self.plan_view.say_plan(found, self._running, kept=kept, machine_on=self._machine_on)

    def _pipe_row(self) -> Card:
        card = Card()
        row = QHBoxLayout()
        row.addWidget(label("Log pipe size", "heading"))
        self.pipe_size = label("64 KiB for each stream")
        self.pipe_size.setAccessibleName("Log pipe size, read only")
        row.addWidget(self.pipe_size)
        row.addWidget(Chip("fixed", "plain"))
        row.addStretch(1)
        card.column.addLayout(row)
        self.pipe_words = label(PIPE_WORDS, "muted", wrap=True)
        card.column.addWidget(self.pipe_words)
        return card

    def _buttons(self) -> QVBoxLayout:
        row = QHBoxLayout()
        self.hint = label("", "muted")
        row.addWidget(self.hint, 1)
        self.revert = button("Revert", "Go back to the file in force", shortcut="Ctrl+R")
        self.apply = button("Apply", "Put this file in force", primary=True, shortcut="Ctrl+Return")
        self.revert.clicked.connect(self._revert)
        self.apply.clicked.connect(self._apply)
        row.addWidget(self.revert)
        row.addWidget(self.apply)
        column = QVBoxLayout()
        column.addLayout(row)
        return column

    def _typed(self) -> None:
        self._typing.start()
        self.apply.setEnabled(False)

    def _loaded(self, text: str) -> None:
        first = self._in_force is None
        untouched = first or not self.changed
        self._in_force = text
        if untouched and self.editor.toPlainText() != text:
            self.editor.replace_text(text)
        if first:
            self.editor.setReadOnly(False)
            self.editor.setPlaceholderText("An empty file means all defaults.")
            self.editor.document().clearUndoRedoStacks()
        self.judge()

    def _revert(self) -> None:
        if self._in_force is not None:
            self.editor.replace_text(self._in_force)
            self.banner.clear()
            self.judge()
            self.editor.setFocus()

    def _apply(self) -> None:
        text = self.editor.toPlainText()
        if check(text) or self._applying:
            self.judge()
            return
        self._applying = True
        self.banner.clear()
        self.hint.setText("Applying…")
        self._bridge.apply_config(text)
        self.judge()

    def _applied(self, outcome: ApplyOutcome) -> None:
        self._applying = False
        self.hint.setText("")
        if outcome.applied.ok:
            self._in_force = outcome.text
            self.banner.say(*success(outcome))
        else:
            self.banner.say(*refusal(outcome))
            self._bridge.load_config()
        self.judge()

    def _machine_changed(self, machine: MachineView) -> None:
        on = machine.state is MachineState.RUNNING
        tone = machine.state.tone
        words = machine.state.words
        if on and machine.engine is not None:
            daemon = machine.engine.daemon.state.value
            tone = {"running": "good", "failed": "bad"}.get(daemon, "warning")
            words = f"Engine {machine.engine.engine_version} {daemon}"
        elif on:
            tone, words = "warning", machine.engine_words
        else:
            words = f"Machine: {words.lower()}"
        self.state.say(words, tone)
        rolled = machine.engine.config.rolled_back if machine.engine else None
        if rolled is not None and self.banner.isHidden() and not self._applying and rolled.at != self._told:
            self._told = rolled.at
            self.banner.say(
                "warning",
                "An earlier file is in force",
                f"The daemon refused the last one: {daemon_words(rolled.message)}",
            )
        self._say_failure(machine.engine)
        if on != self._machine_on:
            self._machine_on = on
            self.judge()

    def _say_failure(self, engine: Status | None) -> None:
        """Why a daemon that does not start does not, once; taken away when it runs again."""
        failed = engine is not None and engine.daemon.state is DaemonState.FAILED
        why = daemon_words(engine.daemon.last_error or "") if engine is not None and failed else ""
        if why and why != self._failure and self.banner.isHidden() and not self._applying:
            self._failure = why
            self.banner.say("bad", FAILED, why)
        elif not failed and self._failure:
            self._failure = ""
            if self.banner.heading.text() == FAILED:
                self.banner.clear()

    def _containers_changed(self, containers: list[ContainerView]) -> None:
        running = sorted(item.name for item in containers if item.running)
        if running != self._running:
            self._running = running
            self.judge()


def _lenient(text: str) -> DaemonConfig:
    try:
        return parse(text)
    except ConfigError:
        return DaemonConfig()


def daemon_words(message: str) -> str:
    """What a daemon said as it ended, without the trimmings of log lines and each sentence once."""
    found: dict[str, None] = {}
    for line in message.splitlines():
        logged = _LOG_LINE.search(line)
        text = json.loads(f'"{logged.group(1)}"') if logged else line
        found[text.strip().removeprefix("moored: ")] = None
    return "\n".join(text for text in found if text)


def success(outcome: ApplyOutcome) -> tuple[str, str, str]:
    """Tone, heading and text of the banner after an apply that worked."""
    if outcome.applied.stored:
        return (
            "info",
            "Saved",
            outcome.applied.message or "The machine is off: the file is in force when it starts next.",
        )
    count = len(outcome.proof)
    if not count:
        return (
            "good",
            "In force",
            outcome.applied.message or "The daemon took the new configuration. No container was running.",
        )
    lost = [item.before.name for item in outcome.proof if not item.kept]
    if lost:
        return "warning", "In force, but not every container went on", "Stopped or started anew: " + ", ".join(lost)
    one = outcome.proof[0]
    proof = f"{one.before.name}: PID {one.before.pid}, started {one.before.started_at[:19].replace('T', ' ')}, the same before and after"
    more = f", and {count - 1} more likewise" if count > 1 else ""
    return "good", f"In force; {count} of {count} container{'s' if count > 1 else ''} went on", proof + more + "."


def refusal(outcome: ApplyOutcome) -> tuple[str, str, str]:
    """Tone, heading and text of the banner after an apply that failed."""
    message = daemon_words(outcome.applied.message) or "It gave no reason."
    if outcome.applied.rolled_back:
        return (
            "bad",
            "The daemon refused this file; the previous file is in force again",
            f"{message}\nYour text is kept here.",
        )
    return "bad", "The file was not applied; the previous file stays in force", f"{message}\nYour text is kept here."
