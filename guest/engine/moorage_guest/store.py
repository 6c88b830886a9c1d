"""The state database: versioned JSON records in SQLite (WAL), one table for all kinds.

Synchronous and safe to call from any thread; one write is one durable transaction. What a record means
belongs to whoever owns its kind. A database that SQLite finds damaged is set aside, never deleted.
"""

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1


class StoreError(Exception):
    """The database cannot be read or written; the text says which file and why."""


class Store:
    """Key-value records by kind: ``store.put("container", id, {...})``.

    Records are JSON objects. Writes are synchronous=FULL: once `put` returned, a power cut does not lose it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_aside: Path | None = None
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            self.set_aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            log.error("state database %s is damaged (%s): kept as %s, starting anew", path, error, self.set_aside)
            path.rename(self.set_aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            (verdict,) = db.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
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
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """Insert or replace one record."""
        text = json.dumps(value, separators=(",", ":"))
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (kind, key, text))

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return one record, or None."""
        with self._lock:
            row = self._db.execute("SELECT value FROM record WHERE kind=? AND key=?", (kind, key)).fetchone()
        return None if row is None else json.loads(row[0])

    def delete(self, kind: str, key: str) -> None:
        """Remove one record; quiet if there is none."""
        with self._lock:
            self._db.execute("DELETE FROM record WHERE kind=? AND key=?", (kind, key))

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return all records of a kind by key. A record that is no JSON is logged and left out."""
        with self._lock:
            rows = self._db.execute("SELECT key, value FROM record WHERE kind=? ORDER BY key", (kind,)).fetchall()
        records: dict[str, dict[str, Any]] = {}
        for key, value in rows:
            try:
                records[key] = json.loads(value)
            except ValueError as error:
                log.error("%s record %s in %s is damaged (%s): ignored", kind, key, self.path, error)
        return records

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Group several writes: all of them or none survive."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the database; further calls fail."""
        with self._lock:
            self._db.close()
