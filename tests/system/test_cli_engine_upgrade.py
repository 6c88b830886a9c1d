"""Another engine delivered into the running machine, and back, by the command line; containers do not notice."""

from pathlib import Path

import pytest

from tests.support.engines import build_engine
from tests.support.vm import Vm, moorage

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def running_version() -> str:
    (line,) = [line for line in moorage("engine", "versions").stdout.splitlines() if "(running)" in line]
    return line.split()[0]


def test_engine_is_upgraded_and_put_back_under_a_running_container(
    engine_ready: Vm, container_running: str, tmp_path: Path
) -> None:
    before = engine_ready.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", container_running)
    old = running_version()
    file = tmp_path / "engine.tar.gz"
    build_engine(file, "26.11.99")
    upgraded = moorage("engine", "upgrade", str(file), timeout=600)
    try:
        assert upgraded.returncode == 0, upgraded.stderr
        assert running_version() == "26.11.99"
        engine_ready.wait("ready")
        assert engine_ready.docker("version", "-f", "{{.Server.Version}}").strip() == "26.11.99"
    finally:
        back = moorage("engine", "rollback", timeout=600)
    assert back.returncode == 0, back.stderr
    engine_ready.wait("ready")
    assert running_version() == old
    after = engine_ready.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", container_running)
    assert after == before


def test_engine_file_that_is_none_is_refused_and_nothing_changes(engine_ready: Vm, tmp_path: Path) -> None:
    old = running_version()
    file = tmp_path / "engine.tar.gz"
    file.write_bytes(b"no archive")
    result = moorage("engine", "upgrade", str(file), timeout=600)
    assert result.returncode != 0
    assert running_version() == old
    assert engine_ready.run("ls /var/lib/moorage/engine.incoming 2>/dev/null; true") == ""
