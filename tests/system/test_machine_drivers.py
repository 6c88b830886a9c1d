"""The machine by libvirt's other drivers: root's by the system daemon where that runs, an ordinary user's by the session's."""

import json
import os
import pwd
import subprocess
import sys
from typing import Any

import pytest

from tests.support.vm import CHECKOUT, image_folder

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

# Processes and mounts of their own, which end with the test, and an init that buries orphans.
ALONE = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
INIT = ["tini", "--"]
# Somebody who may read the checkout wherever it lies, and is an ordinary user otherwise.
NOBODY = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
READER = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]


def seen(*command: str) -> dict[str, Any]:
    image_folder()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_root_uses_the_system_daemon_where_it_answers_and_outlives_its_restart() -> None:
    found = seen(*ALONE, "--net", *INIT, sys.executable, "-m", "tests.support.system_libvirt")
    assert (found["uri"], found["state"]) == ("qemu:///system", "ready")
    # QEMU must read root's private folders, which the daemon's own libvirt-qemu could not.
    assert (found["domain"], found["qemu_user"]) == ("moorage", 0)
    assert (found["restarted"], found["restored"], found["left"]) == ("ready", True, [])


def test_ordinary_user_needs_no_rights() -> None:
    found = seen(*ALONE, *INIT, *NOBODY, *READER, sys.executable, "-m", "tests.support.session_libvirt")
    user = pwd.getpwnam("nobody").pw_uid
    assert (found["uri"], found["state"]) == ("qemu:///session", "ready")
    assert (found["user"], found["qemu_user"], found["stopped"]) == (user, user, "stopped")
    assert found["restored"]
