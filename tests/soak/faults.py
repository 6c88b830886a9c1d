"""What a soak does to the daemon and its containers: one function a fault, chosen by weight.

A fault that speaks to the daemon may have the daemon killed under its hands (`Soak.meanwhile`): its requests may then
fail, but afterwards everything must be true all the same.
"""

import contextlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.soak.fleet import NETWORK, Member
from tests.soak.leftovers import agent_status, pids
from tests.support.moored import DEADLINE, Moored, wait_for
from tests.support.runtime import Runtime

EXTRA_NETWORK = "soak-extra"


@dataclass
class Soak:
    """The daemon, its containers, and the chance that decides everything."""

    moored: Moored
    runtime: Runtime
    fleet: list[Member]
    chance: random.Random
    #: Whether the daemon was killed during the fault at hand.
    killed: bool = False
    notes: list[str] = field(default_factory=list)

    def victim(self, suits: Callable[[Member], bool] = lambda _member: True) -> Member:
        """Any container that suits."""
        return self.chance.choice([member for member in self.fleet if suits(member)])

    def ready(self) -> None:
        """Wait until a daemon answers and has taken everything back."""
        wait_for("the daemon to answer", self.moored.answers)

    def daemon_pid(self) -> int:
        """The daemon's pid, 0 while there is none."""
        return int(agent_status(self.moored)["daemon"]["pid"] or 0)

    def kill(self, pid: int, number: int = 9) -> None:
        """Signal a process of the sandbox; quiet when it has ended."""
        self.moored.sandbox.run("kill", f"-{number}", str(pid), check=False)

    def kill_daemon(self) -> None:
        """SIGKILL the daemon, if there is one, and wait until another is there."""
        self.killed = True
        pid = self.daemon_pid()
        if pid:
            self.kill(pid)
        wait_for("another daemon", lambda: self.daemon_pid() not in (0, pid))

    @contextlib.contextmanager
    def meanwhile(self, share: float = 0.5, longest: float = 0.6) -> Iterator[None]:
        """With the probability ``share``, kill the daemon at some moment of what is done inside."""
        if self.chance.random() >= share:
            yield
            return
        delay = self.chance.random() * longest
        self.notes.append(f"daemon killed {delay:.3f} s in")
        self.killed = True
        pid = self.daemon_pid()
        timer = threading.Timer(delay, lambda: self.kill(pid))
        timer.start()
        try:
            yield
        finally:
            timer.join()
            wait_for("another daemon", lambda: self.daemon_pid() not in (0, pid))
            self.ready()

    def docker(self, *words: str, code: int = 0, timeout: float = DEADLINE) -> "subprocess.CompletedProcess[str]":
        """Run the CLI; only a daemon that was killed excuses another exit code."""
        done = self.moored.docker_run(*words, timeout=timeout)
        if done.returncode != code:
            assert self.killed, f"docker {' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}"
            self.notes.append(f"docker {words[0]}: {done.stderr.strip().splitlines()[-1:]}")
        return done


@dataclass(frozen=True)
class Fault:
    """A fault; `act` returns the containers that it may have changed."""

    name: str
    weight: int
    act: Callable[[Soak], list[Member]]


FAULTS: list[Fault] = []


def fault(name: str, weight: int = 2) -> Callable[[Callable[[Soak], list[Member]]], Callable[[Soak], list[Member]]]:
    """Register a fault."""

    def register(act: Callable[[Soak], list[Member]]) -> Callable[[Soak], list[Member]]:
        FAULTS.append(Fault(name, weight, act))
        return act

    return register


# -- processes of the engine ------------------------------------------------------------------------------------------


@fault("daemon killed", 6)
def kill_daemon(soak: Soak) -> list[Member]:
    """Nothing may be lost."""
    soak.kill_daemon()
    return []


@fault("daemon killed again and again while it takes containers back", 3)
def kill_storm(soak: Soak) -> list[Member]:
    """Nothing may be lost."""
    for _ in range(soak.chance.randint(2, 5)):
        soak.kill_daemon()
        time.sleep(soak.chance.random() * 0.3)
    return []


