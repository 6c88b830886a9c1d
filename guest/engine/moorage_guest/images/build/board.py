"""The steps of a build as its client sees them: each begins, may say something, and is over, cached or failed."""

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from moorage_guest.errors import EngineError
from moorage_guest.images.build.seams import BuildError, Reporter, Source, Vertex


@dataclass
class Task:
    """One step under way."""

    board: "Board"
    vertex: Vertex

    @property
    def digest(self) -> str:
        """By which others name it."""
        return self.vertex.digest

    def cached(self) -> None:
        """Say that it need not be done."""
        self.vertex = replace(self.vertex, cached=True)

    def log(self, stream: int, data: bytes) -> None:
        """Pass on what a command wrote."""
        if data:
            self.board.reporter.log(self.digest, stream, data)

    def status(self, name: str, current: int, total: int, *, begun_ns: int = 0, done: bool = False) -> None:
        """Say how far a part of it is."""
        now = time.time_ns()
        self.board.reporter.status(self.digest, name, current, total, begun_ns or now, now if done else None)


class Board:
    """All steps of one build."""

    def __init__(self, reporter: Reporter, seed: str) -> None:
        self.reporter = reporter
        self._seed = seed
        self._count = 0

    @contextmanager
    def task(self, name: str, inputs: Sequence[str] = (), source: Source | None = None) -> Iterator[Task]:
        """Report a step for the time of the block. What goes wrong in it leaves as a BuildError that knows step and line."""
        self._count += 1
        digest = f"sha256:{hashlib.sha256(f'{self._seed} {self._count} {name}'.encode()).hexdigest()}"
        task = Task(self, Vertex(digest, name, tuple(inputs), started_ns=time.time_ns()))
        self.reporter.vertex(task.vertex)
        try:
            yield task
        except EngineError as error:
            self._end(task, error.own if isinstance(error, BuildError) else str(error))
            if isinstance(error, BuildError):
                error.vertex = error.vertex or digest
                error.source = error.source or source
                raise
            raise BuildError(str(error), source=source, vertex=digest) from error
        except asyncio.CancelledError:
            self._end(task, "context canceled")
            raise
        except BaseException as error:
            self._end(task, f"{type(error).__name__}: {error}")
            raise
        self._end(task, "")

    def _end(self, task: Task, error: str) -> None:
        task.vertex = replace(task.vertex, completed_ns=time.time_ns(), error=error)
        self.reporter.vertex(task.vertex)
