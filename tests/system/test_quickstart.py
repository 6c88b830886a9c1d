"""quickstart, run as its user runs it, in a home of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_images import build

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A new home with a short path (it holds sockets); the image builder's cache is the user's. Its machine goes at the end."""
    home = Path(tempfile.mkdtemp(prefix="mq-", dir="/tmp"))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DOCKER_"))}
    variables |= {"HOME": str(home), "MOORAGE_IMAGE_CACHE": str(build.default_cache())}
    try:
        yield variables
    finally:
        moorage = TOP / ".venv/bin/moorage"
        for arguments in (["delete", "-y"], ["backend", "stop"]):
            subprocess.run([moorage, *arguments], env=variables, capture_output=True, timeout=300)
        shutil.rmtree(home, ignore_errors=True)


def quickstart(environment: dict[str, str]) -> str:
    done = subprocess.run(
        [TOP / "quickstart"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def proof(output: str) -> list[tuple[str, str]]:
    """PID and start of the container, as printed before and after the kill."""
    assert "Same process, same start, lines 1 to" in output, output
    return re.findall(r"^Container moorage-proof: PID (\d+), started (\S+), at line", output, re.MULTILINE)


def test_container_outlives_its_daemon_and_the_second_run_starts_nothing_anew(environment: dict[str, str]) -> None:
    first = quickstart(environment)
    second = quickstart(environment)
    seen = proof(first) + proof(second)
    assert len(seen) == 4 and len(set(seen)) == 1
    assert "Loading busybox" in first
    for step in ("Loading busybox", "Running moorage-proof", "Installing packages", "compressing the root"):
        assert step not in second


def without_docker(path: str, scratch: Path) -> str:
    """The same PATH, but for docker: a folder that has it is replaced by one of links to everything else."""
    folders = []
    for number, folder in enumerate(path.split(":")):
        if (Path(folder) / "docker").exists():
            mirror = scratch / str(number)
            mirror.mkdir()
            for file in Path(folder).iterdir():
                if file.name != "docker":
                    (mirror / file.name).symlink_to(file)
            folder = str(mirror)
        folders.append(folder)
    return ":".join(folders)


def test_no_docker_cli_is_needed(environment: dict[str, str], tmp_path: Path) -> None:
    output = quickstart(environment | {"PATH": without_docker(environment["PATH"], tmp_path)})
    assert proof(output)
    assert "there is no docker CLI here" in output
