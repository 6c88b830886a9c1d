"""Where the daemon listens when nothing says where."""

from pathlib import Path

from moorage_contract.daemon_config import DaemonConfig
from moorage_guest.daemon import default_hosts
from moorage_guest.paths import ExecRoot


def test_under_dockerds_name_it_listens_where_dockerd_does() -> None:
    root = ExecRoot(Path("/run/moorage"))
    for config, as_dockerd, hosts in (
        (DaemonConfig(), False, ("unix:///run/moorage/docker.sock",)),
        (DaemonConfig(tlsverify=True), False, ("unix:///run/moorage/docker.sock",)),
        (DaemonConfig(), True, ("unix:///var/run/docker.sock",)),
        (DaemonConfig(tlsverify=True), True, ("tcp://localhost:2376",)),
    ):
        assert default_hosts(config, root, as_dockerd=as_dockerd) == hosts
