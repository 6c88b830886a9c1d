"""The state database damaged or gone under running containers: everything comes back from its copy, nothing is lost."""

import json
import sqlite3
from collections.abc import Callable, Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored, wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def moored() -> Iterator[Moored]:
    with running_moored("--live-restore") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _furnish(moored: Moored) -> None:
    """Make one of everything that a record is kept of."""
    moored.docker("network", "create", "--subnet", "10.77.0.0/24", "--label", "a=b", "own")
    moored.docker("volume", "create", "--label", "c=d", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "scratch")
    moored.docker(
        "run", "-d", "--name", "web", "--network", "own", "--ip", "10.77.0.9", "-p", "18081:80", "-v", "scratch:/s",
        "-v", "/anonymous", "--restart", "always", "busybox", "sh", "-c", "echo up; echo kept > /file; exec sleep 10000",
    )  # fmt: skip
    moored.docker_run("run", "--name", "done", "--network", "none", "busybox", "sh", "-c", "echo left > /file; exit 3")
    moored.docker("commit", "-c", "LABEL made=here", "done", "made:1")
    wait_for("its first words", lambda: moored.docker("logs", "web") == "up")


def _view(moored: Moored) -> list[str]:
    shown = [json.dumps(json.loads(moored.docker("inspect", name)), indent=1) for name in ("web", "done")]
    for kind, name in (("network", "own"), ("network", "bridge"), ("volume", "scratch"), ("image", "made:1")):
        shown.append(moored.docker(kind, "inspect", name))
    listing = ("volume", "ls"), ("network", "ls"), ("image", "ls", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}")
    return [*shown, *(moored.docker(*words) for words in listing), moored.docker("info", "-f", "{{.ID}}")]


def _garbage(moored: Moored) -> None:
    for path in moored.data_root.glob("moorage.db*"):
        if path.name != "moorage.db.records":
            path.write_bytes(b"this was a database" * 2000)


def _gone(moored: Moored) -> None:
    for path in moored.data_root.glob("moorage.db*"):
        if path.name != "moorage.db.records":
            path.unlink()


@pytest.mark.parametrize("spoil", [_garbage, _gone])
def test_everything_is_as_it_was(moored: Moored, spoil: Callable[[Moored], None]) -> None:
    _furnish(moored)
    before = _view(moored)
    moored.kill()
    spoil(moored)
    moored.start()
    assert _view(moored) == before
    assert "made anew from its copy" in json.dumps(moored.api.get("/info").json["Warnings"])
    assert moored.docker("exec", "web", "cat", "/file") == "kept"
    assert "left" in moored.docker("diff", "done") or moored.docker("cp", "done:/file", "-")
    assert "volume is in use" in moored.docker_run("volume", "rm", "scratch").stderr
    # Nothing of it is swept by the next start either, and it can all go.
    moored.kill()
    moored.start()
    assert _view(moored) == before
    moored.docker("rm", "-f", "-v", "web", "done")
    moored.docker("volume", "rm", "scratch")
    moored.docker("network", "rm", "own")
    moored.docker("image", "rm", "made:1")
    assert moored.docker("volume", "ls", "-q") == ""


@pytest.mark.parametrize("damage", ["{half", '{"version":1}'])
def test_damaged_records_come_back_one_by_one(moored: Moored, damage: str) -> None:
    _furnish(moored)
    before = _view(moored)
    moored.kill()
    with sqlite3.connect(moored.data_root / "moorage.db") as database:
        database.execute("UPDATE record SET value=? WHERE kind IN ('container', 'network', 'volume')", (damage,))
    database.close()
    moored.start()
    assert _view(moored) == before
    moored.docker("rm", "-f", "-v", "web", "done")


def test_damaged_record_without_a_copy_touches_its_container_alone(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "whole", "--network", "none", "busybox", "sleep", "10000")
    lost = moored.docker("run", "-d", "--name", "lost", "--network", "none", "busybox", "sleep", "10000")
    before = moored.docker("inspect", "whole")
    moored.kill()
    with sqlite3.connect(moored.data_root / "moorage.db") as database:
        database.execute("UPDATE record SET value='{}' WHERE kind='container' AND key=?", (lost,))
    database.close()
    (moored.data_root / "moorage.db.records").unlink()
    moored.start()
    assert moored.docker("inspect", "whole") == before
    warnings = [text for text in moored.api.get("/info").json["Warnings"] if "unmanaged" in text]
    assert len(warnings) == 1 and lost in warnings[0]
    assert (moored.data_root / "mounts" / lost / "diff").is_dir()
    moored.docker("stop", "-t", "0", "lost")
    moored.docker("rm", "-f", "whole")


def test_without_database_and_copy_what_runs_goes_on_and_can_be_stopped(moored: Moored) -> None:
    _furnish(moored)
    pid = moored.docker("inspect", "-f", "{{.State.Pid}}", "web")
    moored.kill()
    _garbage(moored)
    (moored.data_root / "moorage.db.records").unlink()
    moored.start()
    moored.sandbox.run("kill", "-0", pid)
    assert moored.sandbox.run("nsenter", "-t", pid, "-m", "--", "cat", "/file").stdout == "kept\n"
    web = moored.docker("ps", "--no-trunc", "--format", "{{.ID}}", "--filter", "name=web")
    assert f"container {web} is unmanaged" in json.dumps(moored.api.get("/info").json["Warnings"])
    assert "left\n" in [path.read_text() for path in (moored.data_root / "mounts").glob("*/diff/file")]
    moored.docker("stop", "-t", "0", "web")
    wait_for("its end", lambda: moored.sandbox.run("kill", "-0", pid, check=False).returncode != 0)
