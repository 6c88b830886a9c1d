"""Runs the parts of ./check one after the other, fast ones first, and says plainly what came out.

Each part is a command with a time limit; its output goes to artifacts/check/PART.log. Tests that failed are
run once more, each by itself, and both outcomes are shown: the part fails when a test fails twice. A skipped test is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
REPORTS = TOP / "artifacts" / "check"
CLIENTS = TOP / ".cache" / "tools" / "clients"
IMAGE = TOP / ".cache" / "image"
SOURCES = ["guest/contract/moorage_contract", "guest/engine/moorage_guest", "host/moorage_host", "gui/moorage_gui"]
SOURCES += ["images/moorage_images", "tests", ".ci"]
PYTHON = sys.executable


@dataclass(frozen=True)
class Part:
    """One command; `tests` marks a pytest run, `root` one that needs root, `vm` one that boots machines."""

    name: str
    command: list[str]
    minutes: float
    tests: bool = False
    root: bool = False
    vm: bool = False


@dataclass
class Outcome:
    """What came of a part: empty `faults` is success; `notes` are shown all the same."""

    part: Part
    seconds: float = 0
    summary: str = ""
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tool(*command: str) -> list[str]:
    """A command of the environment's, by module where there is one."""
    return [str(Path(PYTHON).parent / command[0]), *command[1:]]


def tests(name: str, paths: list[str], minutes: float, *options: str, root: bool = False, vm: bool = False) -> Part:
    """A pytest run over the paths that exist."""
    return Part(name, [*paths, "--timeout", "300", *options], minutes, tests=True, root=root, vm=vm)


PARALLEL = ("-n", "2", "--dist", "loadfile")
PARTS = [
    Part("lint", tool("ruff", "check", "."), 3),
    Part("format", tool("ruff", "format", "--check", "."), 3),
    Part("imports", tool("lint-imports"), 5),
    Part("types", tool("mypy", *SOURCES), 15),
    Part("reference", [PYTHON, "-m", "moorage_contract.reference", "--check", "docs/daemon-json.md"], 2),
    tests("unit", ["tests/unit"], 10, *PARALLEL, root=True),
    tests("gui", ["tests/gui"], 10),
    tests("integration", ["tests/integration"], 20, root=True),
    tests("compat", ["tests/compat"], 20, *PARALLEL, root=True),
    Part("image", [PYTHON, "-m", "moorage_images.build", "build", "--if-needed", "--output", str(IMAGE)], 20),
    tests("builds", ["tests/system"], 15, "-m", "not vm"),
    tests("machine", ["tests/system"], 40, "-m", "vm", root=True, vm=True),
]


