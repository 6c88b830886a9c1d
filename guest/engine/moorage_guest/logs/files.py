"""A container's log file on disk: append, rotate (max-size, max-file, compress), repair after a power cut.

`LogFile` is for the one writer, the pump. Readers use `history` and open the files themselves.
"""

import contextlib
import gzip
import logging
import os
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from moorage_guest.logs.formats import Format

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rotation:
    """When to begin a new file, how many to keep (the current one included), whether to gzip the old ones.

    ``max_size`` 0 is never.
    """

    max_size: int = 0
    max_files: int = 1
    compress: bool = False


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def history(path: Path) -> list[Path]:
    """Return the log's files that are there, oldest first, the current one last."""
    pattern = re.compile(re.escape(path.name) + r"\.([0-9]+)(\.gz)?")
    found: dict[int, Path] = {}
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(path.parent):
            match = pattern.fullmatch(entry.name)
            if match is None:
                continue
            number = int(match.group(1))
            # Both are there for a moment while the old file is being packed: the plain one is it then.
            if number not in found or match.group(2) is None:
                found[number] = Path(entry.path)
    files = [found[number] for number in sorted(found, reverse=True)]
    return [*files, path] if path.exists() else files


class LogFile:
    """The current file, open for appending. One thread at a time; `sync` may be called from another."""

    def __init__(self, path: Path, rotation: Rotation) -> None:
        """Open or create (0640). Raises OSError."""
        self.path = path
        self.rotation = rotation
        self._lock = threading.Lock()
        self._dirty = False
        self._packer: threading.Thread | None = None
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(path.parent):
                if entry.name.startswith(f"{path.name}.") and entry.name.endswith(".gz.tmp"):
                    Path(entry.path).unlink(missing_ok=True)
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)

    def identity(self) -> tuple[int, int, int]:
        """Return (device, inode, size) of the file as it is now, even if somebody cut it short."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino, status.st_size

    def append(self, data: bytes) -> None:
        """Write all of ``data``. Raises OSError, part of it may be written then."""
        view = memoryview(data)
        self._dirty = True
        while view:
            view = view[os.write(self._descriptor, view) :]

    def truncate(self, size: int) -> None:
        """Cut the file to ``size``."""
        os.ftruncate(self._descriptor, size)
        self._dirty = True

    def repair(self, format_: Format) -> int:
        """Cut off what a power cut left at the end: half a record, zeros. Returns the bytes removed."""
        size = os.fstat(self._descriptor).st_size
        sound = format_.sound(self._descriptor) if size else 0
        if sound < size:
            log.warning("%s: cut %d bytes of an unfinished record off its end", self.path, size - sound)
            self.truncate(sound)
        return size - sound

    def rotate_for(self, size: int) -> bool:
        """Begin a new file if this one is full (it holds ``max_size`` or more). Returns whether it did.

        Files move up to the first free number, so being killed in the middle and doing it again loses nothing.
        """
        limit = self.rotation.max_size
        if not limit or size < limit:
            return False
        if self._packer is not None:
            self._packer.join()
            self._packer = None
        os.fdatasync(self._descriptor)
        if self.rotation.max_files <= 1:
            self._replace()
            return True
        last = self.rotation.max_files - 1
        free = next((n for n in range(1, last) if not self._there(n)), last)
        for number in range(free, 0, -1):
            if number == free:
                self._remove(number)
            if number > 1:
                self._shift(number - 1, number)
        self.path.rename(_numbered(self.path, 1))
        self._reopen()
        if self.rotation.compress:
            self._packer = threading.Thread(target=_pack, args=(_numbered(self.path, 1),), name="log-pack", daemon=True)
            self._packer.start()
        return True

    def _there(self, number: int) -> bool:
        plain = _numbered(self.path, number)
        return plain.exists() or _packed(plain).exists()

    def _remove(self, number: int) -> None:
        plain = _numbered(self.path, number)
        plain.unlink(missing_ok=True)
        _packed(plain).unlink(missing_ok=True)

    def _shift(self, number: int, to: int) -> None:
        source, target = _numbered(self.path, number), _numbered(self.path, to)
        if source.exists():
            source.rename(target)
            _packed(source).unlink(missing_ok=True)
        elif _packed(source).exists():
            _packed(source).rename(_packed(target))

    def _replace(self) -> None:
        self.path.unlink(missing_ok=True)
        self._reopen()

    def _reopen(self) -> None:
        descriptor = self._open()
        with self._lock:
            old, self._descriptor = self._descriptor, descriptor
            os.close(old)

    def sync(self) -> None:
        """Make what was appended durable. Raises OSError."""
        with self._lock:
            if not self._dirty or self._descriptor < 0:
                return
            self._dirty = False
            descriptor = os.dup(self._descriptor)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Make what was appended durable, unless the file has been removed, and close. Raises OSError."""
        try:
            if self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink:
                self.sync()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file; a packing that runs is waited for."""
        if self._packer is not None:
            self._packer.join()
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _pack(path: Path) -> None:
    packed = _packed(path)
    unfinished = path.with_name(f"{path.name}.gz.tmp")
    try:
        with path.open("rb") as source, unfinished.open("wb") as target:
            os.fchmod(target.fileno(), 0o640)
            with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1, mtime=0) as stream:
                shutil.copyfileobj(source, stream, 1 << 18)
            target.flush()
            os.fsync(target.fileno())
        unfinished.rename(packed)
        path.unlink()
    except OSError as error:
        log.warning("cannot compress %s: %s", path, error)
        unfinished.unlink(missing_ok=True)
