"""Pulls and pushes go on with the next daemon when theirs is killed."""

import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for
from tests.support.registry import registry

pytestmark = pytest.mark.root

#: Bytes of the image's layer, which nothing can pack; it takes longer than the test needs to stop the registry.
SIZE = 96 << 20


@pytest.fixture(scope="module")
def supervised() -> Iterator[Moored]:
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def test_docker_push_and_pull_do_not_notice_that_the_daemon_is_killed(supervised: Moored, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(SIZE))
    with tarfile.open(tmp_path / "big.tar", "w") as archive:
        archive.add(tmp_path / "big", "big")
    with registry(tmp_path / "registry", sandbox_command=supervised.sandbox.command()) as away:
        name = f"{away.host}/outlives:1"
        pid = supervised.sandbox.run("pgrep", "-f", "registry serve").stdout.split()[0]

        def kill_meanwhile(*command: str, first: bytes) -> str:
            """Run a command; while the registry says nothing its daemon is killed. Return what it prints afterwards."""
            client = supervised.docker_popen(*command, stdout=subprocess.PIPE)
            assert client.stdout is not None
            assert first in client.stdout.readline()
            supervised.sandbox.run("kill", "-STOP", pid)
            before = supervised.daemon_pid()
            supervised.kill()
            wait_for(
                "another daemon",
                lambda: supervised.pid_file.exists() and supervised.pid_file.read_text() not in ("", str(before)),
            )
            if command[0] == "pull":
                assert supervised.docker("images", "-q", name) == "", (
                    "it was pulled before the kill: a larger image is needed"
                )
            supervised.sandbox.run("kill", "-CONT", pid)
            os.kill(away.process.pid, signal.SIGCONT)  # nsenter, which stops with its child
            out, err = client.communicate(timeout=2 * DEADLINE)
            assert client.returncode == 0, err
            return out.decode()

        image = supervised.docker("import", str(tmp_path / "big.tar"), name)
        assert "digest: sha256:" in kill_meanwhile("push", name, first=b"The push refers to")
        supervised.docker("rmi", name)
        assert "Downloaded newer image" in kill_meanwhile("pull", name, first=b"Pulling from")
        assert supervised.docker("images", "-q", "--no-trunc", name) == image
        supervised.docker("rmi", name)
