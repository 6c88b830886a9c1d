"""Root's machine where libvirt's system daemon runs: it is used instead of the embedded driver, and may be started anew."""

import json
import subprocess
import sys

import pytest

from tests.support.vm import CHECKOUT, image_folder

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

ALONE = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "tini",
    "--",
]


def test_root_uses_the_system_daemon_where_it_answers_and_outlives_its_restart() -> None:
    image_folder()
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "tests.support.system_libvirt"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=840,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)
    assert (seen["uri"], seen["state"]) == ("qemu:///system", "ready")
    # QEMU must read root's private folders, which the daemon's own libvirt-qemu could not.
    assert (seen["domain"], seen["qemu_user"]) == ("moorage", 0)
    assert (seen["restarted"], seen["left"]) == ("ready", [])
