"""Plays the shim's part for the log pump: pipes, a writer process, and daemons that are forked and killed."""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.logs import pipes
from moorage_guest.logs.files import LogFile, Rotation, history
from moorage_guest.logs.formats import Format
from moorage_guest.logs.jsonfile import JsonFile, to_bytes
from moorage_guest.logs.notify import Notifier
from moorage_guest.logs.pump import Pump
from moorage_guest.logs.targets import LogTarget, Sink, StreamPipes

DEADLINE = 60.0


@dataclass
class ShimPipes:
    """One container's pipes as its shim holds them."""

    folder: Path
    streams: dict[int, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stream in (1, 2):
            a_read, a_write = os.pipe()
            b_read, b_write = os.pipe()
            pipes.set_capacity(a_write)
            pipes.set_capacity(b_write)
            self.streams[stream] = {"a_read": a_read, "a_write": a_write, "b_read": b_read, "b_write": b_write}

    @property
    def log(self) -> Path:
        return self.folder / "log.json"

    def target(
        self, loop: asyncio.AbstractEventLoop, rotation: Rotation | None = None, format_: Format | None = None
    ) -> LogTarget:
        """Return a target that owns duplicates of the descriptors, as SCM_RIGHTS would give them."""
        return LogTarget(
            "c",
            {
                stream: StreamPipes(os.dup(ends["a_read"]), os.dup(ends["b_read"]), os.dup(ends["b_write"]))
                for stream, ends in self.streams.items()
            },
            self.folder / "journal",
            Sink(LogFile(self.log, rotation or Rotation()), format_ or JsonFile()),
            Notifier(loop),
        )

    def close(self) -> None:
        """Close all."""
        for ends in self.streams.values():
            for descriptor in ends.values():
                os.close(descriptor)


@contextlib.contextmanager
def shim_pipes(folder: Path) -> Iterator[ShimPipes]:
    """Pipes that are closed at the end."""
    found = ShimPipes(folder)
    try:
        yield found
    finally:
        found.close()


def forked(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; return its pid. It ends with 0, or 1 on an exception."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def reap(pid: int, deadline: float = DEADLINE) -> int:
    """Wait for a process and return its exit status; kill it and fail when it takes too long."""
    descriptor = os.pidfd_open(pid)
    try:
        import select

        if not select.select([descriptor], [], [], deadline)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"process {pid} did not end in {deadline:.0f} s")
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def daemon(shim: ShimPipes, rotation: Rotation, format_: Format | None = None, *, until_empty: bool = False) -> None:
    """Be a daemon: pump for ever, or until the pipes are drained."""

    async def main() -> None:
        pump = Pump()
        pump.start()
        await pump.add(shim.target(asyncio.get_running_loop(), rotation, format_))
        if until_empty:
            await pump.drained("c", grace=0)
            await pump.stop()
        else:
            await asyncio.sleep(DEADLINE * 10)

    asyncio.run(main())


def pieces(seed: int, stream: int) -> Iterator[bytes]:
    """Yield for ever what a container writes at a time: mostly lines, with long ones, unfinished ones and any bytes."""
    chance = random.Random(f"{seed}-{stream}")
    number = 0
    while True:
        number += 1
        kind = chance.random()
        if kind < 0.80:
            yield b"%d line %07d " % (stream, number) + b"x" * chance.randrange(80) + b"\n"
        elif kind < 0.88:
            yield b"".join(b"%d burst %07d/%d\n" % (stream, number, each) for each in range(chance.randrange(1, 200)))
        elif kind < 0.93:
            yield b"unfinished %07d " % number
        elif kind < 0.97:
            yield chance.randbytes(chance.randrange(1, 3000))
        elif kind < 0.99:
            yield b"long %d " % number + b"y" * chance.randrange(10_000, 60_000) + b'\\n"\x00\n'
        else:
            yield b"z" * chance.choice((16383, 16384, 16385, 32768)) + b"\n"


def write_all(descriptor: int, data: bytes) -> None:
    """Write to a blocking pipe."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_until(shim: ShimPipes, seed: int, stream: int, stop: Path, count: Path) -> None:
    """Write `pieces` until the file ``stop`` appears, then say how many bytes in ``count``."""
    written = 0
    for piece in pieces(seed, stream):
        if stop.exists():
            break
        write_all(shim.streams[stream]["a_write"], piece)
        written += len(piece)
    count.write_text(str(written))


def expected(seed: int, stream: int, length: int) -> bytes:
    """Return the first ``length`` bytes of what `write_until` writes."""
    found = bytearray()
    for piece in pieces(seed, stream):
        if len(found) >= length:
            break
        found += piece
    return bytes(found[:length])


def json_records(path: Path) -> list[tuple[str, bytes, str]]:
    """Return (stream, bytes, time) of every record in a json-file log, read by the standard parser alone."""
    records = []
    for file in history(path):
        for line in file.read_bytes().splitlines(keepends=True) if file.suffix != ".gz" else ():
            if not line.endswith(b"\n"):
                raise AssertionError(f"{file} ends in half a record: {line[-80:]!r}")
            record = json.loads(line)
            records.append((record["stream"], to_bytes(record["log"]), record["time"]))
    return records


def kill_again_and_again(
    shim: ShimPipes, seed: int, kills: int, rotation: Rotation, format_: Format | None = None
) -> dict[int, bytes]:
    """Write on both streams while daemons are forked and killed; return what was written by stream."""
    chance = random.Random(seed)
    stop = shim.folder / "stop"
    writers = {
        stream: forked(lambda stream=stream: write_until(shim, seed, stream, stop, shim.folder / f"count-{stream}"))  # type: ignore[misc]
        for stream in (1, 2)
    }
    current = -1
    try:
        for _ in range(kills):
            current = forked(lambda: daemon(shim, rotation, format_))
            time.sleep(chance.choice((0.004, 0.01, 0.03)) * chance.random() + 0.004)
            os.kill(current, signal.SIGKILL)
            reap(current)
            current = -1
        stop.touch()
        current = forked(lambda: daemon(shim, rotation, format_))
        for stream in list(writers):
            if reap(writers.pop(stream)) != 0:
                raise AssertionError("the writer failed")
        os.kill(current, signal.SIGKILL)
        reap(current)
        current = forked(lambda: daemon(shim, rotation, format_, until_empty=True))
        last, current = current, -1
        if reap(last) != 0:
            raise AssertionError("the last daemon failed")
    finally:
        for pid in [*writers.values(), *([current] if current > 0 else [])]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return {stream: expected(seed, stream, int((shim.folder / f"count-{stream}").read_text())) for stream in (1, 2)}
