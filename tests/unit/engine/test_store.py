"""The state database and its copy: what is damaged or gone comes back, and only what was damaged is touched."""

import json
import os
import sqlite3
from pathlib import Path

import pytest
from moorage_guest.store import Store, StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The database's path, after a first run that left three records."""
    path = tmp_path / "moorage.db"
    store = Store(path)
    store.put("container", "a", {"n": 1})
    store.put("container", "a", {"n": 2})
    store.put("container", "b", {"n": 3})
    store.put("volume", "gone", {})
    store.delete("volume", "gone")
    with store.transaction():
        store.put("network", "n", {"tab": "\t\n"})
    store.close()
    return path


def _all(store: Store) -> dict[str, dict[str, dict[str, object]]]:
    return {kind: store.all(kind) for kind in ("container", "network", "volume")}


WHOLE: dict[str, dict[str, dict[str, object]]] = {
    "container": {"a": {"n": 2}, "b": {"n": 3}},
    "network": {"n": {"tab": "\t\n"}},
    "volume": {},
}


def _copy(path: Path) -> Path:
    return path.with_name(path.name + ".records")


def test_damaged_database_is_made_anew_from_its_copy(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    store = Store(path)
    assert _all(store) == WHOLE
    assert store.recovered == 3
    assert store.set_aside is not None and store.set_aside.read_bytes().startswith(b"no database")
    store.close()
    assert Store(path).recovered is None


def test_database_damaged_inside_is_made_anew(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4096))
    store = Store(path)
    assert store.set_aside is not None
    assert _all(store) == WHOLE


def test_lost_database_is_made_anew(path: Path) -> None:
    path.unlink()
    store = Store(path)
    assert _all(store) == WHOLE
    assert store.recovered == 3 and store.set_aside is None


def test_empty_data_root_is_no_recovery(tmp_path: Path) -> None:
    assert Store(tmp_path / "moorage.db").recovered is None


def test_database_without_a_copy_gets_one(path: Path) -> None:
    _copy(path).unlink()
    Store(path).close()
    path.unlink()
    assert _all(Store(path)) == WHOLE


def test_record_that_is_no_json_is_taken_from_the_copy(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE record SET value='{half' WHERE key='a'")
    database.close()
    store = Store(path)
    assert _all(store) == WHOLE
    assert store.get("container", "a") == {"n": 2}
    store.close()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT value FROM record WHERE key='a'").fetchone() == ('{"n":2}',)
    database.close()


def test_damaged_line_of_the_copy_costs_one_version_of_one_record(path: Path) -> None:
    lines = _copy(path).read_bytes().split(b"\n")
    found = next(number for number, line in enumerate(lines) if b'{"n":2}' in line)
    lines[found] = lines[found].replace(b'{"n":2}', b'{"n":8}')
    _copy(path).write_bytes(b"\n".join(lines))
    path.unlink()
    assert _all(Store(path)) == {**WHOLE, "container": {"a": {"n": 1}, "b": {"n": 3}}}


def test_write_that_was_noted_but_not_made_is_made_at_the_next_start(path: Path, tmp_path: Path) -> None:
    older = path.read_bytes()
    store = Store(path)
    with store.transaction():
        store.put("container", "c", {"n": 4})
        store.delete("container", "b")
    store.close()
    path.write_bytes(older)  # as if the daemon had been killed between the copy and the database
    for _ in range(2):
        store = Store(path)
        assert store.all("container") == {"a": {"n": 2}, "c": {"n": 4}}
        store.close()
        path.unlink()


def test_transaction_that_fails_leaves_no_trace_in_the_copy(path: Path) -> None:
    store = Store(path)
    with pytest.raises(KeyError), store.transaction():
        store.put("container", "a", {"n": 9})
        raise KeyError("no")
    assert _all(store) == WHOLE
    store.close()
    path.unlink()
    assert _all(Store(path)) == WHOLE


def test_half_written_last_line_is_survived(path: Path) -> None:
    with _copy(path).open("ab") as file:
        file.write(b'12345678\t["container","a"]\t{"n":')
    store = Store(path)
    store.put("container", "c", {})
    store.close()
    path.unlink()
    assert _all(Store(path)) == {**WHOLE, "container": {"a": {"n": 2}, "b": {"n": 3}, "c": {}}}


def test_copy_does_not_grow_without_end(path: Path) -> None:
    store = Store(path)
    for number in range(400):
        store.put("container", "a", {"n": number, "more": "x" * 10000})
    assert _copy(path).stat().st_size < 2 << 20
    store.close()
    path.unlink()
    assert Store(path).get("container", "a") == {"n": 399, "more": "x" * 10000}


def test_damage_met_while_running_is_healed(path: Path) -> None:
    store = Store(path)
    for number in range(300):
        store.put("other", str(number), {"text": "y" * 3000})
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._db.execute("PRAGMA cache_size=0")
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    store._db.execute("PRAGMA shrink_memory")
    assert len(store.all("other")) == 300
    assert _all(store) == WHOLE
    store.put("container", "c", {})
    store.close()
    assert set(Store(path).all("container")) == {"a", "b", "c"}


def test_newer_schema_is_refused_and_kept(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(StoreError, match="newer engine"):
        Store(path)
    assert json.loads(sqlite3.connect(path).execute("SELECT value FROM record WHERE key='b'").fetchone()[0]) == {"n": 3}


def test_copy_is_for_root_alone(path: Path) -> None:
    assert _copy(path).stat().st_mode & 0o777 == 0o600
