"""What a container that means ill can reach of the machine it runs on: descriptors, folders, sockets, processes, memory."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from moorage_guest.engine.files import open_root
from moorage_guest.errors import Conflict

from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    """A supervised daemon, as in the machine, with a running container ``web`` that shares its memory and has run an exec."""
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        daemon.docker(
            "run", "-d", "--name", "web", "--ipc", "shareable", "-v", "vol:/vol", "busybox", "sh", "-c",
            "echo secret; exec sleep 10000",
        )  # fmt: skip
        daemon.docker("exec", "web", "true")
        yield daemon


#: Says which descriptors beside the standard ones the shell was started with.
_MORE = "for each in /proc/$$/fd/*; do n=${each##*/}; [ $n -gt 2 ] && readlink $each; done; true"


def test_no_descriptor_of_the_daemons_comes_along(moored: Moored) -> None:
    for command in (("run", "--rm"), ("run", "--rm", "--privileged"), ("run", "--rm", "-i"), ("run", "--rm", "-t")):
        # Busybox' shell keeps its terminal at 10.
        seen = moored.docker(*command, "busybox", "sh", "-c", _MORE, input="" if "-i" in command else None).split()
        assert set(seen) <= {"/dev/tty", "/dev/pts/0"}, command
    for options in ((), ("-t",), ("-i",), ("--privileged",)):
        seen = moored.docker("exec", *options, "web", "sh", "-c", _MORE, input="" if "-i" in options else None).split()
        assert set(seen) <= {"/dev/tty", "/dev/pts/0"}, options


@pytest.mark.parametrize("option", [(), ("--user", "1000:1000"), ("-t",)], ids=["root", "user", "terminal"])
def test_the_machines_null_device_is_given_to_nobody(moored: Moored, option: tuple[str, ...]) -> None:
    """Whoever owns it can close it to all others by its descriptor, and the runtime makes a process's user its owner."""
    status = Path("/dev/null").stat()
    ask = ("stat", "-L", "-c", "%d %i", "/proc/self/fd/0")
    for command in (("run", "--rm", *option, "busybox"), ("exec", *option, "web")):
        seen = moored.docker(*command, *ask).split()
        assert seen != [str(status.st_dev), str(status.st_ino)], command
    assert moored.docker("exec", *option, "web", "readlink", "/proc/self/fd/0").strip() in ("/dev/null", "/dev/pts/0")


def test_no_working_folder_leads_out_by_a_descriptor_of_the_runtime(moored: Moored) -> None:
    """CVE-2024-21626: a folder of the machine that the runtime has open, entered by its number."""
    for number in range(3, 10):
        for command in (
            ("run", "--rm", "-w", f"/proc/self/fd/{number}", "busybox"),
            ("exec", "-w", f"/proc/self/fd/{number}", "web"),
        ):
            done = moored.docker_run(*command, "sh", "-c", "pwd; ls -d ../../../../../var/tmp/mo-*")
            assert "mo-" not in done.stdout, (command, done.stdout)
            assert done.returncode != 0 or done.stdout.startswith("/"), (command, done.stdout)


def test_the_runtime_cannot_be_overwritten_from_inside(moored: Moored) -> None:
    """CVE-2019-5736: /proc/self/exe of a runtime that enters the container is a file of the machine."""
    script = "#!/proc/self/exe\n"
    moored.docker("exec", "-i", "web", "sh", "-c", "cat > /evil; chmod +x /evil", input=script)
    watch = "for i in $(seq 300); do for p in /proc/[0-9]*; do [ $p != /proc/self ] && (echo > $p/exe) 2>/dev/null && echo wrote $p; done; done"
    writer = moored.docker_popen("exec", "web", "sh", "-c", watch)
    for _ in range(5):
        moored.docker_run("exec", "web", "/evil")
        moored.docker_run("exec", "web", "true")
    out, _ = writer.communicate(timeout=60)
    assert b"wrote" not in out
    assert moored.docker("run", "--rm", "busybox", "echo", "whole") == "whole"


def test_what_the_daemon_keeps_is_closed_to_other_users(moored: Moored) -> None:
    """Whoever gets out of a container as an ordinary user finds neither sockets nor logs, files or memory of containers."""
    identity = moored.docker("inspect", "-f", "{{.Id}}", "web")
    paths = [
        moored.docker("inspect", "-f", "{{.LogPath}}", "web"),
        moored.docker("inspect", "-f", "{{.GraphDriver.Data.MergedDir}}/bin", "web"),
        moored.docker("inspect", "-f", "{{.HostsPath}}", "web"),
        str(moored.exec_root / "shm" / identity),
        str(moored.exec_root / "shim" / identity / "config.json"),
        str(moored.exec_root / "exec" / identity),
        str(moored.exec_root / "net" / "sandbox"),
        str(moored.data_root / "layers"),
        str(moored.data_root / "moorage.db"),
        str(moored.data_root / "log" / "daemon.log"),
    ]
    asking = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]
    for path in paths:
        assert Path(f"/proc/{moored.sandbox.init_pid}/root{path}").exists(), path
        assert (
            moored.sandbox.run(
                *asking, f"if [ -d {path} ]; then ls {path}/; else cat {path}; fi", check=False
            ).returncode
            != 0
        ), path
    for folder, _, names in os.walk(moored.exec_root):
        for name in names:
            status = (Path(folder) / name).lstat()
            if stat.S_ISSOCK(status.st_mode):
                assert stat.S_IMODE(status.st_mode) == 0o600, name


def test_a_container_in_the_machines_network_finds_no_socket_without_a_path(moored: Moored) -> None:
    """Abstract sockets belong to a network: whoever shares it can connect, whatever its root folder."""
    lines = moored.docker("run", "--rm", "--network", "host", "busybox", "cat", "/proc/net/unix").splitlines()
    assert not [line for line in lines if " @" in line]
    assert any(line.endswith("/docker.sock") for line in lines), "it does see the daemon's sockets, by name only"


def test_a_container_that_sees_the_machines_processes_gets_into_none(moored: Moored) -> None:
    script = "for p in /proc/[0-9]*; do ls $p/root/ >/dev/null 2>&1 && cat $p/comm; readlink $p/fd/0 $p/fd/3 $p/exe >/dev/null 2>&1 && cat $p/comm; done; true"
    seen = moored.docker("run", "--rm", "--pid", "host", "busybox", "sh", "-c", script).split()
    assert set(seen) <= {"sh", "sleep"}, "only containers as powerful as itself"
    for shown in ("environ", "mem", "maps", "cwd/state.json"):
        assert not moored.docker(
            "run", "--rm", "--pid", "host", "busybox", "sh", "-c",
            f"for p in /proc/[0-9]*; do case $(cat $p/comm) in moor*) head -c 1 $p/{shown} 2>/dev/null;; esac; done; true",
        )  # fmt: skip


def test_files_are_copied_from_no_process_that_has_got_the_pid_of_one_that_ended(
    moored: Moored, tmp_path: Path
) -> None:
    mine = cast("Any", SimpleNamespace(id="x" * 64, state=SimpleNamespace(pid=os.getpid())))
    (tmp_path / "state.json").write_text(json.dumps({"pid": os.getpid(), "start_time": 1, "exit": None}))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(Conflict, match="has just ended"):
        open_root(mine, tmp_path)
    (tmp_path / "state.json").unlink()
    with pytest.raises(Conflict, match="has just ended"):
        open_root(mine, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert moored.docker("cp", "web:/etc/passwd", str(tmp_path / "passwd")) == ""
