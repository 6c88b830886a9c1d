"""A soak from beginning to end: seeded and recorded, so that what one run found can be run again.

The record is a file of JSON lines: the beginning (seed, numbers), every fault with what it did and found, and the end.
"""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.faults import FAULTS, Soak
from tests.soak.fleet import DONE, NETWORK, Member, make_fleet
from tests.soak.leftovers import Picture, take_picture
from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox, wait_for
from tests.support.runtime import Runtime


@dataclass(frozen=True)
class Plan:
    """What to do. ``record`` is written line by line."""

    seed: int
    faults: int
    containers: int
    record: Path
    say: Callable[[str], None]


def soak(plan: Plan) -> list[str]:
    """Do it; returns what was found, a sentence each. Needs root; takes about two seconds a fault."""
    with Sandbox() as sandbox:
        moored = Moored(sandbox, supervised=True)
        runtime = Runtime(moored)
        try:
            moored.start()
            found = _Run(plan, moored, runtime).run()
        finally:
            moored.end()
        if found:
            _keep_logs(moored, plan.record)
        return found


def _keep_logs(moored: Moored, record: Path) -> None:
    for name in ("agent", "daemon"):
        path = moored.data_root / "log" / f"{name}.log"
        if path.exists():
            record.with_suffix(f".{name}.log").write_bytes(path.read_bytes())


class _Run:
    def __init__(self, plan: Plan, moored: Moored, runtime: Runtime) -> None:
        self._plan = plan
        self._moored = moored
        self._found: list[str] = []
        fleet = make_fleet(moored.sandbox.root / "progress", plan.containers)
        self._soak = Soak(moored, runtime, fleet, random.Random(plan.seed))
        plan.record.parent.mkdir(parents=True, exist_ok=True)
        self._record = plan.record.open("w")

    def run(self) -> list[str]:
        """All of it."""
        with self._record:
            self._note(seed=self._plan.seed, faults=self._plan.faults, containers=self._plan.containers)
            before = self._warm_up()
            for member in self._soak.fleet:
                member.create(self._moored)
            for number in range(1, self._plan.faults + 1):
                self._one(number)
            self._finish(before)
            self._note(found=self._found)
        return self._found

    def _note(self, **what: Any) -> None:
        self._record.write(json.dumps(what) + "\n")
        self._record.flush()

    def _warm_up(self) -> Picture:
        """Do once what makes lasting things, so that only growth counts."""
        docker = self._moored.docker
        docker("load", "-i", str(busybox_archive()))
        docker("network", "create", NETWORK)
        docker("run", "--rm", "--network", NETWORK, "-p", "80", "-v", "/scratch", "busybox", "true")
        docker("run", "--rm", "busybox", "true")
        docker("network", "rm", NETWORK)
        picture = take_picture(self._moored)
        docker("network", "create", NETWORK)
        return picture

    def _one(self, number: int) -> None:
        work = self._soak
        (chosen,) = work.chance.choices(FAULTS, [each.weight for each in FAULTS])
        work.killed = False
        work.notes = []
        begin = time.monotonic()
        problems: list[str] = []
        touched: list[Member] = []
        self._guarded(problems, lambda: touched.extend(chosen.act(work)))
        self._guarded(problems, work.ready)
        for member in touched:
            self._guarded(problems, lambda member=member: member.run_again(self._moored))  # type: ignore[misc]
        for member in work.fleet:
            self._guarded(problems, lambda member=member: member.check_untouched(self._moored))  # type: ignore[misc]
        if number % 5 == 0:
            self._guarded(problems, self._check_service)
        seconds = time.monotonic() - begin
        self._note(
            fault=number, name=chosen.name, touched=[member.name for member in touched], notes=work.notes,
            seconds=round(seconds, 2), problems=problems,
        )  # fmt: skip
        self._plan.say(f"{number:4} {seconds:6.1f} s  {chosen.name}{'; ' + '; '.join(problems) if problems else ''}")
        self._found += [f"fault {number} ({chosen.name}): {problem}" for problem in problems]
        if problems:
            for member in work.fleet:
                self._guarded([], lambda member=member: member.run_again(self._moored))  # type: ignore[misc]

    def _check_service(self) -> None:
        """Names are answered and published ports serve, in the containers that do that."""
        awake = [member for member in self._soak.fleet if not member.paused]
        inside = [member for member in awake if f"--network={NETWORK}" in member.kind.options]
        for member in awake:
            if not member.kind.web:
                continue
            if member.kind.word == "web":
                page = self._moored.docker("exec", inside[-1].name, "wget", "-qO-", f"http://{member.name}/")
            else:
                port = self._moored.docker("port", member.name, "80").splitlines()[0].rpartition(":")[2]
                page = self._moored.sandbox.run("busybox", "wget", "-qO-", f"http://127.0.0.1:{port}/").stdout.strip()
            assert page == member.name, f"{member.name} serves {page!r}"

    def _finish(self, before: Picture) -> None:
        """Let everything end and compare."""
        moored, fleet = self._moored, self._soak.fleet
        for member in fleet:
            if member.paused:
                moored.docker("unpause", member.name)
            if member.kind.restarts:
                moored.docker("update", "--restart=no", member.name)
            if member.kind.health:
                self._guarded(self._found, lambda member=member: self._check_health(member))  # type: ignore[misc]
            member.finish()
        for member in fleet:
            self._guarded(self._found, lambda member=member: self._check_end(member))  # type: ignore[misc]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda member: moored.docker("rm", "-f", "-v", member.name), fleet))
        for member in fleet:
            if member.kind.word == "volume":
                moored.docker("volume", "rm", f"soak-{member.name}")
        moored.docker("network", "rm", NETWORK)

        def nothing_left() -> bool:
            self._last = take_picture(moored).grown(before)
            return not self._last

        try:
            wait_for("what is left to go", nothing_left, 20)
        except AssertionError:
            self._found += self._last
        picture = take_picture(moored)
        self._note(
            descriptors=[before.descriptors, picture.descriptors], memory=[before.memory, picture.memory]
        )  # fmt: skip

    def _check_health(self, member: Member) -> None:
        wait_for(
            f"{member.name} to be healthy",
            lambda: member.inspect(self._moored)["State"]["Health"]["Status"] == "healthy",
        )

    def _check_end(self, member: Member) -> None:
        code = self._moored.docker("wait", member.name)
        assert code == str(DONE), f"{member.name} ended with {code} instead of {DONE}"
        member.check_log(self._moored)

    def _guarded(self, problems: list[str], action: Callable[[], object]) -> None:
        """Let what goes wrong be found instead of ending the soak."""
        try:
            action()
        except Exception as error:
            problems.append(" ".join(f"{type(error).__name__}: {error}".split())[:800])
