"""What the command line and the backend import before there is anything to see: each module delays every start."""

import subprocess
import sys

import pytest
from moorage_host.cli.application import GROUPS, VERBS, application
from moorage_host.cli.main import starts_machine
from typer.testing import CliRunner

LOADED = """
import sys
{code}
from types import ModuleType
print(*(name for name, module in sys.modules.items() if type(module) is ModuleType))
"""


def loaded(code: str) -> set[str]:
    script = LOADED.format(code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_command_line_begins_with_little() -> None:
    found = loaded("import moorage_host.cli.main")
    assert found.isdisjoint({"typer", "rich", "pydantic", "moorage_host.client", "moorage_host.cli.application"})


def test_a_verb_imports_neither_the_others_nor_what_the_backend_does() -> None:
    found = loaded("from moorage_host.cli.application import application\napplication(['status'])")
    assert "moorage_host.cli.status" in found
    assert found.isdisjoint(
        {"moorage_host.cli.start", "moorage_host.cli.image", "moorage_contract.daemon_config.editing"}
    )
    assert found.isdisjoint({"aiohttp", "docker", "paramiko", "libvirt", "moorage_host.control"})


def test_backend_imports_what_it_needs_to_start_the_machine_and_the_rest_while_the_guest_boots() -> None:
    found = loaded("import moorage_host.backend")
    assert "moorage_host.machine.machine" in found
    assert found.isdisjoint({"paramiko", "docker", "requests", "aiohttp.client", "moorage_host.link.ssh"})


def test_all_verbs_are_there_and_each_alone_is_the_same() -> None:
    def text(*arguments: str, of: tuple[str, ...]) -> str:
        return CliRunner().invoke(application(of), list(arguments), prog_name="moorage").output

    everything = text("--help", of=())
    for name in (*VERBS, *GROUPS, "version"):
        assert f" {name} " in everything
    for name in (*VERBS, *GROUPS):
        if name != "docker":  # whose --help is docker's own
            assert text(name, "--help", of=(name,)) == text(name, "--help", of=()), name


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (["start"], True), (["start", "--cpus", "2"], True), (["start", "--help"], False), ([], False), (["stop"], False),
    ],
)  # fmt: skip
def test_backend_is_begun_ahead_for_a_start_alone(arguments: list[str], begins: bool) -> None:
    assert starts_machine(arguments) is begins
