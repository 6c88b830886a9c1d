"""The command line as a user runs it, without a machine: what it says, where, and with which exit status."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_host.paths import Paths, user_paths

from tests.support.host import backend_client, user_home

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def paths() -> Iterator[Paths]:
    with user_home():
        paths = user_paths()
        with backend_client(paths):
            yield paths


def moorage(
    *arguments: str, stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("moorage")
    env = os.environ | {"COLUMNS": "200"} | (environment or {})
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120, input=stdin, env=env)


def test_status_is_a_table_or_json_and_tells_by_its_exit_status(paths: Paths) -> None:
    plain, asked = moorage("status"), moorage("status", "--json")
    assert (plain.returncode, asked.returncode) == (3, 3)
    assert "moorage: absent" in plain.stdout
    assert json.loads(asked.stdout)["state"] == "absent"


def test_error_goes_to_stderr_with_what_to_try(paths: Paths) -> None:
    result = moorage("start", "--image", "/nowhere/at/all")
    assert (result.returncode, result.stdout) == (4, "")
    assert "there is no image in /nowhere/at/all" in result.stderr
    assert "moorage image build" in result.stderr


def test_steps_are_shown_on_stderr(paths: Paths) -> None:
    assert "checking the image" in moorage("start", "--image", "/nowhere").stderr


@pytest.mark.parametrize(
    "arguments",
    [["start", "--cpus", "0"], ["start", "--accelerator", "warp"], ["settings", "nonsense"], ["settings", "no-such=1"]],
)
def test_wrong_usage_is_status_2(paths: Paths, arguments: list[str]) -> None:
    assert moorage(*arguments).returncode == 2


def test_settings_are_kept(paths: Paths) -> None:
    assert moorage("settings", "memory-mib=777").returncode == 0
    assert json.loads(moorage("settings").stdout)["memory_mib"] == 777


def test_docker_without_a_machine_says_to_start_one(paths: Paths) -> None:
    result = moorage("docker", "ps", "--all")
    assert (result.returncode, "moorage start" in result.stderr) == (6, True)


def test_socket_that_a_killed_backend_left_is_no_engine(paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(paths.docker_socket))
    try:
        assert moorage("docker", "ps").returncode == 6
    finally:
        paths.docker_socket.unlink()


def test_docker_without_a_docker_says_how_to_get_one(paths: Paths, tmp_path: Path) -> None:
    result = moorage("docker", "ps", environment={"PATH": str(tmp_path)})
    assert (result.returncode, "docker-cli" in result.stderr) == (4, True)


def test_docker_arguments_reach_the_users_docker_as_they_are(paths: Paths, tmp_path: Path) -> None:
    fake = tmp_path / "docker"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "context:$DOCKER_CONTEXT"\n')
    fake.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(paths.docker_socket))
    listener.listen()
    try:
        result = moorage(
            "docker",
            "run",
            "--rm",
            "-it",
            "--help",
            "x y",
            environment={"PATH": f"{tmp_path}:/usr/bin:/bin", "DOCKER_CONTEXT": "other"},
        )
    finally:
        listener.close()
        paths.docker_socket.unlink()
    assert result.stdout.splitlines() == [
        "--host",
        f"unix://{paths.docker_socket}",
        "run",
        "--rm",
        "-it",
        "--help",
        "x y",
        "context:",
    ]


def test_config_is_set_checked_and_read_with_the_engine_down(paths: Paths) -> None:
    assert moorage("config", "set", "debug", "true").returncode == 0
    assert json.loads(moorage("config", "get", "debug").stdout) is True
    broken = moorage("config", "validate", "-", stdin='{\n  "debgu": true\n}')
    assert (broken.returncode, "line 2" in broken.stdout) == (2, True)
    refused = moorage("config", "apply", "-", stdin="{")
    assert (refused.returncode, "nothing was changed" in refused.stderr) == (2, True)
    assert json.loads(moorage("config", "get").stdout) == {"debug": True}


def test_config_edit_goes_through_the_editor(paths: Paths, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf \'{"labels": ["edited=yes"]}\' > "$1"\n')
    editor.chmod(0o755)
    result = moorage("config", "edit", stdin="y\n", environment={"EDITOR": str(editor), "VISUAL": ""})
    assert result.returncode == 0, result.stderr
    assert "edited=yes" in moorage("config", "get").stdout


def test_log_pipe_size_is_refused_with_the_reason(paths: Paths) -> None:
    result = moorage("config", "set", "log-pipe-size", "1048576")
    assert (result.returncode, "64 KiB" in result.stderr) == (2, True)


def test_guest_verbs_without_a_machine_name_the_way_out(paths: Paths) -> None:
    for arguments in (["pipes"], ["logs"], ["ssh", "--", "true"], ["engine", "versions"], ["engine", "kill"]):
        result = moorage(*arguments)
        assert (result.returncode, "moorage start" in result.stderr) == (6, True), arguments


def test_console_before_the_first_start_says_so(paths: Paths) -> None:
    assert "has not been started yet" in moorage("console").stderr


def test_delete_asks_first(paths: Paths) -> None:
    assert moorage("delete", stdin="n\n").returncode == 1
    assert moorage("delete", "--yes").returncode == 0


def test_every_verb_explains_itself(paths: Paths) -> None:
    text = moorage("--help").stdout
    for verb in (
        "start",
        "stop",
        "restart",
        "kill",
        "status",
        "delete",
        "logs",
        "console",
        "ssh",
        "docker",
        "config",
        "pipes",
        "engine",
        "image",
        "gui",
        "version",
    ):
        assert f" {verb} " in text


def test_damaged_image_is_named(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    result = moorage("image", "verify", str(tmp_path))
    assert (result.returncode, "cannot be read" in result.stderr) == (1, True)


def test_image_build_says_what_its_builder_lacks(paths: Paths, tmp_path: Path) -> None:
    lacking = {"PATH": str(tmp_path), "MOORAGE_IMAGE_CACHE": str(tmp_path / "cache")}
    result = moorage("image", "build", "--output", str(tmp_path / "image"), environment=lacking)
    assert (result.returncode, "mmdebstrap" in result.stderr, "Traceback" in result.stderr) == (1, True, False)


def test_image_build_knows_which_machines_there_are(paths: Paths, tmp_path: Path) -> None:
    result = moorage("image", "build", "--arch", "sparc", "--output", str(tmp_path / "image"))
    assert (result.returncode, "--arch is one of amd64, arm64" in result.stderr) == (2, True)
    assert not (tmp_path / "image").exists()


def test_shell_completes_verbs(paths: Paths) -> None:
    asked = {"_MOORAGE_COMPLETE": "complete_bash", "COMP_WORDS": "moorage sta", "COMP_CWORD": "1"}
    assert moorage(environment=asked).stdout.split() == ["start", "status"]