@fault("daemon stopped for a while")
def stop_daemon(soak: Soak) -> list[Member]:
    """A daemon that hangs: containers go on until their pipes are full, and then wait."""
    pid = soak.daemon_pid()
    soak.kill(pid, 19)
    time.sleep(soak.chance.random())
    soak.kill(pid, 9 if soak.chance.random() < 0.5 else 18)
    soak.killed = True
    return []


@fault("daemon restarted in order")
def restart_daemon(soak: Soak) -> list[Member]:
    """SIGTERM, with live restore."""
    soak.killed = True
    pid = soak.daemon_pid()
    soak.kill(pid, 15)
    wait_for("another daemon", lambda: soak.daemon_pid() not in (0, pid))
    return []


@fault("daemon.json reloaded")
def reload_daemon(soak: Soak) -> list[Member]:
    """SIGHUP with a changed file, and perhaps a broken one."""
    text = soak.chance.choice(['{"debug": true}', '{"debug": false, "labels": ["soak=1"]}', "{", "{}"])
    soak.moored.config_file.write_text(text)
    with soak.meanwhile(0.3 if text != "{" else 0.0, 0.1):
        soak.kill(soak.daemon_pid(), 1)
        soak.ready()
    soak.moored.config_file.write_text("{}")
    soak.kill(soak.daemon_pid(), 1)
    return []


@fault("agent killed", 3)
def kill_agent(soak: Soak) -> list[Member]:
    """Its shims and its daemon go on; init starts it again."""
    moored = soak.moored
    found = pids(moored)
    soak.kill(found["agent"])
    assert moored.process is not None
    moored.process.wait(DEADLINE)
    also = soak.chance.random() < 0.4
    if also:
        soak.notes.append("daemon killed as well")
        soak.kill(found["moored"])
    time.sleep(soak.chance.random() * 0.3)
    moored.spawn()
    wait_for("the agent to answer", lambda: _agent_answers(moored))
    soak.ready()
    assert (soak.daemon_pid() == found["moored"]) == (not also), "the agent did not find the daemon again"
    return []


def _agent_answers(moored: Moored) -> bool:
    try:
        return bool(agent_status(moored))
    except OSError:
        return False


@fault("zygote killed", 1)
def kill_zygote(soak: Soak) -> list[Member]:
    """The next daemon is forked all the same."""
    record = json.loads((soak.moored.exec_root / "supervised.json").read_text())
    soak.kill(record["zygote_pid"])
    soak.kill_daemon()
    return []


@fault("netd killed", 2)
def kill_netd(soak: Soak) -> list[Member]:
    """Names are answered again, published ports never went."""
    pid = pids(soak.moored)["netd"]
    with soak.meanwhile(0.3):
        soak.kill(pid)
    wait_for("another netd", lambda: pids(soak.moored).get("netd", pid) != pid)
    return []


@fault("shim killed", 4)
def kill_shim(soak: Soak) -> list[Member]:
    """Its container dies with 137, nobody else's does; a restart policy holds. What it held of a terminal is lost."""
    victim = soak.victim(lambda member: not member.paused)
    if victim.kind.tty:
        victim.torn.add(len(list((victim.folder / "runs").iterdir())) - 1)
    container = victim.inspect(soak.moored)["Id"]
    record = json.loads((soak.moored.exec_root / "shim" / container / "shim.json").read_text())
    soak.kill(record["shim_pid"])

    def seen() -> bool:
        state = victim.inspect(soak.moored)["State"]
        return bool(state["StartedAt"] != victim.started or not state["Running"])

    wait_for("the container's end", seen)
    found = victim.inspect(soak.moored)
    if found["State"]["Status"] == "exited":
        assert found["State"]["ExitCode"] == 137
        assert victim.kind.word != "always", "the restart policy did not hold"
    return [victim]


@fault("runtime killed under an exec", 3)
def kill_runtime_in_exec(soak: Soak) -> list[Member]:
    """The exec fails or works; its container does not notice."""
    victim = soak.victim(lambda member: not member.paused)
    with _runtime_dies(soak):
        soak.killed = True  # excuses the exec, as a killed daemon does
        soak.docker("exec", victim.name, "true")
    soak.moored.docker("exec", victim.name, "true")
    return []


