"""Debian's sshd, unpacked but not installed, for one user who runs it, with keys of its own."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.packages import unpacked

CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowStreamLocalForwarding yes
"""


def packages_root() -> Path:
    """Return the root with the package of this system's own release, unpacked on first use (about 120 MB)."""
    release = re.search(r'^VERSION_CODENAME="?(\w+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    assert release is not None, "/etc/os-release names no release"
    return unpacked("sshd-root", release.group(1), "openssh-server", "usr/sbin/sshd")


def libraries(folder: Path, *programs: Path) -> Path:
    """A folder with those libraries of the unpacked root that this system has not."""
    folder.mkdir()
    for program in programs:
        told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        for name in re.findall(r"(\S+) => not found", told):
            (found,) = {path.resolve() for path in packages_root().glob(f"usr/lib/*/{name}")} or {
                path.resolve() for path in packages_root().glob(f"lib/*/{name}")
            }
            (folder / name).symlink_to(found)
    return folder


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def sshd(folder: Path, port: int, be_user: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """sshd on 127.0.0.1, from when it listens. `folder` has its `host` key and the `authorized` ones; `be_user` is put before the command."""
    root = packages_root()
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    (folder / "config").chmod(0o644)
    command = [str(root / "usr/sbin/sshd"), "-D", "-e", "-f", str(folder / "config")]
    programs = [root / "usr/sbin/sshd"]
    for name, option in (("sshd-session", "SshdSessionPath"), ("sshd-auth", "SshdAuthPath")):
        helper = root / "usr/lib/openssh" / name
        if helper.exists():  # from OpenSSH 9.8, or 10.0, on
            command += ["-o", f"{option}={helper}"]
            programs.append(helper)
    shelf = folder / "libraries"
    shutil.rmtree(shelf, ignore_errors=True)
    environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(libraries(shelf, *programs))}
    process = subprocess.Popen(
        [*be_user, *command], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    said: list[str] = []
    listens = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "Server listening" in line:
                listens.set()
        listens.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert listens.wait(60) and process.poll() is None, "".join(said)
        yield process
    finally:
        process.terminate()
        process.wait(60)
