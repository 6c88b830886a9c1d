"""Images of the other architecture run in the machine, which has an emulator for their programs."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from moorage_host.machine.accelerator import native_arch

from tests.support import buildx
from tests.support.images import busybox_layer, docker_archive
from tests.support.packages import unpacked
from tests.support.vm import Vm, wait_saved

OTHER, MACHINE = {"amd64": ("arm64", "aarch64"), "arm64": ("amd64", "x86_64")}[native_arch()]
IMAGE = f"busybox:{OTHER}"


@pytest.fixture(scope="module")
def foreign_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with the busybox of the architecture that the machine does not have."""
    root = unpacked(f"busybox-{OTHER}", "trixie", "busybox-static", "usr/bin/busybox", architecture=OTHER)
    archive = tmp_path_factory.mktemp("foreign") / "image.tar"
    layer = busybox_layer(root / "usr/bin/busybox")
    archive.write_bytes(
        docker_archive([layer], tags=[IMAGE], change_document=lambda document: document.update(architecture=OTHER))
    )
    return archive


@pytest.fixture
def foreign(engine_ready: Vm, foreign_archive: Path) -> Vm:
    """The machine with that image."""
    engine_ready.docker("load", "-i", str(foreign_archive))
    return engine_ready


def test_container_of_the_other_architecture_runs_and_takes_execs(foreign: Vm) -> None:
    container = foreign.docker("run", "-d", "--platform", f"linux/{OTHER}", IMAGE, "sleep", "1000").strip()
    with contextlib.closing(foreign.api()) as client:
        try:
            exec_run = client.containers.get(container).exec_run
            assert exec_run(["sh", "-c", "uname -m; echo $0; exit 7"]) == (7, f"{MACHINE}\nsh\n".encode())
            assert exec_run(["su", "-s", "/bin/sh", "nobody", "-c", "id -u"]) == (0, b"65534\n")
        finally:
            foreign.docker("rm", "-f", container)


def test_run_without_a_platform_warns_as_docker_does(foreign: Vm) -> None:
    with contextlib.closing(foreign.api()) as client:
        container = client.api.create_container(IMAGE, ["true"])
        try:
            assert "does not match the detected host platform" in container["Warnings"][0]
        finally:
            foreign.docker("rm", container["Id"])


@pytest.mark.parametrize("builder", ["the classic builder", "buildx"])
def test_build_runs_commands_of_the_other_architecture(foreign: Vm, tmp_path: Path, builder: str) -> None:
    buildx.install(tmp_path / "config")
    environment = {
        **os.environ, "DOCKER_CONFIG": str(tmp_path / "config"), "DOCKER_HOST": f"unix://{foreign.paths.docker_socket}",
        "DOCKER_BUILDKIT": str(int(builder == "buildx")),
    }  # fmt: skip

    def docker(*arguments: str) -> str:
        return subprocess.run(
            ["docker", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=True
        ).stdout  # fmt: skip

    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN uname -m > /machine\n")
    assert f"linux/{OTHER}" in docker("buildx", "inspect")
    docker("build", "-q", "--platform", f"linux/{OTHER}", "-t", "made:foreign", str(tmp_path))
    try:
        said = foreign.docker("run", "--rm", "--platform", f"linux/{OTHER}", "made:foreign", "cat", "/machine")
        assert said.strip() == MACHINE
        architecture = foreign.docker("image", "inspect", "-f", "{{.Architecture}}", "made:foreign")
        assert architecture.strip() == OTHER
    finally:
        foreign.docker("rmi", "made:foreign")


def test_emulation_holds_after_a_start_from_the_saved_state(foreign: Vm) -> None:
    foreign.client.stop()
    wait_saved(foreign.paths)
    foreign.client.start()
    run = ("run", "--rm", "--network", "none", "--platform", f"linux/{OTHER}", IMAGE, "uname", "-m")
    assert foreign.docker(*run).strip() == MACHINE
