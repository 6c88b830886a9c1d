"""The backend as a process of its own, without a machine: control API, clients, daemon.json, bad input."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_host.async_client import AsyncClient
from moorage_host.backend_process import begin_backend, running
from moorage_host.client import Client
from moorage_host.errors import ErrorCode, HostError
from moorage_host.paths import Paths, user_paths

from tests.support.host import backend_client, backend_pid, user_home, wait_ended

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def home() -> Iterator[Path]:
    with user_home() as folder:
        yield folder


@pytest.fixture
def paths(home: Path) -> Paths:
    return user_paths()


@pytest.fixture
def client(paths: Paths) -> Iterator[Client]:
    with backend_client(paths) as client:
        yield client


def test_first_call_starts_one_backend_and_later_ones_use_it(client: Client, paths: Paths) -> None:
    first, second = client.status().backend.pid, Client(paths).status().backend.pid
    assert first == second == backend_pid(paths)


def test_backend_begun_ahead_is_the_one_that_is_waited_for(client: Client, paths: Paths) -> None:
    def children() -> set[int]:
        return {int(pid) for tasks in Path("/proc/self/task").glob("*/children") for pid in tasks.read_text().split()}

    before = children()
    begin_backend(paths)
    begun = children() - before
    assert {client.status().backend.pid} == begun == children() - before


def test_control_socket_is_the_users_alone(client: Client, paths: Paths) -> None:
    client.status()
    assert paths.backend_socket.stat().st_mode & 0o777 == 0o600
    assert paths.state.stat().st_mode & 0o777 == 0o700


def test_killed_backend_is_replaced_by_the_next_call(client: Client, paths: Paths) -> None:
    first = client.status().backend.pid
    os.kill(first, signal.SIGKILL)
    wait_ended(first)
    assert client.status().backend.pid != first


def test_backend_without_work_ends_by_itself(paths: Paths) -> None:
    with subprocess.Popen([sys.executable, "-m", "moorage_host.backend", "--idle", "3"]) as process:
        assert process.wait(60) == 0
    assert not running(paths)
    assert "ends" in paths.backend_log.read_text()


def test_start_without_an_image_says_how_to_build_one(client: Client) -> None:
    with pytest.raises(HostError, match="there is no image") as caught:
        client.start()
    assert "moorage image build" in caught.value.hint
    assert client.status().state == "absent"


def test_another_host_that_cannot_be_reached_is_told_and_leaves_no_machine(client: Client) -> None:
    with pytest.raises(HostError, match=r"nowhere.invalid:22 cannot be reached over SSH") as caught:
        client.start(libvirt_uri="qemu+ssh://me@nowhere.invalid/system")
    assert "ssh me@nowhere.invalid" in caught.value.hint
    assert client.status().state == "absent"


def test_unreadable_settings_are_told_and_nothing_else_breaks(client: Client, paths: Paths) -> None:
    paths.config.mkdir(parents=True)
    paths.settings.write_text("{ not json")
    with pytest.raises(HostError, match="are not JSON") as caught:
        client.start()
    assert str(paths.settings) in caught.value.message
    assert client.status().state == "absent"


def test_settings_are_changed_whole_or_not_at_all(client: Client, paths: Paths) -> None:
    client.change_settings(memory_mib=1024)
    with pytest.raises(HostError, match="cpus"):
        client.change_settings(memory_mib=4096, cpus=0)
    assert client.settings().memory_mib == 1024


def test_engine_config_is_edited_while_the_engine_is_down(client: Client, paths: Paths) -> None:
    text = '{\n  "debug": true\n}\n'
    assert client.engine_config().content == "{}\n"
    check = client.check_engine_config(text)
    assert (check.ok, [change.key for change in check.changes]) == (True, ["debug"])
    applied = client.apply_engine_config(text)
    assert (applied.ok, applied.pending) == (True, True)
    again = client.engine_config()
    assert (again.content, again.pending) == (text, True)
    assert client.status().config_pending


@pytest.mark.parametrize("text", ['{"debug": tru', '{"no-such-key": 1}', '{"bip": "nonsense"}', '{"log-pipe-size": 1}'])
def test_faulty_engine_config_is_refused_with_its_place_and_not_saved(client: Client, text: str) -> None:
    check = client.check_engine_config(text)
    assert not check.ok
    assert check.faults[0].line == 1
    assert not client.apply_engine_config(text).ok
    assert client.engine_config().content == "{}\n"


def test_guest_questions_without_a_machine_name_the_way_out(client: Client) -> None:
    with pytest.raises(HostError) as caught:
        client.pipes()
    assert (caught.value.code, caught.value.hint) == (ErrorCode.UNAVAILABLE, "moorage start")


def test_nonsense_requests_are_answered_not_fatal(client: Client, paths: Paths) -> None:
    pid = client.status().backend.pid
    for method, params in (
        ("no.such", {}),
        ("engine_config.apply", {}),
        ("settings.set", {"x": 1}),
        ("logs", {"lines": "many"}),
    ):
        with pytest.raises(HostError):
            client.call(method, params)
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(paths.backend_socket))
        stream.sendall(b"\x00\xff nonsense\r\n\r\n")
    assert client.status().backend.pid == pid


def test_stop_and_delete_without_a_machine_are_quiet(client: Client) -> None:
    client.stop()
    client.delete()
    assert client.status().state == "absent"


async def test_asynchronous_client_sees_changes(client: Client, paths: Paths) -> None:
    asynchronous = AsyncClient(paths)
    states = asynchronous.watch()
    first = await anext(states)
    await asynchronous.call("settings.set", type(client.settings()), {"memory_mib": 768})
    async for status in states:
        if status.memory_mib == 768:
            break
    assert first.state == "absent"
    await states.aclose()


def test_backends_log_is_within_reach(client: Client) -> None:
    client.status()
    assert "backend" in client.logs("backend")


def test_second_backend_steps_back(client: Client, paths: Paths) -> None:
    pid = client.status().backend.pid
    assert subprocess.run([sys.executable, "-m", "moorage_host.backend"], timeout=60).returncode == 0
    assert client.status().backend.pid == pid


def test_status_is_json_for_programs(client: Client) -> None:
    assert json.loads(client.status().model_dump_json())["state"] == "absent"
