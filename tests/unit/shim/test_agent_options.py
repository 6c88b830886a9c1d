"""The agent's command line, as it is usually and as argparse has to look at it."""

import subprocess
import sys
from pathlib import Path

import pytest
from moorage_guest.agent.main import Options, read_options


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("--private", Options(False, Path("/var/lib/moorage"), Path("/run/moorage"), None, [])),
        ("--supervise --exec-root /e", Options(True, Path("/var/lib/moorage"), Path("/e"), None, [])),
        ("--data-root /d --supervise --config-file c", Options(True, Path("/d"), Path("/run/moorage"), Path("c"), [])),
        ("--private --data-root=/d", Options(False, Path("/d"), Path("/run/moorage"), None, [])),
        ("--supervise --exec-root /e --debug", Options(True, Path("/var/lib/moorage"), Path("/e"), None, ["--debug"])),
    ],
)
def test_the_command_line_says_what_it_did(text: str, options: Options) -> None:
    assert read_options(text.split()) == options


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "one of the arguments --private --supervise is required"),
        ("--private --supervise", "not allowed with argument"),
        ("--private --nonsense", "unknown arguments: --nonsense"),
        ("--private --data-root", "expected one argument"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_wrong(
    text: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(text.split())
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_argparse_takes_no_memory_of_an_agent_that_is_started_as_usual() -> None:
    script = "import sys; from moorage_guest.agent import main; main.read_options(['--private']); sys.exit('argparse' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
