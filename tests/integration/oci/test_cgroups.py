"""Statistics and limits of a running container are what the kernel has."""

from collections.abc import Iterator

import pytest
from moorage_guest import sysinfo
from moorage_guest.oci import cgroups
from moorage_guest.oci.spec import cgroup_path

from tests.support.moored import wait_for
from tests.support.oci import Bench, oci_bench

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with oci_bench() as found:
        yield found


def test_limits_reach_the_cgroup_and_statistics_come_back(bench: Bench) -> None:
    request = bench.request(
        "/bin/sh",
        "-c",
        "while :; do :; done",
        memory=64 << 20,
        memory_swap=64 << 20,
        nano_cpus=200_000_000,
        pids_limit=40,
    )
    path = cgroup_path(request.container_id, bench.cgroup_parent)
    with bench.started(request) as pid:
        assert cgroups.processes(path) == [pid]
        first = wait_for("a throttled period", lambda: _throttled(path))
        assert first["memory_stats"]["limit"] == 64 << 20
        assert 0 < first["memory_stats"]["usage"] < 64 << 20
        assert first["pids_stats"] == {"current": 1, "limit": 40}
        assert first["cpu_stats"]["online_cpus"] == sysinfo.cpu_count()
        second = cgroups.read_stats(path)
        used = [each["cpu_stats"]["cpu_usage"]["total_usage"] for each in (first, second)]
        assert 0 < used[0] <= used[1]
        assert second["cpu_stats"]["system_cpu_usage"] >= first["cpu_stats"]["system_cpu_usage"] > 0
        assert set(first["blkio_stats"]) >= {"io_service_bytes_recursive", "io_serviced_recursive"}


def _throttled(path: str) -> dict[str, dict[str, dict[str, int]]] | None:
    stats = cgroups.read_stats(path)
    return stats if stats["cpu_stats"]["throttling_data"]["throttled_periods"] else None


def test_a_paused_container_is_frozen(bench: Bench) -> None:
    request = bench.request("/bin/sleep", "600")
    path = cgroup_path(request.container_id, bench.cgroup_parent)
    with bench.started(request):
        assert not cgroups.is_frozen(path)
        bench.crun("pause", request.container_id)
        assert cgroups.is_frozen(path)
        bench.crun("resume", request.container_id)
        assert not cgroups.is_frozen(path)


def test_a_container_that_is_gone_reads_as_zeros() -> None:
    stats = cgroups.read_stats("/docker/nothing")
    assert stats["pids_stats"]["current"] == 0
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert cgroups.processes("/docker/nothing") == []
