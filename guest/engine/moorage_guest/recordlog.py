"""The second copy of the state database: one line for every write, with a checksum, appended to a plain file.

`store` writes it and reads it back when the database is damaged or gone. Of several lines about one record the last sound
one counts, so a damaged line costs one version of one record. Lines are not flushed to disk one by one: a kill of the
daemon loses none, a power cut what the kernel had not written yet, and then only if the database is lost with it.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: Kind and key of a record, and its JSON text; None when the record was removed.
Entry = tuple[str, str, str | None]

#: Bytes below which the file is not worth writing anew.
_SMALL = 1 << 20

#: Bytes at the end in which the last write is looked for.
_TAIL = 256 << 10

_BOOT = ("", "boot")


class RecordLog:
    """See the module. Blocking; the caller sees to it that one thread at a time uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._size = 0
        self._limit = 0

    def append(self, entries: Iterable[Entry]) -> bool:
        """Note writes; False when they could not be noted or the file has grown long: `rewrite` is due."""
        if self._descriptor is None:
            return False
        together = list(entries)
        data = b"".join(_line(*entry, together=len(together)) for entry in together)
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error.strerror)
            written = -1
        if written != len(data):
            self.close()
            return False
        self._size += written
        return self._size <= self._limit

    def open(self) -> bool:
        """Go on behind what an earlier daemon wrote; False when the file has to be written anew first.

        After a reboot it has: a power cut may have taken its last lines.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        size = os.fstat(descriptor).st_size
        first = os.pread(descriptor, 256, 0).partition(b"\n")[0]
        if first + b"\n" != _line(*_BOOT, _boot()) or os.pread(descriptor, 1, max(size - 1, 0)) != b"\n":
            os.close(descriptor)
            return False
        self._take(descriptor, size)
        return True

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Write the file anew with exactly these records, by rename. A failure is logged; the old file stays."""
        self.close()
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(os.dup(descriptor), "wb") as file:
                    file.write(_line(*_BOOT, _boot()))
                    file.writelines(_line(*entry) for entry in entries)
                os.fsync(descriptor)
                temporary.rename(self.path)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            log.warning("%s cannot be written: %s", self.path, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        size = os.fstat(descriptor).st_size
        self._take(descriptor, size)
        self._limit = 4 * size + _SMALL

    def read(self) -> dict[tuple[str, str], str]:
        """Return the newest sound version of every record; damaged lines are logged and left out."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return {}
        found: dict[tuple[str, str], str] = {}
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            entry = _parse(line)
            if entry is None:
                log.error("line %d of %s is damaged: ignored", number, self.path)
                continue
            kind, key, text = entry
            if text is None:
                found.pop((kind, key), None)
            else:
                found[kind, key] = text
        found.pop(_BOOT, None)
        return found

    def last(self) -> list[Entry]:
        """Return what was noted last, all that belongs together: a daemon that was killed may not have made that write."""
        if self._descriptor is None:
            return []
        lines = os.pread(self._descriptor, self._size, max(0, self._size - _TAIL)).splitlines()
        entries = [entry for line in lines[-_together(lines[-1]) :] if (entry := _parse(line)) is not None]
        return entries if len(entries) == _together(lines[-1]) and (entries[0][0], entries[0][1]) != _BOOT else []

    def _take(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        self._limit = max(self._limit, 4 * size + _SMALL)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _boot() -> str:
    return json.dumps(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


def _line(kind: str, key: str, text: str | None, together: int = 1) -> bytes:
    """Return one line; ``together`` is of how many lines it is one that make one write."""
    content = f"{json.dumps([kind, key, together])}\t{text or ''}".encode()
    return b"%08x\t%b\n" % (zlib.crc32(content), content)


def _split(line: bytes) -> tuple[list[Any], str] | None:
    checksum, _, content = line.partition(b"\t")
    try:
        if int(checksum, 16) != zlib.crc32(content):
            return None
        name, _, text = content.decode().partition("\t")
        return list(json.loads(name)), text
    except ValueError:
        return None


def _parse(line: bytes) -> Entry | None:
    found = _split(line)
    return None if found is None else (str(found[0][0]), str(found[0][1]), found[1] or None)


def _together(line: bytes) -> int:
    found = _split(line)
    return 1 if found is None else int(found[0][2])