@fault("runtime killed under a start", 3)
def kill_runtime_in_start(soak: Soak) -> list[Member]:
    """The start fails or works; the container can be removed, and its successor runs."""
    with _runtime_dies(soak):
        soak.killed = True
        soak.docker("run", "-d", "--network", NETWORK, "--name", "brief", "busybox", "sleep", "1000")
    soak.moored.docker("rm", "-f", "brief")
    assert soak.moored.docker("run", "--rm", "--name", "brief", "busybox", "echo", "well") == "well"
    return []


@contextlib.contextmanager
def _runtime_dies(soak: Soak) -> Iterator[None]:
    """Let the next call of the runtime be killed at some moment."""
    delay = soak.chance.random() * 0.05
    soak.notes.append(f"crun killed {delay:.4f} s in")
    soak.runtime.die(delay)
    try:
        yield
    finally:
        soak.runtime.live()


# -- containers -------------------------------------------------------------------------------------------------------


@fault("container's first process killed", 3)
def kill_process(soak: Soak) -> list[Member]:
    """As the kernel does when memory runs out."""
    victim = soak.victim(lambda member: not member.paused)
    with soak.meanwhile(0.4, 0.1):
        soak.kill(victim.pid)
    wait_for(
        "the end to be seen",
        lambda: (
            victim.inspect(soak.moored)["State"]["StartedAt"] != victim.started
            or not victim.inspect(soak.moored)["State"]["Running"]
        ),
    )
    if not victim.kind.restarts:
        assert victim.inspect(soak.moored)["State"]["ExitCode"] == 137
    return [victim]


@fault("container restarted", 3)
def restart_container(soak: Soak) -> list[Member]:
    """docker restart."""
    victim = soak.victim()
    with soak.meanwhile():
        soak.docker("restart", "-t", "5", victim.name)
    return [victim]


@fault("container stopped and started", 3)
def stop_container(soak: Soak) -> list[Member]:
    """docker stop, docker start."""
    victim = soak.victim()
    with soak.meanwhile():
        soak.docker("stop", "-t", "5", victim.name)
    with soak.meanwhile(0.3):
        soak.docker("start", victim.name)
    return [victim]


@fault("container paused")
def pause_container(soak: Soak) -> list[Member]:
    """It stays paused until its next turn; when it is paused already it goes on."""
    victim = soak.victim()
    before = victim.paused
    with soak.meanwhile():
        soak.docker("unpause" if before else "pause", victim.name)
    victim.paused = victim.inspect(soak.moored)["State"]["Paused"]
    assert soak.killed or victim.paused != before
    victim.check_untouched(soak.moored)
    return []


@fault("container removed and made anew")
def remove_container(soak: Soak) -> list[Member]:
    """docker rm -f; its log begins anew."""
    victim = soak.victim()
    with soak.meanwhile():
        soak.docker("rm", "-f", "-v", victim.name)
    if soak.moored.docker("ps", "-aq", "--filter", f"name=^/{victim.name}$"):
        soak.moored.docker("rm", "-f", "-v", victim.name)
    for path in (victim.folder / "runs").iterdir():
        path.unlink()
    victim.torn.clear()
    victim.create(soak.moored)
    return [victim]


@fault("storm of execs", 3)
def exec_storm(soak: Soak) -> list[Member]:
    """Every exec that was begun gives all its output and its exit code."""
    jobs = [(soak.victim(lambda member: not member.paused).name, soak.chance.randint(0, 100)) for _ in range(12)]

    def one(job: tuple[str, int]) -> "tuple[int, subprocess.CompletedProcess[str]]":
        name, code = job
        script = f"i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; usleep 5000; done; exit {code}"
        return code, soak.moored.docker_run("exec", name, "sh", "-c", script, timeout=120)

    with soak.meanwhile(), ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, jobs))
    for code, done in results:
        if done.returncode != code:
            assert soak.killed, f"exec ended with {done.returncode} instead of {code}: {done.stderr}"
            assert done.returncode in (1, 125, 126, 255), f"exec ended with {done.returncode} instead of {code}"
            assert done.stderr or done.returncode == 255, "an exec failed without a word"
            soak.notes.append(f"exec: {done.stderr.strip()[-80:]}")
            continue
        assert done.stdout.split() == [str(number) for number in range(1, 41)], f"exec printed {done.stdout[-200:]!r}"
    return []


