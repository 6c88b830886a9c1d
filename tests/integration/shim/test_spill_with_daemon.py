"""daemon.json's log-spill-size: a container that logs much while moored is away ends, and its whole log is there."""

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import running_moored, wait_for

pytestmark = pytest.mark.root

_SCRIPT = "until [ -e /go ]; do sleep 0.05; done; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line-number-$i; done; exit 6"


def test_a_container_that_logs_a_lot_while_the_daemon_is_away_is_not_held_up() -> None:
    with running_moored("--log-spill-size", "8m") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        daemon.docker("run", "-d", "--network", "none", "--name", "chatty", "busybox", "sh", "-c", _SCRIPT)
        pid = daemon.docker("inspect", "--format", "{{.State.Pid}}", "chatty")
        daemon.kill()
        daemon.sandbox.run("touch", f"/proc/{pid}/root/go")
        wait_for(
            "the container to end", lambda: daemon.sandbox.run("test", "-d", f"/proc/{pid}", check=False).returncode
        )
        daemon.start()
        assert daemon.docker("wait", "chatty") == "6"
        assert daemon.docker("logs", "chatty").split() == [f"line-number-{number}" for number in range(1, 20001)]
        daemon.docker("rm", "chatty")
