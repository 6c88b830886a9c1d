"""Differences that dockerd's own suites (integration, integration-cli) found, each closed and kept closed."""

import pytest

from tests.support.moored import Moored, running_moored


def test_link_to_a_container_in_anothers_network_leads_to_that_ones_address(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "owner", "busybox", "sleep", "1000")
    moored.docker("run", "-d", "--name", "guest", "--net=container:owner", "busybox", "sleep", "1000")
    hosts = moored.docker("run", "--rm", "--link", "guest:db", "busybox", "cat", "/etc/hosts")
    address = moored.docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "owner")
    assert any(line.split()[:2] == [address, "db"] for line in hosts.splitlines())
    moored.docker("rm", "-f", "owner", "guest")


def test_volume_takes_no_propagation(moored: Moored) -> None:
    done = moored.docker_run("run", "-v", "foo:/test:shared", "busybox", "true")
    assert done.returncode == 125 and "invalid mount config" in done.stderr


def test_a_program_is_no_working_folder(moored: Moored) -> None:
    done = moored.docker_run("run", "--rm", "-w", "/bin/cat", "busybox", "true")
    assert done.returncode == 125 and "Cannot mkdir: /bin/cat is not a directory" in done.stderr, done.stderr


@pytest.mark.parametrize("keys", ["ctrl-A,a", "ctrl-1", "ab"])
def test_detach_keys_are_those_of_docker(moored: Moored, keys: str) -> None:
    container = moored.docker("create", "-it", "busybox", "true")
    query = {"stream": "1", "stdout": "1", "detachKeys": keys}
    refused = moored.api.call("POST", f"/containers/{container}/attach", query=query, check=False)
    assert refused.status == 400 and f"Invalid detach keys ({keys}) provided" in refused.body.decode()


def test_info_tells_how_the_daemon_confines_containers() -> None:
    with running_moored("--seccomp-profile=unconfined", "--no-new-privileges") as moored:
        info = moored.api.get("/info").json
        assert {"name=seccomp,profile=unconfined", "name=no-new-privileges"} <= set(info["SecurityOptions"])
        assert "WARNING: daemon is not using the default seccomp profile" in info["Warnings"]
