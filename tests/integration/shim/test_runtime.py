"""How a shim runs the runtime: from where no container can write to it, and started once."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from moorage_guest.shim import kernel

pytestmark = pytest.mark.root

#: Runs a program as a shim's child does.
CHILD = "import sys; from moorage_guest.shim.runtime import _execute; _execute(sys.argv[1:], {'PATH': '/none:/usr/sbin:/usr/bin:/sbin:/bin'})"


def crun() -> str:
    program = shutil.which("crun")
    assert program is not None
    return program


def test_a_program_on_its_own_mount_cannot_be_written_to() -> None:
    descriptor = kernel.open_read_only(crun())
    try:
        assert os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
        with pytest.raises(OSError) as caught:
            os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY)
        assert caught.value.errno in (errno.EROFS, errno.ETXTBSY)
        assert crun() not in Path("/proc/self/mountinfo").read_text()
        assert Path(f"/proc/self/fd/{descriptor}").read_bytes() == Path(crun()).read_bytes()
    finally:
        os.close(descriptor)


def test_crun_does_not_run_itself_again(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=execve,execveat,mount", "-o", str(trace)]
    command += [sys.executable, "-c", CHILD, "crun", f"--root={tmp_path}/crun", "list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["NAME", "PID"]), done.stderr
    started = [line for line in trace.read_text().splitlines() if '["crun"' in line]
    assert len(started) == 1, trace.read_text()


def test_a_program_that_is_nowhere_is_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, "no-such-runtime"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr
