"""The real window under a real display against a running machine: what it applies is so inside the guest, what breaks is put back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vm import CHECKOUT, Vm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

DAEMON_JSON = "/var/lib/moorage/daemon.json"
Apply = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A screen of our own."""
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1400x1000x24", "-nolisten", "tcp"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    with os.fdopen(reader) as answer:
        number = answer.readline().strip()
    assert number, "Xvfb did not start"
    yield f":{number}"
    server.terminate()
    server.wait(60)


@pytest.fixture
def apply(engine_ready: Vm, display: str, tmp_path: Path) -> Apply:
    """Open the window, type a daemon.json, press Apply; what the window said."""

    def run(text: str, *how: str) -> dict[str, Any]:
        file, picture = tmp_path / "typed.json", tmp_path / "window.png"
        file.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.window_driver", str(file), str(picture), *how],
            cwd=CHECKOUT,
            env=os.environ | {"DISPLAY": display, "QT_QPA_PLATFORM": "xcb"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert picture.stat().st_size > 10_000
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    return run


def identity(vm: Vm, container: str) -> str:
    return vm.docker("inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", container).strip()


def test_applied_file_is_in_force_inside_the_guest_and_containers_go_on(
    engine_ready: Vm, container_running: str, apply: Apply
) -> None:
    before = identity(engine_ready, container_running)
    booted = engine_ready.run("cat /proc/sys/kernel/random/boot_id")

    said = apply('{"labels": ["window=first"]}')
    assert said["plan"]["mode"] == "Reload" and said["tone"] == "good"
    assert "window=first" in engine_ready.docker("info", "--format", "{{json .Labels}}")

    said = apply(
        '{"labels": ["window=first"], "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 321, "Hard": 321}}}'
    )
    assert said["plan"]["mode"] == "Daemon restart" and said["tone"] == "good" and said["kept"] == [True]
    assert json.loads(engine_ready.run(f"cat {DAEMON_JSON}"))["default-ulimits"]["nofile"]["Soft"] == 321
    assert engine_ready.docker("run", "--rm", "busybox", "sh", "-c", "ulimit -n").strip() == "321"

    assert identity(engine_ready, container_running) == before
    assert engine_ready.run("cat /proc/sys/kernel/random/boot_id") == booted


def test_file_that_the_daemon_refuses_is_put_back_with_its_own_message(
    engine_ready: Vm, container_running: str, apply: Apply
) -> None:
    before = identity(engine_ready, container_running)
    good = '{"labels": ["window=good"]}'
    assert apply(good)["tone"] in ("good", "info")

    broken = '{"labels": ["window=bad"], "bridge": "nosuchbridge0"}'
    said = apply(broken)
    assert said["tone"] == "bad" and "previous file is in force again" in said["heading"]
    assert "nosuchbridge0" in said["text"] and "level=ERROR" not in said["text"]
    assert said["editor"] == broken
    assert engine_ready.run(f"cat {DAEMON_JSON}") == good
    assert "window=good" in engine_ready.docker("info", "--format", "{{json .Labels}}")
    assert identity(engine_ready, container_running) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"labels": [,]}', ["invalid JSON"]),
        ('{"no-such-key": 1, "bip": "no network"}', ["no-such-key", "bip"]),
    ],
)
def test_file_with_faults_never_reaches_the_engine(
    engine_ready: Vm, container_running: str, apply: Apply, text: str, words: list[str]
) -> None:
    def in_force() -> tuple[str, int | None]:
        engine = engine_ready.status().engine
        assert engine is not None
        return engine_ready.run(f"cat {DAEMON_JSON} 2> /dev/null; true"), engine.daemon.pid

    before = in_force()
    said = apply(text, "faulty")
    assert not said["begun"] and len(said["faults"]) == len(words)
    assert all(word in fault for word, fault in zip(words, said["faults"], strict=True))
    assert engine_ready.status().state == "ready" and in_force() == before
