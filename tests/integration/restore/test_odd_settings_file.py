"""Whatever comes into daemon.json's place: agent and daemon neither hang nor grow, say what is wrong, and heal."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.soak.leftovers import agent_status
from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored, wait_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def supervised() -> Iterator[Moored]:
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        daemon.docker("run", "-d", "--name", "lives", "busybox", "sleep", "10000")
        yield daemon


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (_folder, "Is a directory"),
    "fifo": (os.mkfifo, "regular file"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "regular file"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "huge": (lambda path: path.write_text(" " * (2 << 20)), "larger than"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "decode"),
    "no JSON": (lambda path: path.write_text("{"), "JSON"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_settings_file_is_refused_and_the_last_good_one_put_back(supervised: Moored, what: str) -> None:
    make, words = ODD[what]
    file, log = supervised.config_file, supervised.data_root / "log" / "daemon.log"
    state = supervised.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "lives")
    file.write_text(json.dumps({"labels": [f"before={what.replace(' ', '-')}"]}))
    supervised.signal(1)
    wait_for("the label", lambda: "before=" in supervised.docker("info", "-f", "{{.Labels}}"))
    supervised.kill()
    wait_for("a daemon that has the file", lambda: agent_status(supervised)["daemon"]["state"] == "running")
    wait_for("the good file", lambda: file.with_name("daemon.json.good").read_text() == file.read_text())
    good = file.read_text()
    file.unlink()
    make(file)

    before = log.stat().st_size
    pid = supervised.daemon_pid()
    supervised.signal(1)
    wait_for("the refusal", lambda: b"Failed to reload the configuration" in log.read_bytes()[before:])
    assert words in log.read_bytes()[before:].decode()
    assert agent_status(supervised)["daemon"]["pid"] == pid
    assert good.split('"')[3] in supervised.docker("info", "-f", "{{.Labels}}")

    supervised.kill()
    wait_for(
        "the good file to be put back",
        lambda: file.is_file() and not file.is_symlink() and file.read_bytes() == good.encode(),
    )
    wait_for("the daemon to answer", supervised.answers)
    assert words in agent_status(supervised)["config"]["rolled_back"]["message"]
    assert supervised.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "lives") == state
    for path in supervised.data_root.glob("daemon.json.rejected*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
