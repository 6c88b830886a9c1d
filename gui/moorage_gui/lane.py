"""A thread that does one blocking thing after the other and hands each result back to the window's thread.

Widgets never wait: they submit a job and get its value by a call in their own thread, later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from PySide6.QtCore import QObject, Qt, QThread, Signal, Slot

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    work: Callable[[], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]


@dataclass(frozen=True)
class _Result:
    job: _Job
    value: Any
    error: Exception | None


class _Worker(QObject):
    finished = Signal(object)

    @Slot(object)
    def run(self, job: _Job) -> None:
        try:
            result = _Result(job, job.work(), None)
        except Exception as error:  # the edge: whatever a client raises becomes a sentence in the window
            log.info("job failed", exc_info=True)
            result = _Result(job, None, error)
        self.finished.emit(result)


class Lane(QObject):
    """Jobs of one lane run in order. Made and closed in the window's thread."""

    _submitted = Signal(object)

    def __init__(self, name: str, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._thread = QThread(self)
        self._thread.setObjectName(name)
        self._worker = _Worker()
        self._worker.moveToThread(self._thread)
        self._submitted.connect(self._worker.run, Qt.ConnectionType.QueuedConnection)
        self._worker.finished.connect(self._deliver, Qt.ConnectionType.QueuedConnection)
        self._waiting = 0
        self._open = True
        self._thread.finished.connect(self._worker.deleteLater)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._waiting == 0

    def submit(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        """Run `work` in the lane's thread and then `done` or `failed` in this one. Nothing happens once the lane is closed."""
        if self._open:
            self._waiting += 1
            self._submitted.emit(_Job(work, done, failed))

    def close(self, seconds: float = 5.0) -> bool:
        """Take no more jobs and wait for the one that runs, `seconds` at most. False when it would not end: it is left behind."""
        self._open = False
        self._thread.quit()
        return self._thread.wait(int(seconds * 1000))

    @Slot(object)
    def _deliver(self, result: _Result) -> None:
        self._waiting -= 1
        if not self._open:
            return
        if result.error is not None:
            result.job.failed(result.error)
        else:
            result.job.done(result.value)
