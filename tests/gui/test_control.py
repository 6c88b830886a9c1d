"""The window's view of the control API, against a real backend whose machine is off."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moorage_gui.bridge import Backend
from moorage_gui.control import HostBackend, view
from moorage_gui.engine import DockerEngine, EngineUnreachable, ports
from moorage_gui.engine import view as container
from moorage_gui.views import MachineState
from moorage_host.client import BackendProcess, Client, HostError, MachineStatus
from moorage_host.paths import user_paths


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gui-") as folder:
        yield Path(folder)


@pytest.fixture
def backend(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostBackend]:
    """A backend process of its own, ended afterwards."""
    for name, folder in {
        "HOME": "",
        "XDG_STATE_HOME": "s",
        "XDG_CONFIG_HOME": "c",
        "XDG_DATA_HOME": "d",
        "DOCKER_CONFIG": "k",
    }.items():
        monkeypatch.setenv(name, str(home / folder))
    client = Client(user_paths())
    client.paths.config.mkdir(parents=True)
    client.paths.settings.write_text(json.dumps({"libvirt_uri": "test:///default"}))
    yield HostBackend(client)
    client.stop_backend()


def test_machine_that_was_never_made_is_absent_and_everything_else_answers(backend: HostBackend) -> None:
    typed: Backend = backend
    assert typed.status().state is MachineState.ABSENT
    assert json.loads(typed.config()) == {}
    answer = typed.apply_config('{"debug": true}')
    assert answer.ok and answer.stored
    assert json.loads(typed.config()) == {"debug": True}
    refused = typed.apply_config('{"pipe-size": 1}')
    assert not refused.ok and "64 KiB" in refused.message
    assert backend.docker_socket() is None


def test_resources_are_stored_and_other_settings_stay(backend: HostBackend) -> None:
    found = backend.settings()
    assert 1 <= found.cpus <= found.most_cpus and found.memory_mib <= found.most_memory_mib
    backend.save_settings(replace(found, cpus=1, memory_mib=1024, disk_gib=found.disk_gib + 4))
    again = backend.settings()
    assert (again.cpus, again.memory_mib, again.disk_gib) == (1, 1024, found.disk_gib + 4)
    assert found.saved_start and again.saved_start
    assert backend._client.settings().libvirt_uri == "test:///default"


def test_another_host_bounds_the_resources_by_itself_and_one_that_cannot_be_is_refused(backend: HostBackend) -> None:
    away = replace(backend.settings(), libvirt_uri="qemu+ssh://me@box/system", cpus=96)
    backend.save_settings(away)
    found = backend.settings()
    assert (found.libvirt_uri, found.cpus, found.most_cpus) == (away.libvirt_uri, 96, 256)
    with pytest.raises(HostError, match="SSH server"):
        backend.save_settings(replace(found, libvirt_uri="qemu+tls://box/system"))
    assert backend.settings() == found


def test_saved_start_is_one_tick_and_more_than_that_stays(backend: HostBackend) -> None:
    def tick(wanted: bool) -> str:
        backend.save_settings(replace(backend.settings(), saved_start=wanted))
        return backend._client.settings().saved_start

    assert (tick(False), tick(True)) == ("off", "auto")
    backend._client.change_settings(saved_start="on")
    assert tick(True) == "on"


def test_backend_that_is_killed_is_replaced_at_the_next_question(backend: HostBackend) -> None:
    status = backend._client.status()
    os.kill(status.backend.pid, signal.SIGKILL)
    for _ in range(50):
        try:
            again = backend._client.status()
        except HostError:
            continue
        break
    assert again.backend.pid != status.backend.pid


def test_start_without_an_image_fails_with_a_sentence(backend: HostBackend) -> None:
    with pytest.raises(HostError) as caught:
        backend.start(lambda _: None)
    assert len(str(caught.value)) > 20 and "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("absent", "ABSENT"),
        ("stopped", "OFF"),
        ("starting", "STARTING"),
        ("booted", "RUNNING"),
        ("ready", "RUNNING"),
        ("stopping", "STOPPING"),
        ("paused", "PAUSED"),
        ("failed", "FAILED"),
    ],
)
def test_every_state_of_the_machine_has_its_view(state: str, shown: str) -> None:
    status = MachineStatus.model_validate(
        {
            "state": state,
            "since": 1,
            "name": "m",
            "message": "why",
            "warning": "tcg",
            "backend": BackendProcess(pid=1, version="1", since=1),
        }
    )
    found = view(status)
    assert found.state is MachineState[shown] and found.detail == "why" and found.warning == "tcg" and found.state.words


def test_engine_that_is_not_there_is_said_in_a_sentence() -> None:
    with pytest.raises(EngineUnreachable, match="start it first"):
        DockerEngine(lambda: None).containers()


def test_engine_that_hangs_up_is_said_in_a_sentence(home: Path) -> None:
    path = home / "docker.sock"

    def hang_up(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=hang_up, args=(listener,))
        thread.start()
        engine = DockerEngine(lambda: path)
        with pytest.raises(EngineUnreachable, match="does not answer at"):
            engine.containers()
        engine.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
        assert not thread.is_alive()


def test_ports_are_named_once_for_both_families() -> None:
    entries: list[dict[str, Any]] = [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"PrivatePort": 443},
    ]
    assert ports(entries) == "8080→80/tcp"
    assert (
        container(
            {"Id": "ab" * 32, "Names": ["/web"], "Image": "i", "State": "running", "Status": "Up", "Ports": entries}
        ).name
        == "web"
    )


def test_program_says_how_it_is_used() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("moorage-gui"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
    )
    assert done.returncode == 0 and "--page" in done.stdout and not done.stderr