def main(arguments: list[str]) -> int:
    """Run the parts named, or all; ends with 1 when something failed."""
    os.chdir(TOP)
    if arguments[:1] == ["bench"]:
        return subprocess.run([PYTHON, "-m", "tests.bench.registry", *arguments[1:]]).returncode
    if arguments[:1] == ["soak"]:
        environment = clients_environment(dict(os.environ))
        return subprocess.run([PYTHON, "-m", "tests.soak", *arguments[1:]], env=environment).returncode
    chosen = choose(arguments)
    if chosen is None:
        return 2
    REPORTS.mkdir(parents=True, exist_ok=True)
    environment = clients_environment(os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    outcomes = []
    for part in chosen:
        say(f"── {part.name} (at most {part.minutes:g} min)")
        outcome = run_tests(part, environment) if part.tests else run_command(part, environment)
        outcomes.append(outcome)
        say(line(outcome))
    say("\n══ Summary")
    for outcome in outcomes:
        say(line(outcome))
        for note in outcome.notes:
            say(f"      {note}")
        for fault in outcome.faults:
            say(f"      {fault}")
    failed = [outcome.part.name for outcome in outcomes if outcome.faults]
    total = sum(outcome.seconds for outcome in outcomes)
    say(f"══ {'FAILED: ' + ', '.join(failed) if failed else 'Everything holds'} ({total / 60:.1f} min)")
    return 1 if failed else 0


def choose(arguments: list[str]) -> list[Part] | None:
    """The parts asked for; None after saying which names there are."""
    if arguments == ["fast"]:
        return [part for part in PARTS if not part.vm]
    unknown = [name for name in arguments if name not in {part.name for part in PARTS}]
    if unknown:
        say(f"check: no part named {', '.join(unknown)}; there are: fast, bench, {', '.join(p.name for p in PARTS)}")
        return None
    return [part for part in PARTS if not arguments or part.name in arguments]


def clients_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment with a docker CLI and Compose on its PATH: the machine's, else Debian's, unpacked but not installed."""
    if shutil.which("docker") and shutil.which("docker-compose"):
        return environment
    commands = CLIENTS / "bin"
    if not (commands / "docker-compose").exists():
        shutil.rmtree(CLIENTS, ignore_errors=True)
        CLIENTS.parent.mkdir(parents=True, exist_ok=True)
        root = CLIENTS / "root"
        say("unpacking Debian's docker CLI and Compose")
        fetch = ["mmdebstrap", "--mode=chrootless", "--variant=extract", "--format=directory"]
        fetch += ["--include=docker-cli,docker-compose", "--aptopt=APT::Install-Recommends false", "trixie", str(root)]
        CLIENTS.mkdir()
        done = subprocess.run(fetch, capture_output=True, text=True)
        if done.returncode != 0:
            say(f"check: the docker CLI could not be unpacked: {done.stderr.strip()[-500:]}")
            return environment
        commands.mkdir()
        (commands / "docker").symlink_to(root / "usr/bin/docker")
        (commands / "docker-compose").symlink_to(root / "usr/libexec/docker/cli-plugins/docker-compose")
    return environment | {"PATH": f"{environment['PATH']}:{commands}"}


def run_command(part: Part, environment: dict[str, str]) -> Outcome:
    """Run a part that is not pytest."""
    outcome = Outcome(part)
    code, outcome.seconds = execute(part, part.command, environment, REPORTS / f"{part.name}.log")
    if code != 0:
        outcome.faults.append(fault(part, code, REPORTS / f"{part.name}.log"))
    return outcome


def run_tests(part: Part, environment: dict[str, str]) -> Outcome:
    """Run a part that is pytest, with the second try of tests that failed."""
    outcome = Outcome(part)
    log = REPORTS / f"{part.name}.log"
    report = REPORTS / f"{part.name}.xml"
    report.unlink(missing_ok=True)
    code, outcome.seconds = execute(part, pytest(part, part.command, report), environment, log)
    counts, failed, skipped = read_report(report)
    outcome.summary = counts
    if code == 5 and not failed:
        outcome.faults.append("no test was found")
    elif code not in (0, 1) or (code == 1 and not failed):
        outcome.faults.append(fault(part, code, log))
    for test in failed:
        again = REPORTS / f"{part.name}-again.log"
        second, seconds = execute(
            part, pytest(part, [test, *part.command[1:3]], REPORTS / "again.xml"), environment, again
        )
        outcome.seconds += seconds
        if second == 0:
            outcome.notes.append(f"failed, then passed when run again by itself: {test}")
        else:
            outcome.faults.append(f"failed twice: {test} (see {again.relative_to(TOP)})")
    outcome.faults += [f"skipped: {test}" for test in skipped]
    return outcome


def pytest(part: Part, arguments: list[str], report: Path) -> list[str]:
    """The command of a pytest run that leaves a report."""
    command = [PYTHON, "-m", "pytest", "-q", *arguments, f"--junitxml={report}", "-o", "junit_family=xunit1"]
    if part.root and os.geteuid() != 0:
        return ["sudo", "--preserve-env=PATH,PYTHONDONTWRITEBYTECODE,HOME", "--", *command]
    return command


def execute(part: Part, command: list[str], environment: dict[str, str], log: Path) -> tuple[int, float]:
    """Run a command with the part's time limit, output to the log; returns exit code (124 when out of time) and seconds."""
    begin = time.monotonic()
    with log.open("ab" if log.name.endswith("-again.log") else "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=part.minutes * 60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            code = 124
    return code, time.monotonic() - begin


def read_report(report: Path) -> tuple[str, list[str], list[str]]:
    """Counts as text, failed tests and skipped tests of a report, as pytest's node ids."""
    try:
        suites = ElementTree.parse(report).getroot().iter("testsuite")
    except (OSError, ElementTree.ParseError):
        return "no report", [], []
    total, failed, skipped = 0, [], []
    for case in (case for suite in suites for case in suite.iter("testcase")):
        total += 1
        file, classes, name = case.get("file", ""), case.get("classname", ""), case.get("name", "")
        inner = classes.removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".").replace(".", "::")
        test = "::".join(word for word in (file, inner, name) if word)
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(test)
        elif (reason := case.find("skipped")) is not None:
            skipped.append(f"{test}: {reason.get('message', '')}")
    return f"{total - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped", failed, skipped


def fault(part: Part, code: int, log: Path) -> str:
    """One sentence, and the log's last lines."""
    what = f"was stopped after {part.minutes:g} minutes" if code == 124 else f"ended with {code}"
    tail = log.read_text(errors="replace").splitlines()[-15:]
    return "\n        ".join([f"{what}; {log.relative_to(TOP)} ends with:", *tail])


def line(outcome: Outcome) -> str:
    """A part's result in one line."""
    state = "FAILED" if outcome.faults else "ok, on the second try" if outcome.notes else "ok"
    return f"   {outcome.part.name:<12} {state:<22} {outcome.seconds:7.1f} s  {outcome.summary}".rstrip()


def say(text: str) -> None:
    """Tell the user now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
