"""The state database: versioned JSON records in SQLite (WAL), one table for all kinds.

Synchronous and safe to call from any thread; one write is one durable transaction. What a record means
belongs to whoever owns its kind. A database that SQLite finds damaged is set aside, never deleted, and made anew from the
copy of every record that `recordlog` keeps beside it.
"""

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from moorage_guest.recordlog import Entry, RecordLog

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1

T = TypeVar("T")

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreError(Exception):
    """The database cannot be read or written; the text says which file and why."""


class Store:
    """Key-value records by kind: ``store.put("container", id, {...})``.

    Records are JSON objects. Writes are synchronous=FULL: once `put` returned, a power cut does not lose it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Where a damaged database was put; None when there was none.
        self.set_aside: Path | None = None
        #: Records that came from the copy because the database was damaged or gone; None when it was not.
        self.recovered: int | None = None
        self._lock = threading.RLock()
        self._copy = RecordLog(path.with_name(path.name + ".records"))
        self._pending: list[Entry] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists() or path.stat().st_size == 0
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise StoreError(f"cannot open {path}: {error}") from error
            self._set_aside(error)
            self._db = self._open()
            fresh = True
        if fresh:
            self._recover()
        if self._copy.open():
            self._redo(self._copy.last())
        else:
            self._copy.rewrite(self._rows())

    def _open(self) -> sqlite3.Connection:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        try:
            # Nobody else reads it; and the index of the log lies in memory then, so that a full disk is no obstacle.
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            (verdict,) = db.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                raise _damage(verdict)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} was written by a newer engine (schema {version}, this one knows {SCHEMA_VERSION}): "
                    "start that engine again or roll back to a data disk copy made before it"
                )
            db.execute(
                "CREATE TABLE IF NOT EXISTS record"
                " (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID"
            )
            if version != SCHEMA_VERSION:
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    # -- damage --------------------------------------------------------------------------------------------------------

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        self.set_aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        log.error("state database %s is damaged (%s): kept as %s", self.path, error, self.set_aside)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(f"{self.set_aside}{suffix}")

    def _recover(self) -> None:
        """Fill a new database with what the copy holds."""
        rows = [(kind, key, text) for (kind, key), text in self._copy.read().items()]
        if not rows and self.set_aside is None:
            return
        self.recovered = len(rows)
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", rows)
        log.warning("state database %s was made anew from its copy: %d records", self.path, len(rows))
        self._copy.rewrite(self._rows())

    def _redo(self, entries: list[Entry]) -> None:
        """Make the last write that was noted, unless it was made: the daemon was killed between the two."""
        for kind, key, text in entries:
            if text is None:
                self._db.execute("DELETE FROM record WHERE kind=? AND key=?", (kind, key))
            elif self._text(kind, key) != text:
                self._db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (kind, key, text))

    def _sound(self, work: Callable[[], T]) -> T:
        """Do work; when the database turns out to be damaged, make it anew and do the work again."""
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if self._pending is not None or not _is_damage(error):
                raise
            self._db.close()
            self._set_aside(error)
            self._db = self._open()
            self._recover()
            return work()

    def _parsed(self, kind: str, key: str, text: str) -> dict[str, Any] | None:
        """Return a record; one that is no JSON object is taken from the copy. None, and a word in the log, without."""
        with contextlib.suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict):
                return found
        spare = self.spare(kind, key)
        state = "ignored" if spare is None else "taken from the copy"
        log.error("%s record %s in %s is damaged: %s", kind, key, self.path, state)
        if spare is not None:
            self.put(kind, key, spare)
        return spare

    def spare(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return the copy of a record whose content in the database makes no sense, or None."""
        with self._lock:
            text = self._copy.read().get((kind, key))
        with contextlib.suppress(ValueError):
            found = json.loads(text or "")
            if isinstance(found, dict):
                return found
        return None

    # -- records -------------------------------------------------------------------------------------------------------

    def _rows(self) -> list[Entry]:
        return self._db.execute("SELECT kind, key, value FROM record ORDER BY kind, key").fetchall()

    def _append(self, entries: list[Entry]) -> None:
        if entries and not self._copy.append(entries):
            texts = {(kind, key): text for kind, key, text in [*self._rows(), *entries]}
            self._copy.rewrite((kind, key, text) for (kind, key), text in texts.items() if text is not None)

    def _resync(self, noted: Mapping[tuple[str, str], str | None]) -> None:
        """Have the copy say of some records what the database says."""
        wrong: list[Entry] = []
        for (kind, key), text in noted.items():
            if (there := self._text(kind, key)) != text:
                wrong.append((kind, key, there))
        if wrong:
            self._append(wrong)

    def _write(self, entry: Entry, statement: str, values: tuple[str, ...]) -> None:
        """Write to the copy and to the database, in this order: `_redo` makes at the next start what a kill kept from being made."""
        kind, key, text = entry
        with self._lock:
            if self._pending is not None:
                self._pending.append(entry)
                self._db.execute(statement, values)
                return
            self._append([entry])
            try:
                self._sound(lambda: self._db.execute(statement, values))
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._resync({(kind, key): text})
                raise

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """Insert or replace one record."""
        text = json.dumps(value, separators=(",", ":"))
        self._write((kind, key, text), "INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (kind, key, text))

    def delete(self, kind: str, key: str) -> None:
        """Remove one record; quiet if there is none."""
        self._write((kind, key, None), "DELETE FROM record WHERE kind=? AND key=?", (kind, key))

    def _text(self, kind: str, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM record WHERE kind=? AND key=?", (kind, key)).fetchone()
        return None if row is None else str(row[0])

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return one record, or None."""
        with self._lock:
            text = self._sound(lambda: self._text(kind, key))
            return None if text is None else self._parsed(kind, key, text)

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return all records of a kind by key. One that is damaged and that no copy is left of is logged and left out."""
        with self._lock:
            rows = self._sound(
                lambda: self._db.execute("SELECT key, value FROM record WHERE kind=? ORDER BY key", (kind,)).fetchall()
            )
            records = {key: self._parsed(kind, key, value) for key, value in rows}
        return {key: record for key, record in records.items() if record is not None}

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Group several writes: all of them or none survive."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._pending = []
            try:
                yield
                self._append(self._pending)
                self._db.execute("COMMIT")
            except BaseException:
                noted, self._pending = self._pending, None
                if self._db.in_transaction:  # SQLite has taken it back itself when the disk is full
                    self._db.execute("ROLLBACK")
                self._resync({(kind, key): text for kind, key, text in noted})
                raise
            self._pending = None

    def close(self) -> None:
        """Close the database; further calls fail."""
        with self._lock:
            self._db.close()
            self._copy.close()


def _damage(verdict: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", None) in _DAMAGE
