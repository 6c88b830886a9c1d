"""The Live restore page: how full each container's pipes are, who waits, how the daemon is, and the proof of the last apply."""

from __future__ import annotations

import time

from moorage_contract.agent import DaemonState, PipeFill, Status
from moorage_contract.daemon_config import ConfigError, parse
from PySide6.QtWidgets import QHBoxLayout, QLabel, QStackedWidget

from moorage_gui.bridge import Bridge
from moorage_gui.dashboard.tables import BarDelegate, Column, Rows, Table
from moorage_gui.parts import Card, Chip, Page, button, label
from moorage_gui.theme import Theme
from moorage_gui.views import ApplyOutcome, Kept, MachineState, MachineView, in_bytes, in_seconds

ALMOST = 0.75


def tone(pipe: PipeFill, theme: Theme) -> str:
    """Colour of a bar."""
    if pipe.blocked:
        return theme.bad
    return theme.gauge if pipe.fraction >= ALMOST else theme.accent


def words(pipe: PipeFill) -> str:
    """A pipe's state in words."""
    if pipe.blocked:
        return "Blocked: pipe full"
    if pipe.fraction >= ALMOST:
        return "Nearly full"
    return "Filling" if pipe.bytes else "Flowing"


def now_of(item: Kept) -> str:
    """What a container is after an apply."""
    if item.after is None:
        return "no longer runs"
    return f"PID {item.after.pid}, since {item.after.started_at[:19].replace('T', ' ')}"


