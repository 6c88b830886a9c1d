"""docker buildx with a builder of its own in a container, and docker build beside it."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import buildx
from tests.support.moored import Moored

pytestmark = pytest.mark.root


def run(environment: Mapping[str, str], *argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *argv], env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def without_choice(moored: Moored) -> dict[str, str]:
    """The environment of somebody who never heard of DOCKER_BUILDKIT."""
    environment = dict(moored.docker_environment())
    del environment["DOCKER_BUILDKIT"]
    return environment


def install(moored: Moored) -> None:
    plugins = moored.docker_config / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-buildx").symlink_to(buildx.plugin())


def test_a_builder_in_a_container_is_made_reached_and_removed(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    buildx.write_context(tmp_path)
    moored.docker("build", "-t", buildx.IMAGE, str(tmp_path))
    install(moored)
    environment = without_choice(moored)
    (tmp_path / "buildkitd.toml").write_text("debug = true\n")
    create = ["buildx", "create", "--name", "kit", "--driver", "docker-container"]
    done = run(environment, *create, "--config", str(tmp_path / "buildkitd.toml"), "--driver-opt", "memory=256m")
    assert done.returncode == 0, done
    done = run(environment, "buildx", "inspect", "--bootstrap", "kit")
    assert done.returncode == 0, done
    assert "running" in done.stdout, f"{done}\n{moored.log()}"
    assert "linux/amd64" in done.stdout, "the answer came through the hijacked exec"
    details = moored.api.get("/containers/buildx_buildkit_kit0/json").json
    assert details["HostConfig"]["Privileged"]
    assert details["HostConfig"]["Memory"] == 256 << 20
    assert [(mount["Type"], mount["Destination"]) for mount in details["Mounts"]] == [("volume", "/var/lib/buildkit")]
    shell = ("exec", "buildx_buildkit_kit0", "cat")
    assert "--config /etc/buildkit/buildkitd.toml" in moored.docker(*shell, "/var/lib/buildkit/arguments")
    assert "debug = true" in moored.docker(*shell, "/etc/buildkit/buildkitd.toml")
    asked = moored.docker("exec", "buildx_buildkit_kit0", "head", "-c", "14", "/answers/asked")
    assert asked == "PRI * HTTP/2.0"
    assert "kit" in run(environment, "buildx", "ls").stdout
    done = run(environment, "buildx", "stop", "kit")
    assert done.returncode == 0, done
    assert moored.docker("ps", "-q") == ""
    done = run(environment, "buildx", "rm", "kit")
    assert done.returncode == 0, done
    assert moored.docker("ps", "-aq") == ""
    assert moored.docker("volume", "ls", "-q") == ""


def test_docker_build_just_works_and_finds_the_classic_builder(moored: Moored, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nLABEL plain=yes\n")
    done = run(without_choice(moored), "build", "-t", "plain", str(tmp_path))
    assert done.returncode == 0, done
    assert "Successfully tagged plain:latest" in done.stdout


def test_docker_build_takes_the_classic_builder_when_told_to_though_buildx_is_there(
    fresh_moored: Moored, tmp_path: Path
) -> None:
    install(fresh_moored)
    (tmp_path / "Dockerfile").write_text("FROM busybox\n")
    environment = {**without_choice(fresh_moored), "DOCKER_BUILDKIT": "0"}
    done = run(environment, "build", "-t", "classic", str(tmp_path))
    assert done.returncode == 0, done
    assert "Successfully tagged classic:latest" in done.stdout
