"""SIGKILL of the whole daemon under load: what containers write is in `docker logs`, all of it, once, in order."""

import json
import random
import time
from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored, wait_for

pytestmark = pytest.mark.root

#: About a thousand lines a second on each stream, numbered.
STEADY = (
    "i=0; while [ ! -e /stop ]; do n=0; while [ $n -lt 10 ]; do i=$((i+1)); n=$((n+1)); echo out $i; echo err $i >&2; "
    "done; usleep 10000; done; echo end $i"
)
#: As fast as the shell can.
FAST = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo out $i; echo err $i >&2; done; echo end $i"


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with running_moored("--live-restore") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


def _run(moored: Moored, name: str, script: str, *options: str) -> None:
    moored.docker("run", "-d", "--network=none", "--name", name, *options, "busybox", "sh", "-c", script)


def _inspect(moored: Moored, name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(moored.docker("inspect", name))[0]["State"]
    return state


def _come_back(moored: Moored) -> None:
    moored.kill()
    moored.start()


def _stop_writing_and_check(moored: Moored, name: str) -> None:
    """Let the writer end; its log must hold every number on both streams once, in order."""
    moored.docker("exec", name, "touch", "/stop", check=False)  # it may be killed by the end that it brings about
    assert moored.docker("wait", name) == "0"
    done = moored.docker_run("logs", name)
    assert done.returncode == 0
    *_, end = done.stdout.splitlines()
    last = int(end.removeprefix("end "))
    for text, word in ((done.stdout.removesuffix(f"{end}\n"), "out"), (done.stderr, "err")):
        lines = text.splitlines()
        wanted = [f"{word} {number}" for number in range(1, last + 1)]
        if lines != wanted:
            at = next((i for i, (a, b) in enumerate(zip(lines, wanted, strict=False)) if a != b), -1)
            raise AssertionError(
                f"{word}: {len(lines)} lines instead of {last}, first difference at {at}: {lines[at - 2 : at + 3]}"
            )


@pytest.mark.parametrize(
    ("script", "kills", "options"),
    [
        pytest.param(STEADY, 10, (), id="1000 lines a second"),
        pytest.param(FAST, 10, (), id="as fast as it can"),
        pytest.param(FAST, 4, ("--log-driver=local",), id="local driver"),
        pytest.param(FAST, 4, ("--log-opt=max-size=300k", "--log-opt=max-file=900"), id="rotating"),
    ],
)
def test_kill_after_kill_loses_and_doubles_no_line_and_touches_no_process(
    moored: Moored, script: str, kills: int, options: tuple[str, ...]
) -> None:
    name = f"writer-{random.randrange(10**9)}"
    _run(moored, name, script, *options)
    before = _inspect(moored, name)
    chance = random.Random(4)
    for _ in range(kills):
        time.sleep(chance.random() * 0.3)
        _come_back(moored)
        after = _inspect(moored, name)
        assert (after["Pid"], after["StartedAt"], after["Running"]) == (before["Pid"], before["StartedAt"], True)
    _stop_writing_and_check(moored, name)
    moored.docker("rm", name)


def test_a_container_that_ends_meanwhile_keeps_its_last_words_and_its_exit_code(moored: Moored) -> None:
    script = "until [ -e /go ]; do usleep 20000; done; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo last words $i; done; exit 42"
    _run(moored, "ending", script)
    pid = int(str(_inspect(moored, "ending")["Pid"]))
    moored.kill()
    moored.sandbox.run("touch", f"/proc/{pid}/root/go")
    wait_for("the container to end", lambda: not _lives(moored, pid))
    moored.start()
    state = _inspect(moored, "ending")
    assert (state["Running"], state["ExitCode"]) == (False, 42)
    lines = moored.docker("logs", "ending").splitlines()
    assert lines == [f"last words {number}" for number in range(1, 3001)]
    moored.docker("rm", "ending")


def _lives(moored: Moored, pid: int) -> bool:
    done = moored.sandbox.run("cat", f"/proc/{pid}/stat", check=False)
    return done.returncode == 0 and ") Z " not in done.stdout


#: Writes 512 bytes at a time with one write(2) each, and notes after each how many it has written.
FILLER = (
    "block=$(printf %0511d 0); until [ -e /go ]; do usleep 20000; done; i=0; "
    "while [ $i -lt 300 ]; do echo $block; i=$((i+1)); echo $i > /written; done; touch /done; sleep 600"
)


def test_a_full_pipe_takes_64_kib_then_blocks_and_is_flushed_when_the_daemon_is_back(moored: Moored) -> None:
    _run(moored, "full", FILLER)
    pid = int(str(_inspect(moored, "full")["Pid"]))
    moored.kill()
    moored.sandbox.run("touch", f"/proc/{pid}/root/go")

    def written() -> int:
        done = moored.sandbox.run("cat", f"/proc/{pid}/root/written", check=False)
        return int(done.stdout or 0)

    def sleeps() -> bool:
        return ") S " in moored.sandbox.run("cat", f"/proc/{pid}/stat").stdout

    wait_for("the pipe to fill", lambda: written() == 65536 // 512)
    wait_for("the writer to block", sleeps)
    assert written() == 65536 // 512
    moored.start()
    moored.docker("exec", "full", "sh", "-c", "until [ -e /done ]; do usleep 20000; done")
    assert moored.docker("logs", "full").splitlines() == ["0" * 511] * 300
    moored.docker("rm", "-f", "full")
