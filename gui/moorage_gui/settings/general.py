"""The General page: what the machine gets of this computer, or on which other one it runs."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QCheckBox, QFormLayout, QHBoxLayout, QLineEdit, QSlider, QSpinBox, QWidget

from moorage_gui.bridge import Bridge
from moorage_gui.parts import Card, Chip, Page, button, label
from moorage_gui.views import MachineSettings, MachineState, MachineView


class Amount(QWidget):
    """A slider and a field that say the same number."""

    def __init__(self, name: str, low: int, high: int, step: int, suffix: str) -> None:
        super().__init__()
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setAccessibleName(f"{name}, slider")
        self.field = QSpinBox()
        self.field.setAccessibleName(name)
        self.field.setSuffix(suffix)
        self.field.setMinimumWidth(110)
        self.field.setMinimumHeight(30)
        self.field.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.setFocusProxy(self.field)
        self._step = step
        self.field.setSingleStep(step)
        self.set_bounds(low, high)
        self.slider.valueChanged.connect(lambda value: self.field.setValue(min(value * step, self.field.maximum())))
        self.field.valueChanged.connect(self._follow)
        row.addWidget(self.slider, 1)
        row.addWidget(self.field)

    def _follow(self, value: int) -> None:
        self.slider.blockSignals(True)
        self.slider.setValue(round(value / self._step))
        self.slider.blockSignals(False)

    def set_bounds(self, low: int, high: int) -> None:
        """Bounds, in the field's unit."""
        self.field.setRange(low, max(low, high))
        self.slider.setRange(-(-low // self._step), max(low, high) // self._step)

    @property
    def value(self) -> int:
        """What is set."""
        return self.field.value()


class GeneralPage(Page):
    """Saves at once; the machine follows at its next start, which the page offers."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__("General", "Resources of the machine that containers run in. They count from its next start.")
        self._bridge = bridge
        self._stored = MachineSettings()
        self._machine = MachineView()
        self._told = ""
        self.state = Chip("…", "plain")
        self.head.addWidget(self.state)
        self.cpus = Amount("CPUs", 1, 64, 1, "")
        self.memory = Amount("Memory", 512, 262144, 256, " MiB")
        self.disk = Amount("Disk", 4, 2048, 4, " GiB")
        card = Card()
        form = QFormLayout()
        form.setHorizontalSpacing(24)
        form.setVerticalSpacing(14)
        form.addRow(label("CPUs"), self.cpus)
        form.addRow(label("Memory"), self.memory)
        form.addRow(label("Disk"), self.disk)
        grows = "The disk grows as it is filled, up to this size. It can be made larger, never smaller."
        form.addRow("", label(grows, "muted", wrap=True))
        self.saved_start = QCheckBox("Where booting is slow, save the machine once (200 MB) and start from that")
        self.saved_start.setAccessibleName("Start from a saved state")
        form.addRow(label("Start"), self.saved_start)
        self.host = QLineEdit()
        self.host.setAccessibleName("Host that the machine runs on")
        self.host.setPlaceholderText("this computer, or qemu+ssh://user@host/system")
        self.host.setToolTip(
            "A libvirt connection; its host is reached over SSH with a key, and has to be in known_hosts"
        )
        form.addRow(label("Runs on"), self.host)
        card.column.addWidget(label("Resources", "heading"))
        card.column.addLayout(form)
        self.column.addWidget(card)
        about = Card()
        about.column.addWidget(label("Machine", "heading"))
        self.about = label("", "muted", wrap=True)
        self.about.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        about.column.addWidget(self.about)
        self.column.addWidget(about)
        self.column.addStretch(1)
        row = QHBoxLayout()
        self.hint = label("", "muted")
        row.addWidget(self.hint, 1)
        self.restart = button("Restart machine", "Stop and start the machine; containers stop with it")
        self.revert = button("Revert", "Go back to what is saved")
        self.save = button("Save", "Save; counts from the next start", primary=True)
        for each in (self.restart, self.revert, self.save):
            row.addWidget(each)
        self.column.addLayout(row)
        self.restart.clicked.connect(bridge.restart)
        self.revert.clicked.connect(lambda: self._show(self._stored))
        self.save.clicked.connect(lambda: bridge.save_settings(self.settings))
        for amount in (self.cpus, self.memory, self.disk):
            amount.field.valueChanged.connect(self._judge)
        self.saved_start.toggled.connect(self._judge)
        self.host.textChanged.connect(self._judge)
        bridge.settings_loaded.connect(self._loaded)
        bridge.settings_saved.connect(self._saved)
        bridge.machine_changed.connect(self._machine_changed)
        self._judge()

    @property
    def settings(self) -> MachineSettings:
        """What the fields say."""
        return MachineSettings(
            self.cpus.value,
            self.memory.value,
            self.disk.value,
            self._stored.most_cpus,
            self._stored.most_memory_mib,
            self.saved_start.isChecked(),
            self.host.text().strip() or "auto",
        )

    def shown(self) -> None:
        """Read again what is saved, unless there are changes of one's own."""
        if self.settings == self._stored:
            self._bridge.load_settings()

    def _loaded(self, settings: MachineSettings) -> None:
        self._stored = settings
        self._show(settings)

    def _show(self, settings: MachineSettings) -> None:
        self.cpus.set_bounds(1, settings.most_cpus)
        self.memory.set_bounds(512, settings.most_memory_mib)
        self.disk.set_bounds(settings.disk_gib, 2048)
        self.cpus.field.setValue(settings.cpus)
        self.memory.field.setValue(settings.memory_mib)
        self.disk.field.setValue(settings.disk_gib)
        self.saved_start.setChecked(settings.saved_start)
        self.host.setText("" if settings.libvirt_uri == "auto" else settings.libvirt_uri)
        self._judge()

    def _saved(self) -> None:
        if self._machine.state is MachineState.RUNNING:
            self.banner.say(
                "info", "Saved", "Restart the machine to put it in force; until then everything runs on as it is."
            )
        else:
            self.banner.say("info", "Saved", "In force when the machine starts next.")

    def _judge(self) -> None:
        changed = self.settings != self._stored
        self.save.setEnabled(changed)
        self.revert.setEnabled(changed)
        self.restart.setEnabled(self._machine.state is MachineState.RUNNING)
        pending = "The machine still runs with what it was started with" if self._machine.restart_needed else ""
        self.hint.setText("Not saved yet" if changed else pending)

    def _machine_changed(self, machine: MachineView) -> None:
        self._machine = machine
        self.state.say(machine.state.words, machine.state.tone)
        lines = [machine.detail] if machine.detail else []
        if machine.accelerator:
            lines.append(f"Accelerator: {machine.accelerator}")
        if machine.docker_socket is not None:
            lines.append(f"Docker socket: {machine.docker_socket}")
        if machine.engine is not None and machine.engine.memory.total:
            used = machine.engine.memory.total - machine.engine.memory.available
            lines.append(f"Memory in use: {used / 2**20:.0f} of {machine.engine.memory.total / 2**20:.0f} MiB")
        if machine.engine is not None:
            lines += [f"Warning: {warning}" for warning in machine.engine.warnings]
        self.about.setText("\n".join(lines) or "The machine is not running.")
        if machine.warning and machine.warning != self._told:
            self._told = machine.warning
            self.banner.say("warning", "Please note", machine.warning)
        self._judge()
