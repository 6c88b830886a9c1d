"""The journal of one container's log: which step of the pump was the last one, and what is held back.

A small file of fixed size on the exec root's tmpfs, mapped into memory, so that a store into it survives SIGKILL of
the daemon and costs no system call. It does not outlive a reboot, nor need it: the pipes do not either.

Two slots take turns. A slot holds the whole state after its step and what the step does to the log file; it counts only
if its checksum fits, so a store cut short by SIGKILL leaves the other slot in force. The number of the last finished
step is one aligned word.
"""

import contextlib
import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

VERSION = 1

#: A line is cut into records of this many bytes, so that is the most that can be held back.
MAX_HELD = 16 * 1024

#: version, stream, generation, bytes of the chunk, log device, log inode, size before, size after, time,
#: then for stdout and stderr: bytes consumed, bytes held, whether the line has had records already.
_HEADER = struct.Struct("=IIQQQQQQQ" + "QI?xxx" * 2)
_CRC = struct.Struct("=I")
_FIRST_SLOT = 64
_SLOT = 4096 * 9
SIZE = _FIRST_SLOT + 2 * _SLOT


@dataclass(frozen=True)
class StreamState:
    """How far one stream is: bytes taken from the pipe since the container started, and the unfinished line's bytes
    that are in no record yet. ``continued``: records of that line have been written before."""

    consumed: int = 0
    held: bytes = b""
    continued: bool = False


@dataclass(frozen=True)
class Step:
    """One step of the pump, written before the log is touched: the chunk in pipe B of ``stream`` is ``length`` bytes,
    the log file ``(device, inode)`` grows from ``before`` to ``after``; ``streams`` is the state once that is done."""

    generation: int
    stream: int
    length: int
    device: int
    inode: int
    before: int
    after: int
    time_ns: int
    streams: tuple[StreamState, StreamState]


class JournalError(Exception):
    """The journal cannot be opened or is of another version; the text says which."""


#: What a new journal says.
START = Step(0, 0, 0, 0, 0, 0, 0, 0, (StreamState(), StreamState()))


class Journal:
    """An open journal. Not safe for use by several threads at once."""

    def __init__(self, path: Path) -> None:
        """Open or create (0600). Raises JournalError; the space is reserved, later stores cannot fail."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, SIZE)
                self._map = mmap.mmap(descriptor, SIZE)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise JournalError(f"cannot open the log journal {path}: {error.strerror or error}") from error
        self._words = memoryview(self._map).cast("Q")

    @property
    def done(self) -> int:
        """Generation of the last step that is finished, pipe B emptied included."""
        return self._words[0]

    @done.setter
    def done(self, generation: int) -> None:
        self._words[0] = generation

    def write(self, step: Step) -> None:
        """Record a step; the slot of the one before it stays as it is."""
        first, second = step.streams
        body = _HEADER.pack(
            VERSION, step.stream, step.generation, step.length, step.device, step.inode, step.before, step.after,
            step.time_ns, first.consumed, len(first.held), first.continued, second.consumed, len(second.held),
            second.continued,
        ) + first.held + second.held  # fmt: skip
        start = self._slot(step.generation)
        self._map[start : start + _CRC.size + len(body)] = _CRC.pack(zlib.crc32(body)) + body

    def forget(self, generation: int) -> None:
        """Make a step's slot invalid: the one before it is in force again."""
        start = self._slot(generation)
        self._map[start : start + _CRC.size + _HEADER.size] = bytes(_CRC.size + _HEADER.size)

    def latest(self) -> Step:
        """Return the newest step that was recorded whole. Raises JournalError on a journal of another version."""
        found = [step for step in (self._read(0), self._read(1)) if step is not None]
        return max(found, key=lambda step: step.generation, default=START)

    def before(self, generation: int) -> Step:
        """Return the step before this one, for going back to it."""
        if generation <= 1:
            return START
        found = self._read(self._slot_number(generation - 1))
        if found is None or found.generation != generation - 1:
            raise JournalError(f"log journal: step {generation - 1} is damaged")
        return found

    def close(self) -> None:
        """Unmap; the file stays."""
        with contextlib.suppress(ValueError):
            self._words.release()
        self._map.close()

    def _slot_number(self, generation: int) -> int:
        return generation % 2

    def _slot(self, generation: int) -> int:
        return _FIRST_SLOT + self._slot_number(generation) * _SLOT

    def _read(self, number: int) -> Step | None:
        start = _FIRST_SLOT + number * _SLOT
        (checksum,) = _CRC.unpack_from(self._map, start)
        start += _CRC.size
        (
            version, stream, generation, length, device, inode, before, after, time_ns,
            consumed1, held1, continued1, consumed2, held2, continued2,
        ) = _HEADER.unpack_from(self._map, start)  # fmt: skip
        if held1 > MAX_HELD or held2 > MAX_HELD:
            return None
        end = start + _HEADER.size + held1 + held2
        body = self._map[start:end]
        if generation == 0 or zlib.crc32(body) != checksum:
            return None
        if version != VERSION:
            raise JournalError(f"the log journal has version {version}, this engine knows {VERSION}")
        held = body[_HEADER.size :]
        return Step(
            generation, stream, length, device, inode, before, after, time_ns,
            (StreamState(consumed1, held[:held1], continued1), StreamState(consumed2, held[held1:], continued2)),
        )  # fmt: skip
