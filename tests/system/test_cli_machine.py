"""The command line against a running machine."""

import json

import pytest

from tests.support.vm import Vm, moorage

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def test_docker_verb_reaches_the_engine(engine_ready: Vm) -> None:
    result = moorage("docker", "version", "--format", "{{.Server.Version}}")
    assert (result.returncode, result.stdout.strip()) == (0, "26.11.0"), result.stderr


def test_status_tells_engine_and_ports(engine_ready: Vm) -> None:
    result = moorage("status", "--json")
    content = json.loads(result.stdout)
    assert (result.returncode, content["state"], content["engine"]["daemon"]["state"]) == (0, "ready", "running")


def test_ssh_passes_streams_and_exit_status(engine_ready: Vm) -> None:
    result = moorage("ssh", "--", "sh", "-c", "cat; echo problem >&2; exit 7", stdin="in and out")
    assert (result.returncode, result.stdout, result.stderr) == (7, "in and out", "problem\n")


def test_pipes_show_what_waits(engine_ready: Vm, container_running: str) -> None:
    found = json.loads(moorage("pipes", "--json").stdout)
    assert {one["stream"] for one in found if one["container"] == container_running} == {"stdout", "stderr"}
    assert {one["capacity"] for one in found} == {65536}


def test_logs_of_daemon_agent_and_console_are_at_hand(engine_ready: Vm) -> None:
    for arguments in (["logs"], ["logs", "--what", "agent"], ["logs", "--what", "backend"], ["console"]):
        result = moorage(*arguments)
        assert (result.returncode, bool(result.stdout.strip())) == (0, True), result.stderr


def test_broken_daemon_json_never_leaves_the_engine_down(engine_ready: Vm, container_running: str) -> None:
    before = moorage("config", "get").stdout
    for text in ("{", '{"no-such-key": 1}', '{"bip": "no network"}'):
        result = moorage("config", "apply", "-", stdin=text)
        assert result.returncode == 2
        assert "nothing was changed" in result.stderr or "in force again" in result.stderr
    assert moorage("config", "get").stdout == before
    assert moorage("docker", "inspect", "-f", "{{.State.Running}}", container_running).stdout.strip() == "true"


def test_value_is_set_without_the_daemon_restarting(engine_ready: Vm) -> None:
    engine = engine_ready.status().engine
    assert engine is not None
    before = moorage("config", "get").stdout
    try:
        result = moorage("config", "set", "labels", '["by=cli"]')
        assert (result.returncode, "reloaded" in result.stdout) == (0, True), result.stderr
        assert "by=cli" in moorage("docker", "info", "--format", "{{.Labels}}").stdout
    finally:
        assert moorage("config", "apply", "-", stdin=before).returncode == 0


def test_engine_restart_keeps_containers(engine_ready: Vm, container_running: str) -> None:
    before = moorage("docker", "inspect", "-f", "{{.State.Pid}}", container_running).stdout
    assert moorage("engine", "restart").returncode == 0
    engine_ready.wait("ready")
    assert moorage("docker", "inspect", "-f", "{{.State.Pid}}", container_running).stdout == before


def test_free_space_goes_back_to_the_host(engine_ready: Vm) -> None:
    result = moorage("engine", "trim")
    assert (result.returncode, "given back" in result.stdout) == (0, True), result.stderr