@fault("brief containers", 3)
def brief_containers(soak: Soak) -> list[Member]:
    """docker run --rm, several at once."""

    def one(number: int) -> "subprocess.CompletedProcess[str]":
        return soak.moored.docker_run(
            "run", "--rm", "--name", f"brief-{number}", "--network", NETWORK, "-v", "/scratch", "busybox", "sh", "-c",
            f"echo well {number}; exit 5", timeout=120,
        )  # fmt: skip

    with soak.meanwhile(), ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(4)))
    for number, done in enumerate(results):
        good = (done.returncode, done.stdout) == (5, f"well {number}\n")
        assert good or soak.killed, f"brief container: {done.returncode} {done.stdout!r} {done.stderr!r}"
        if not good:
            soak.notes.append(f"run: {done.returncode} {done.stderr.strip()[-80:]}")
    for name in soak.moored.docker("ps", "-a", "--filter", "name=brief", "--format", "{{.Names}}").split():
        soak.moored.docker("rm", "-f", "-v", name)
    return []


@fault("network connected and disconnected", 3)
def connect_network(soak: Soak) -> list[Member]:
    """Into another network and out of it again, the network made and removed."""
    victim = soak.victim(lambda member: "--network=none" not in member.kind.options)
    moored = soak.moored
    with soak.meanwhile(0.3, 0.2):
        soak.docker("network", "create", EXTRA_NETWORK)
    if not moored.docker("network", "ls", "-q", "--filter", f"name={EXTRA_NETWORK}"):
        moored.docker("network", "create", EXTRA_NETWORK)
    with soak.meanwhile(0.5, 0.3):
        soak.docker("network", "connect", EXTRA_NETWORK, victim.name)
    if EXTRA_NETWORK not in victim.inspect(moored)["NetworkSettings"]["Networks"]:
        moored.docker("network", "connect", EXTRA_NETWORK, victim.name)
    address = victim.inspect(moored)["NetworkSettings"]["Networks"][EXTRA_NETWORK]["IPAddress"]
    if not victim.paused:
        assert address in moored.docker("exec", victim.name, "ip", "addr"), "the address is not in the container"
    with soak.meanwhile(0.5, 0.3):
        soak.docker("network", "disconnect", EXTRA_NETWORK, victim.name)
    if EXTRA_NETWORK in victim.inspect(moored)["NetworkSettings"]["Networks"]:
        moored.docker("network", "disconnect", EXTRA_NETWORK, victim.name)
    with soak.meanwhile(0.3, 0.2):
        soak.docker("network", "rm", EXTRA_NETWORK)
    if moored.docker("network", "ls", "-q", "--filter", f"name={EXTRA_NETWORK}"):
        moored.docker("network", "rm", EXTRA_NETWORK)
    return []


@fault("image committed and removed", 1)
def commit(soak: Soak) -> list[Member]:
    """docker commit, docker rmi."""
    victim = soak.victim()
    with soak.meanwhile():
        soak.docker("commit", victim.name, "soak-image")
    if soak.moored.docker("images", "-q", "soak-image"):
        with soak.meanwhile():
            soak.docker("rmi", "soak-image")
    if soak.moored.docker("images", "-q", "soak-image"):
        soak.moored.docker("rmi", "soak-image")
    victim.paused = victim.inspect(soak.moored)["State"]["Paused"]
    victim.check_untouched(soak.moored)
    return []


@fault("volume made and removed", 1)
def volume(soak: Soak) -> list[Member]:
    """docker volume create, rm."""
    with soak.meanwhile(0.5, 0.2):
        soak.docker("volume", "create", "soak-extra")
    with soak.meanwhile(0.5, 0.2):
        soak.docker("volume", "rm", "soak-extra")
    if soak.moored.docker("volume", "ls", "-q", "--filter", "name=soak-extra"):
        soak.moored.docker("volume", "rm", "soak-extra")
    return []
