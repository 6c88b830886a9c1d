"""Requests that nobody should send, a thousand and more: none brings the daemon down, and nothing stays behind.

``MOORAGE_FUZZ_SEED`` and ``MOORAGE_FUZZ_REQUESTS`` (for each operation) ask for other ones and for more.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.api_table import operations
from tests.support.fuzzing import Case, Names, cases, send
from tests.support.images import busybox_archive
from tests.support.leaks import Holdings, cgroups, holdings, leaked
from tests.support.moored import Moored, running_moored, wait_for
from tests.support.openapi import specification
from tests.support.strangeconfigs import host_configs

SEED = int(os.environ.get("MOORAGE_FUZZ_SEED", "1"))
REQUESTS = int(os.environ.get("MOORAGE_FUZZ_REQUESTS", "11"))

#: Seconds that a request may take before its client calls the daemon stuck, on a slow, busy machine.
PATIENCE = 60.0

#: Operations that wait for something that may never come; their client leaves after a moment.
WAITING = ("POST /containers/{id}/stop", "POST /containers/{id}/restart", "POST /containers/{id}/attach")

#: Operations that ask a registry for an image.
PULLING = ("POST /images/create", "POST /images/{name}/push")

NAMES = Names(
    containers=("fuzz-runs", "fuzz-ended"),
    images=("busybox", "busybox:latest"),
    networks=("fuzz-net", "bridge", "none"),
    volumes=("fuzz-volume",),
    execs=("no-exec",),
)


@dataclass
class Fuzzed:
    """A daemon with something to be found in it, and what it answered."""

    moored: Moored
    before: Holdings
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def furnish(self) -> None:
        """Make what requests refer to, where an earlier request has taken it away."""
        api, docker = self.moored.api, self.moored.docker
        if api.call("GET", "/images/busybox/json", check=False).status != 200:
            docker("load", "-i", str(busybox_archive()))
        api.call("POST", "/networks/create", body={"Name": "fuzz-net"}, check=False)
        api.call("POST", "/volumes/create", body={"Name": "fuzz-volume"}, check=False)
        api.call("POST", "/containers/fuzz-runs/unpause", check=False)
        if api.call("POST", "/containers/fuzz-runs/start", check=False).status not in (204, 304):
            api.call("DELETE", "/containers/fuzz-runs", query={"force": 1}, check=False)
            docker("run", "-d", "--init", "--name", "fuzz-runs", "-v", "fuzz-volume:/v", "busybox", "sleep", "100000")
        if api.call("GET", "/containers/fuzz-ended/json", check=False).status != 200:
            docker("run", "--name", "fuzz-ended", "busybox", "echo", "ended")

    def names(self) -> Names:
        """The names, with an exec session that is there."""
        made = self.moored.api.call(
            "POST", "/containers/fuzz-runs/exec", body={"Cmd": ["true"], "AttachStdout": True}, check=False
        )
        session = str(made.json.get("Id", "")) if made.status == 201 else "no-exec"
        return Names(NAMES.containers, NAMES.images, NAMES.networks, NAMES.volumes, (session, "no-exec"))

    def try_one(self, case: Case) -> None:
        """Send one request and note what is wrong with its answer."""
        waits = case.operation in WAITING
        answer = send(self.moored.socket, case, 1.5 if waits else PATIENCE)
        self.sent += 1
        if answer is None:
            return
        self.statuses[answer.status] += 1
        if answer.status == 500 and case.operation in PULLING and b"dial tcp" in answer.body:
            return  # nobody answers here; dockerd's status, from which clients know that trying again is useless
        if answer.status == 500 or (answer.status == -1 and not waits):
            self.faults.append(f"{answer.status} in {answer.seconds:.1f} s: {answer.body[:300]!r} for {case}"[:2500])
        elif answer.status >= 400 and case.framing == "length" and not case.operation.endswith("/attach"):  # plain text
            try:
                assert isinstance(json.loads(answer.body)["message"], str) or case.method == "HEAD"
            except (ValueError, KeyError, TypeError):
                if case.method != "HEAD":
                    self.faults.append(f"{answer.status} without a message: {answer.body[:300]!r} for {case}"[:2500])

    def empty(self) -> None:
        """Take away everything that there is in the engine."""
        api = self.moored.api
        for each in api.get("/containers/json", all=1).json:
            api.call("DELETE", f"/containers/{each['Id']}", query={"force": 1, "v": 1}, check=False)
        for each in api.get("/networks").json:
            if each["Name"] not in ("bridge", "host", "none"):
                api.call("DELETE", f"/networks/{each['Id']}", check=False)
        for each in api.get("/volumes").json["Volumes"]:
            api.call("DELETE", f"/volumes/{each['Name']}", query={"force": 1}, check=False)
        for each in api.get("/images/json", all=1).json:
            api.call("DELETE", f"/images/{each['Id']}", query={"force": 1}, check=False)
        api.call("POST", "/build/prune", query={"all": 1}, check=False)
        api.call("POST", "/images/prune", query={"filters": {"dangling": ["false"]}}, check=False)


@pytest.fixture
def fuzzed() -> Iterator[Fuzzed]:
    """A daemon that has once done everything there is and was emptied again, so that what lasts is there before."""
    with running_moored() as moored:
        for _ in range(2):
            moored.docker("load", "-i", str(busybox_archive()))
            moored.docker("network", "create", "first")
            moored.docker(
                "run",
                "-d",
                "--name",
                "first",
                "--ipc",
                "shareable",
                "-p",
                "80",
                "--net",
                "first",
                "-v",
                "vol:/v",
                "busybox",
                "sleep",
                "999",
            )
            moored.docker("exec", "first", "true")
            moored.docker("commit", "first", "committed")
            moored.docker("rm", "-f", "first")
            moored.docker("network", "rm", "first")
            moored.docker("volume", "rm", "vol")
            moored.docker("rmi", "-f", "committed", "busybox")
        yield Fuzzed(moored, settled(moored))


def settled(moored: Moored) -> Holdings:
    """Return what the daemon holds once it has come to rest."""
    seen = [holdings(moored)]

    def rests() -> bool:
        seen.append(holdings(moored))
        return not leaked(seen[-1], seen[-2]) and not leaked(seen[-2], seen[-1])

    wait_for("the daemon to come to rest", rests)
    return seen[-1]


def check(fuzzed: Fuzzed) -> None:
    """Fail unless the daemon is alive and well and holds nothing that it did not hold before."""
    moored = fuzzed.moored
    assert moored.process is not None and moored.process.poll() is None, moored.log()
    assert moored.answers()
    log = moored.log_file.read_text(errors="replace")
    if (at := log.find("Traceback")) >= 0:
        fuzzed.faults.append(f"a traceback in the log: {log[max(0, at - 300) : at + 3000]}")
    fuzzed.empty()
    end = time.monotonic() + PATIENCE
    while (left := leaked(fuzzed.before, settled(moored))) and time.monotonic() < end:
        fuzzed.empty()
    for kind, what in left.items():
        fuzzed.faults.append(f"{kind} that stay: {what}")
    print(f"{fuzzed.sent} requests, answered with {dict(sorted(fuzzed.statuses.items()))}")
    assert not fuzzed.faults, f"{len(fuzzed.faults)} faults:\n" + "\n".join(fuzzed.faults[:40])


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )  # fmt: skip


def test_a_thousand_malformed_requests_break_nothing_and_leave_nothing(fuzzed: Fuzzed) -> None:
    for number, (method, path) in enumerate(operations()):
        operation: dict[str, Any] = specification()["paths"][path][method.lower()]
        fuzzed.furnish()

        @seed(SEED * 1000 + number)
        @_settings(REQUESTS)
        @given(cases(method, path, operation, fuzzed.names()))
        def each(case: Case) -> None:
            fuzzed.try_one(case)

        each()
    assert fuzzed.sent >= 1000
    check(fuzzed)


def test_strange_but_well_formed_containers_start_or_are_refused(fuzzed: Fuzzed) -> None:
    fuzzed.furnish()
    api = fuzzed.moored.api
    started = Counter[int]()

    @seed(SEED)
    @_settings(REQUESTS * 5)
    @given(st.data())
    def each(data: st.DataObject) -> None:
        body = data.draw(host_configs(fuzzed.moored.sandbox.root.name))
        made = api.call("POST", "/containers/create", body=body, check=False)
        fuzzed.statuses[made.status] += 1
        if made.status == 500:
            fuzzed.faults.append(f"create: {made.message} for {json.dumps(body)}")
        if made.status != 201:
            return
        try:
            start = api.call("POST", f"/containers/{made.json['Id']}/start", check=False)
            started[start.status] += 1
            if start.status == 500 and not _runtime_said(start.message):
                fuzzed.faults.append(f"start: {start.message} for {json.dumps(body)}")
            assert api.call("GET", f"/containers/{made.json['Id']}/json", check=True).status == 200
        finally:
            removed = api.call("DELETE", f"/containers/{made.json['Id']}", query={"force": 1, "v": 1}, check=False)
            if removed.status not in (204, 404, 409):
                fuzzed.faults.append(f"remove: {removed.body!r} for {json.dumps(body)}")
            if left := [name for name in cgroups(fuzzed.moored) if made.json["Id"] in name]:
                fuzzed.faults.append(f"cgroups stay: {left[:2]} after {start.body!r} for {json.dumps(body)}")

    each()
    print(f"starts answered with {dict(started)}")
    assert started[204] > 0
    check(fuzzed)


def _runtime_said(message: str) -> bool:
    """Whether the kernel or the runtime refused what was asked for; dockerd answers 500 to that, too."""
    said = (
        "OCI runtime create failed",
        "error gathering device information",
        "failed to join",
        "no such file or directory",
    )
    return any(text in message for text in said)