class Fact(Card):
    """A small card: name, value, a line below."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setAccessibleName(name)
        self.column.addWidget(label(name, "muted"))
        self.value: QLabel = label("–", "value")
        self.more: QLabel = label("", "muted", wrap=True)
        self.column.addWidget(self.value)
        self.column.addWidget(self.more)

    def say(self, value: str, more: str) -> None:
        """Change value and line."""
        self.value.setText(value)
        self.more.setText(more)


class RestorePage(Page):
    """Works with the daemon dead: the agent tells the fills."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(
            "Live restore",
            "Containers run on while the daemon is away. Their output waits in pipes of 64 KiB; a full one makes its container wait.",
        )
        self._bridge = bridge
        self.state = Chip("…", "plain")
        self.head.addWidget(self.state)
        self.restart = button("Restart daemon", "Restart the daemon; containers run on while it is away")
        self.restart.clicked.connect(self._restart)
        self.head.addSpacing(8)
        self.head.addWidget(self.restart)
        facts = QHBoxLayout()
        self.daemon, self.waiting, self.setting = Fact("Daemon"), Fact("Output waiting"), Fact("Live restore")
        for fact in (self.daemon, self.waiting, self.setting):
            facts.addWidget(fact, 1)
        self.column.addLayout(facts)
        self.column.addWidget(label("Pipes", "heading"))
        columns: list[Column[PipeFill]] = [
            Column("Container", lambda pipe: pipe.name or pipe.container[:12], lambda pipe: pipe.container),
            Column("Stream", lambda pipe: pipe.stream),
            Column(
                "Waiting, of 64 KiB",
                lambda pipe: in_bytes(pipe.bytes),
                lambda pipe: f"{pipe.bytes} of {pipe.capacity} bytes",
                stretch=True,
            ),
            Column("Rate", lambda pipe: f"{in_bytes(pipe.rate)}/s", right=True),
            Column("Full in", lambda pipe: "full" if pipe.blocked else in_seconds(pipe.seconds_to_full), right=True),
            Column("State", words, stretch=True),
        ]
        self.model = Rows(columns, lambda pipe: (pipe.container, pipe.stream), self)
        self.table = Table(self.model, "Pipes")
        self._bars = BarDelegate(lambda pipe: pipe.fraction, tone, self)
        self.table.setItemDelegateForColumn(2, self._bars)
        self._stack = QStackedWidget()
        self._stack.addWidget(self.table)
        self._nothing = Card()
        self._nothing.column.addStretch(1)
        self.empty = label("", "muted", wrap=True)
        self._nothing.column.addWidget(self.empty)
        self._nothing.column.addStretch(1)
        self._stack.addWidget(self._nothing)
        self.column.addWidget(self._stack, 2)
        self.column.addWidget(label("Last restart or apply", "heading"))
        proof_columns: list[Column[Kept]] = [
            Column("Container", lambda item: item.before.name),
            Column(
                "Before",
                lambda item: f"PID {item.before.pid}, since {item.before.started_at[:19].replace('T', ' ')}",
                stretch=True,
            ),
            Column("After", now_of, stretch=True),
            Column("", lambda item: "kept" if item.kept else "not kept"),
        ]
        self.proof_model = Rows(proof_columns, lambda item: item.before.id, self)
        self.proof = Table(self.proof_model, "Containers before and after the last restart or apply")
        self._proof_stack = QStackedWidget()
        self._proof_stack.addWidget(self.proof)
        nothing = Card()
        self.proof_words = label(
            "Restart the daemon, or apply a configuration: process and start time of each container, before and after, are shown here.",
            "muted",
            wrap=True,
        )
        nothing.column.addWidget(self.proof_words)
        nothing.column.addStretch(1)
        self._proof_stack.addWidget(nothing)
        self._proof_stack.setCurrentIndex(1)
        self._proof_stack.setMinimumHeight(96)
        self._proof_stack.setMaximumHeight(96)
        self.column.addWidget(self._proof_stack, 1)
        bridge.machine_changed.connect(self._machine_changed)
        bridge.pipes_changed.connect(self._pipes_changed)
        bridge.config_loaded.connect(self._config_loaded)
        bridge.applied.connect(self._applied)
        bridge.daemon_restarted.connect(self._restarted)
        self._pipes_changed([])

    def _machine_changed(self, machine: MachineView) -> None:
        engine = machine.engine
        self.restart.setEnabled(engine is not None and engine.daemon.state is not DaemonState.STARTING)
        if engine is None:
            self.state.say(
                machine.state.words, "bad" if machine.state in (MachineState.FAILED, MachineState.UNKNOWN) else "plain"
            )
            self.daemon.say("–", machine.engine_words)
            return
        state = engine.daemon.state.value
        tones = {"running": "good", "failed": "bad"}
        self.state.say(f"Daemon {state}", tones.get(state, "warning"))
        self.daemon.say(state.capitalize(), daemon_line(engine))
        self._say_waiting()

    def _pipes_changed(self, pipes: list[PipeFill]) -> None:
        self.model.show_rows(
            sorted(pipes, key=lambda pipe: (not pipe.blocked, pipe.name, pipe.container, pipe.stream != "stdout"))
        )
        self._stack.setCurrentIndex(0 if pipes else 1)
        self.empty.setText(
            {
                MachineState.RUNNING: "No container is running.",
                MachineState.UNKNOWN: "The backend does not answer. It is asked again.",
            }.get(self._bridge.machine.state, "The machine is not running.")
        )
        self._say_waiting()

    def _say_waiting(self) -> None:
        pipes = self.model.rows
        blocked = sorted({pipe.name or pipe.container[:12] for pipe in pipes if pipe.blocked})
        if blocked:
            self.waiting.say(
                in_bytes(sum(pipe.bytes for pipe in pipes)), f"{len(blocked)} blocked: {', '.join(blocked[:4])}"
            )
            return
        soonest = min((pipe.seconds_to_full for pipe in pipes if pipe.seconds_to_full is not None), default=None)
        more = f"first one full in {in_seconds(soonest)}" if soonest is not None else "nobody is blocked"
        self.waiting.say(in_bytes(sum(pipe.bytes for pipe in pipes)), more)

    def _config_loaded(self, text: str) -> None:
        try:
            on = parse(text).live_restore
        except ConfigError:
            self.setting.say("?", "the file cannot be read")
            return
        self.setting.say(
            "On" if on else "Off", "containers survive the daemon" if on else "containers stop with the daemon"
        )

    def _applied(self, outcome: ApplyOutcome) -> None:
        if outcome.applied.ok:
            self._config_loaded(outcome.text)
        self._prove([*outcome.proof], "Last apply")

    def _restart(self) -> None:
        self.restart.setEnabled(False)
        self.banner.clear()
        self._bridge.restart_daemon()

    def _restarted(self, proof: list[Kept]) -> None:
        self._prove(proof, "Last restart")
        lost = [item.before.name for item in proof if not item.kept]
        if lost:
            self.banner.say("warning", "The daemon is back, but not every container went on", ", ".join(lost))
        elif proof:
            self.banner.say(
                "good",
                f"The daemon is back; {len(proof)} of {len(proof)} went on",
                "Same process and same start for each, as listed below.",
            )
        else:
            self.banner.say("info", "The daemon is back", "No container was running.")

    def _prove(self, proof: list[Kept], what: str) -> None:
        self.proof_model.show_rows(proof)
        self._proof_stack.setCurrentIndex(0 if proof else 1)
        self._proof_stack.setMaximumHeight(240 if proof else 96)
        if not proof:
            at = time.strftime("%H:%M:%S")
            self.proof_words.setText(f"{what} at {at}. No container was running, so there was nothing to keep.")


def daemon_line(engine: Status) -> str:
    """PID, time and restarts of the daemon in a line."""
    parts = [f"PID {engine.daemon.pid}"] if engine.daemon.pid else []
    if engine.daemon.since and engine.clock >= engine.daemon.since:
        parts.append(f"for {in_seconds(engine.clock - engine.daemon.since)}")
    parts.append(f"{engine.daemon.restarts} restart{'' if engine.daemon.restarts == 1 else 's'}")
    return ", ".join(parts)
