"""A daemon that comes back to containers finds the validators of their records built: the zygote did it once they ran."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import moorage_guest.agent.daemon as agent_daemon
import pytest
from moorage_guest.shim.connection import Connection
from moorage_guest.shim.loop import Loop

CODE = """
from moorage_guest.agent.imports import build_models, import_daemon
import_daemon()
from moorage_guest.api.types import ContainerConfig, EndpointSettings, HostConfig
models = (ContainerConfig, EndpointSettings, HostConfig)
assert not any(each.__pydantic_complete__ for each in models), "nobody would have to build them"
build_models()
assert all(each.__pydantic_complete__ for each in models)
"""


def test_validators_of_records_are_built_when_asked_for() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)


def test_the_zygote_is_told_once_that_containers_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(agent_daemon, "_GET_READY", 0.01)
    errors: list[str] = []
    loop = Loop(errors.append)
    try:
        nothing = cast(Any, SimpleNamespace())
        daemon = agent_daemon.Daemon(loop, tmp_path, [], nothing, errors.append, nothing)
        daemon.containers_run()  # nobody is there yet
        said: list[object] = []
        daemon._zygote = cast(Connection, SimpleNamespace(send=said.append))
        for _ in range(3):
            daemon.containers_run()
        while not said:
            loop.step(10)
        loop.step(0.05)
        assert said == [{"event": "get_ready"}]
    finally:
        loop.close()
    assert errors == []
