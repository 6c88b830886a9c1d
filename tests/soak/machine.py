"""A soak of the virtual machine: random faults of every part of it, under busy containers (`./check soak --vm`).

Like `run` it is seeded and recorded. After a power cut the containers are made anew: what they had printed may lack lines at
its end, and nothing else.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.soak.run import Plan
from tests.support.host import wait_ended
from tests.support.images import BUSYBOX_IMAGE, busybox_archive
from tests.support.vm import Vm, vm_of_its_own
from tests.system.faults.conftest import SCRIPT, Busy, eventually, suspend, until

#: What must not grow: shims, run files, networks' and containers' things of the kernel, descriptors of agent and daemon.
_LEFT = (
    "ls /run/moorage/shim /run/moorage/crun /run/moorage/netns; ls /sys/class/net; cut -d' ' -f5 /proc/self/mountinfo; "
    "find /sys/fs/cgroup -type d; ls /var/lib/moorage/containers /var/lib/moorage/volumes"
)


def soak_machine(plan: Plan) -> list[str]:
    """Do it, in a machine of its own; returns what was found, a sentence each. About ten seconds a fault."""
    plan.record.parent.mkdir(parents=True, exist_ok=True)
    with vm_of_its_own() as vm, plan.record.open("w") as record:
        vm.client.start()
        vm.docker("load", "-i", str(busybox_archive()))

        def note(**what: object) -> None:
            record.write(json.dumps(what) + "\n")
            record.flush()

        found = _Run(vm, random.Random(plan.seed), plan).run(note)
        if found:
            vm.keep_logs(f"soak/vm-{plan.seed}")
        return found


@dataclass
class _Run:
    vm: Vm
    chance: random.Random
    plan: Plan

    def run(self, note: Callable[..., object]) -> list[str]:
        """All faults, and a look at what is left."""
        note(seed=self.plan.seed, faults=self.plan.faults, containers=self.plan.containers)
        self.vm.docker("run", "--rm", "-p", "80", "-v", "/scratch", BUSYBOX_IMAGE, "true")
        before = self._left()
        self.fleet = [self._make(number) for number in range(self.plan.containers)]
        found = []
        for number in range(1, self.plan.faults + 1):
            name = self.chance.choices(list(_FAULTS), [weight for weight, _ in _FAULTS.values()])[0]
            begin, problem = time.monotonic(), ""
            try:
                _FAULTS[name][1](self)
                for busy in self.fleet:
                    busy.check_untouched()
                self.chance.choice(self.fleet).check_goes_on()
            except Exception as error:  # it is what the soak is there to find
                problem = " ".join(f"{type(error).__name__}: {error}".split())[:800]
                found.append(f"fault {number} ({name}): {problem}")
            seconds = round(time.monotonic() - begin, 1)
            note(fault=number, name=name, seconds=seconds, problem=problem)
            self.plan.say(f"{number:4} {seconds:6.1f} s  {name}{'; ' + problem if problem else ''}")
            if problem:
                try:
                    self._anew()
                except Exception as error:  # what is left of the machine is looked at, not used
                    found.append(f"no containers can be made after that: {' '.join(str(error).split())[:800]}")
                    note(found=found)
                    return found
        for busy in self.fleet:
            busy.finish()
            self.vm.docker("rm", "-v", busy.name)
        self._settle(before, found)
        note(found=found)
        return found

    def _make(self, number: int) -> Busy:
        name = f"busy-{number}"
        options = (
            ("-p", "80", "-v", f"{name}:/v") if number % 2 else ("--health-cmd", "true", "--health-interval", "2s")
        )
        self.vm.docker("run", "-d", "--name", name, *options, BUSYBOX_IMAGE, "sh", "-c", SCRIPT)
        busy = Busy(self.vm, name)
        busy.before = busy.state()
        return busy

    def _anew(self) -> None:
        """Make all containers anew, on a machine that runs."""
        self.vm.client.start()
        for busy in self.fleet:
            self.vm.docker("rm", "-f", busy.name, check=False)
        self.fleet = [self._make(number) for number in range(self.plan.containers)]

    def _left(self) -> list[str]:
        return sorted(line for line in self.vm.run(_LEFT, check=False).splitlines() if "busy-" not in line)

    def _settle(self, before: list[str], found: list[str]) -> None:
        for number in range(1, self.plan.containers, 2):
            self.vm.docker("volume", "rm", f"busy-{number}", check=False)
        try:
            eventually("nothing to be left", lambda: self._left() == before, 60)
        except AssertionError:
            found += [f"left behind: {line}" for line in sorted(set(self._left()) - set(before))] or [
                "something is missing"
            ]

    # -- faults ---------------------------------------------------------------------------------------------------------

    def pids(self) -> tuple[int, int]:
        """Agent and daemon, 0 while there is no daemon."""
        engine = until(self.vm, "the engine", lambda s: s.engine is not None).engine
        assert engine is not None
        return engine.agent.pid, engine.daemon.pid or 0

    def kill(self, *pids: int) -> None:
        """SIGKILL in the guest, and wait until other processes are there in their place."""
        alive = " ".join(str(pid) for pid in pids if pid)
        self.vm.run(f"kill -9 {alive}", check=False)
        until(
            self.vm, "another process",
            lambda s: s.state == "ready" and s.engine and not {s.engine.agent.pid, s.engine.daemon.pid} & {*pids, None},
        )  # fmt: skip

    def daemon(self) -> None:
        self.kill(self.pids()[1])

    def agent(self) -> None:
        self.kill(self.pids()[0])

    def both(self) -> None:
        self.kill(*self.pids())

    def zygote_and_netd(self) -> None:
        self.vm.run("kill -9 $(pgrep 'zygote|netd')", check=False)
        eventually(
            "the engine", lambda: self.vm.docker("run", "--rm", BUSYBOX_IMAGE, "echo", "in", check=False) == "in\n"
        )

    def shim(self) -> None:
        """Of a container that is there for it: it ends with 137, and its words stay."""
        victim = self.vm.docker("run", "-d", BUSYBOX_IMAGE, "sh", "-c", "echo last words; sleep 1000").strip()
        eventually("its words", lambda: self.vm.docker("logs", victim) == "last words\n")
        self.vm.run(f"kill -9 $(sed 's/.*\"shim_pid\": *\\([0-9]*\\).*/\\1/' /run/moorage/shim/{victim}/shim.json)")
        assert self.vm.docker("wait", victim).strip() == "137"
        assert self.vm.docker("logs", victim) == "last words\n"
        self.vm.docker("rm", victim)

    def runtime(self) -> None:
        self.vm.run(
            "(for i in 1 2 3 4 5 6 7 8; do kill -9 $(pidof crun); usleep 100000; done) > /dev/null 2>&1 &", check=False
        )
        said = self.vm.docker("run", "--rm", "--name", "brief", BUSYBOX_IMAGE, "echo", "in", check=False)
        assert said in ("", "in\n"), said
        eventually("the last kill", lambda: not self.vm.run("pidof crun", check=False))
        self.vm.docker("rm", "-f", "brief", check=False)

    def under_a_run(self) -> None:
        """The daemon is killed somewhere in a run, which must not notice."""
        delay = self.chance.randrange(1_500_000)
        self.vm.run(f"(usleep {delay}; kill -9 {self.pids()[1]}) > /dev/null 2>&1 &", check=False)
        for _ in range(2):
            assert self.vm.docker("run", "--rm", BUSYBOX_IMAGE, "echo", "in") == "in\n"

    def reload(self) -> None:
        self.vm.client.daemon("reload")

    def restart(self) -> None:
        self.vm.client.daemon("restart")

    def backend(self) -> None:
        pid = self.vm.status().backend.pid
        os.kill(pid, signal.SIGKILL)
        wait_ended(pid)
        self.vm.wait("ready")

    def sshd(self) -> None:
        self.vm.run("(sleep 0.2; kill -9 $(pidof sshd sshd-session)) > /dev/null 2>&1 &", check=False)
        until(self.vm, "the connection to break", lambda s: s.state != "ready")
        self.vm.wait("ready")

    def pause(self) -> None:
        suspend(self.vm)
        until(self.vm, "the pause to be seen", lambda s: s.state == "paused")
        self.vm.client.start()

    def clock(self) -> None:
        self.vm.run(f"date -s @$(($(date +%s) + {self.chance.randrange(-90000, 90000)}))")
        eventually("the guest's clock", lambda: abs(float(self.vm.run("date +%s")) - time.time()) < 5)

    def power(self) -> None:
        """May be lost: lines from the end."""
        for busy in self.fleet:
            busy.check_untouched()
        self.vm.client.kill()
        self.vm.client.start()
        for busy in self.fleet:
            lines = self.vm.docker("logs", busy.name).splitlines()
            assert lines == [f"out {number}" for number in range(1, len(lines) + 1)], f"{busy.name} has torn lines"
            assert self.vm.docker("inspect", "-f", "{{.State.Status}}", busy.name) == "exited\n"
        self._anew()


_FAULTS: dict[str, tuple[int, Callable[[_Run], None]]] = {
    "daemon killed": (6, _Run.daemon),
    "daemon killed under a run": (5, _Run.under_a_run),
    "agent killed": (3, _Run.agent),
    "agent and daemon killed": (2, _Run.both),
    "zygote and netd killed": (1, _Run.zygote_and_netd),
    "shim killed": (3, _Run.shim),
    "crun killed": (3, _Run.runtime),
    "daemon reloaded": (1, _Run.reload),
    "daemon restarted": (2, _Run.restart),
    "backend killed": (2, _Run.backend),
    "sshd killed": (1, _Run.sshd),
    "machine paused": (2, _Run.pause),
    "clock set": (1, _Run.clock),
    "power cut": (1, _Run.power),
}
