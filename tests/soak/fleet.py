"""The busy containers of a soak: what they print is known beforehand, so that nothing lost and nothing doubled goes unseen.

Every run of a container numbers itself and its lines and notes, in a folder that only it and the test see, how far it
has printed. `check_log` compares the log with these notes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.moored import Moored, wait_for

#: Lines that a run prints on each stream before it notes its number.
BATCH = 10

#: How a container ends when it is asked to by the test, and how by its stop signal.
DONE, STOPPED = 7, 3

_SCRIPT = (
    "trap 'exit {stopped}' TERM; {first}n=$(ls /p/runs | wc -l); : > /p/runs/$n; echo begin $n; {error}"
    "i=0; while [ ! -e /p/stop ]; do j=0; while [ $j -lt {batch} ]; do i=$((i+1)); j=$((j+1)); echo out $i; {line}done; "
    "echo $i >> /p/runs/$n; sleep 0.1; done; exit {done}"
)
_WEB = "mkdir -p /www; echo $HOSTNAME > /www/index.html; httpd -p 80 -h /www; "

NETWORK = "soak"


@dataclass(frozen=True)
class Kind:
    """One way to run a busy container."""

    word: str
    options: tuple[str, ...]
    tty: bool = False
    web: bool = False
    restarts: bool = False
    health: bool = False


KINDS = (
    Kind("plain", ("--network=none",)),
    Kind("web", (f"--network={NETWORK}",), web=True),
    Kind("published", ("-p", "80"), web=True),
    Kind("always", ("--network=none", "--restart=always"), restarts=True),
    Kind("local", ("--network=none", "--log-driver=local")),
    Kind("tty", ("--network=none", "-t"), tty=True),
    Kind("healthy", (f"--network={NETWORK}", "--health-cmd=true", "--health-interval=1s"), health=True),
    Kind("rotating", ("--network=none", "--log-opt=max-size=100k", "--log-opt=max-file=900")),
    Kind("volume", ("-v", "/anonymous", "-v", "soak-{name}:/named", "--restart=on-failure"), restarts=True),
    Kind("stdin", ("-i", f"--network={NETWORK}", "--init")),
)


@dataclass
class Member:
    """One busy container and what must be true of it now."""

    name: str
    kind: Kind
    folder: Path
    pid: int = 0
    started: str = ""
    paused: bool = False
    #: Runs whose last lines may be missing: the shim of a terminal was killed.
    torn: set[int] = field(default_factory=set)

    def create(self, moored: Moored) -> None:
        """Start it anew."""
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        script = _SCRIPT.format(
            stopped=STOPPED, done=DONE, batch=BATCH, first=_WEB if self.kind.web else "",
            error="" if self.kind.tty else "echo begin $n >&2; ",
            line="" if self.kind.tty else "echo err $i >&2; ",
        )  # fmt: skip
        options = [word.format(name=self.name) for word in self.kind.options]
        moored.docker(
            "run", "-d", "--name", self.name, "--hostname", self.name, "-v", f"{self.folder}:/p", *options, "busybox",
            "sh", "-c", script,
        )  # fmt: skip
        self.learn(moored)

    def inspect(self, moored: Moored) -> dict[str, Any]:
        """What the daemon says of it."""
        reply = moored.api.get(f"/containers/{self.name}/json")
        assert reply.status == 200, f"{self.name} is gone: {reply.body!r}"
        found: dict[str, Any] = reply.json
        return found

    def learn(self, moored: Moored) -> None:
        """Take what is now for what must stay."""
        state = self.inspect(moored)["State"]
        self.pid, self.started, self.paused = state["Pid"], state["StartedAt"], state["Paused"]

    def check_untouched(self, moored: Moored) -> None:
        """Fail unless the same process runs as before."""
        state = self.inspect(moored)["State"]
        now = (state["Running"], state["Pid"], state["StartedAt"], state["Paused"])
        assert now == (True, self.pid, self.started, self.paused), f"{self.name} was touched: {json.dumps(state)}"

    def run_again(self, moored: Moored) -> None:
        """Bring it back to its duty after something was done to it."""
        if self.kind.restarts:
            wait_for(f"{self.name} to rest or run", lambda: self._status(moored) != "restarting", 90)
        status = self._status(moored)
        if status == "paused":
            moored.docker("unpause", self.name)
        elif status != "running":
            moored.docker("start", self.name)
        self.learn(moored)

    def _status(self, moored: Moored) -> str:
        return str(self.inspect(moored)["State"]["Status"])

    def finish(self) -> None:
        """Ask it to end; its exit code is then `DONE`."""
        (self.folder / "stop").touch()

    def check_log(self, moored: Moored) -> None:
        """Fail unless the log holds what every run has printed, once and in order."""
        done = moored.docker_run("logs", self.name, timeout=240)
        assert done.returncode == 0, f"logs of {self.name}: {done.stderr[-500:]}"
        self._check_stream("out", done.stdout.replace("\r\n", "\n"))
        if not self.kind.tty:
            self._check_stream("err", done.stderr)

    def _check_stream(self, word: str, text: str) -> None:
        runs: dict[int, int] = {}
        run = -1
        for number, line in enumerate(text.splitlines()):
            if line.startswith("begin "):
                begun = int(line.split()[1])
                assert begun > run, f"{self.name} {word}: run {begun} after run {run}, line {number}"
                run = begun
                runs[run] = 0
                continue
            wanted = f"{word} {runs.get(run, 0) + 1}"
            assert line == wanted, f"{self.name} {word}, run {run}, line {number}: {line[:80]!r} instead of {wanted!r}"
            runs[run] += 1
        for path in (self.folder / "runs").iterdir():
            noted = [int(each) for each in path.read_text().splitlines()]
            least = noted[-1] if noted else 0
            got = runs.get(int(path.name), 0)
            if int(path.name) in self.torn:
                continue
            assert least <= got <= least + BATCH, (
                f"{self.name} {word}, run {path.name}: {got} lines in the log, {least} noted"
            )


def make_fleet(root: Path, count: int) -> list[Member]:
    """The members, of every kind in turn; none is started."""
    return [
        Member(f"{kind.word}-{number}", kind, root / f"{kind.word}-{number}")
        for number in range(count)
        for kind in (KINDS[number % len(KINDS)],)
    ]
