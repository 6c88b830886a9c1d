"""The docker CLI following a container that prints as fast as it can sees every line once while moored is killed."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

pytestmark = pytest.mark.root

KILLS = 5
FAST = (
    "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo out $i; echo err $i >&2; done; echo end $i; echo end $i >&2; exit 5"
)


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with running_moored(supervised=True) as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _kill_and_come_back(moored: Moored) -> None:
    pid = moored.daemon_pid()
    moored.kill()
    wait_for("another daemon", lambda: moored.pid_file.exists() and moored.pid_file.read_text() not in ("", str(pid)))
    wait_for("its answer", moored.answers)


def _check(text: str, word: str) -> None:
    *lines, end = text.splitlines()
    last = int(end.removeprefix("end "))
    wanted = [f"{word} {number}" for number in range(1, last + 1)]
    if lines != wanted:
        at = next((i for i, (a, b) in enumerate(zip(lines, wanted, strict=False)) if a != b), min(len(lines), last))
        raise AssertionError(
            f"{word}: {len(lines)} lines instead of {last}, first difference at {at}: {lines[at : at + 3]}"
        )


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (("run", "--network=none", "--name=NAME", "busybox", "sh", "-c", FAST), 5),
        (("logs", "--follow", "NAME"), 0),
    ],
    ids=["attached run", "logs --follow"],
)
def test_every_line_reaches_the_client_once(moored: Moored, how: tuple[str, ...], code: int) -> None:
    name = f"followed-{how[0]}"
    if how[0] == "logs":
        moored.docker("run", "-d", "--network=none", "--name", name, "busybox", "sh", "-c", FAST)
    outputs = [moored.sandbox.root / f"{name}.{stream}" for stream in ("out", "err")]
    with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
        arguments = [word.replace("NAME", name) for word in how]
        with moored.docker_popen(*arguments, stdout=out, stderr=err) as client:
            try:
                wait_for("the first output", lambda: outputs[0].stat().st_size > 0)
                for _ in range(KILLS):
                    time.sleep(0.1)  # for the load to be on again; its length does not matter
                    _kill_and_come_back(moored)
                # The exec may be killed by the end that it brings about.
                moored.docker("exec", name, "touch", "/stop", check=False)
                status = client.wait(DEADLINE)
            except (AssertionError, subprocess.TimeoutExpired):
                client.kill()
                raise
    assert status == code, outputs[1].read_text()[-500:]
    for path, word in zip(outputs, ("out", "err"), strict=True):
        _check(path.read_text(), word)
    moored.docker("rm", name)
