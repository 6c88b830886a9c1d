"""Benches by name, and the two files that their results go to.

``./check bench [NAME…]`` runs them and writes docs/performance.json and docs/performance.md. A bench measures ours and its
peer in the same run, alternating, and reports medians; these machines are noisy, so only the ratio means anything.
"""

import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
JSON_FILE = ROOT / "docs" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Result:
    """One measured number beside its peer's; ``ratio`` is ours/peer, None where there is no peer."""

    name: str
    ours: float
    peer: float | None
    unit: str
    runs: int
    command: str
    aim: str

    @property
    def ratio(self) -> float | None:
        return None if not self.peer else self.ours / self.peer


Bench = Callable[[], list[Result]]
BENCHES: dict[str, Bench] = {}

#: Modules with benches; importing one registers them.
MODULES = ("daemon", "logs", "images", "restore", "machine")


def bench(*names: str) -> Callable[[Bench], Bench]:
    """Register a function that measures these names in one go."""

    def register(function: Bench) -> Bench:
        for name in names:
            BENCHES[name] = function
        return function

    return register


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def alternate(ours: Callable[[], object], peer: Callable[[], object], runs: int) -> tuple[float, float]:
    """Return the median seconds of both, run by turns after one unmeasured run each."""
    ours()
    peer()
    mine, theirs = [], []
    for _ in range(runs):
        mine.append(seconds(ours))
        theirs.append(seconds(peer))
    return statistics.median(mine), statistics.median(theirs)


def machine() -> str:
    """Say on what a number was measured."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    return f"{os.cpu_count()} CPUs ({model}), Linux {platform.release()}"


def save(results: list[Result]) -> None:
    """Replace the measured names in docs/performance.json and write the page anew."""
    known = {entry["name"]: entry for entry in (json.loads(JSON_FILE.read_text()) if JSON_FILE.exists() else [])}
    for result in results:
        entry = {
            **asdict(result),
            "ratio": None if result.ratio is None else round(result.ratio, 4),
            "machine": machine(),
        }
        entry["ours"] = round(result.ours, 5)
        entry["peer"] = None if result.peer is None else round(result.peer, 5)
        known[result.name] = entry
    entries = [known[name] for name in sorted(known)]
    JSON_FILE.write_text(json.dumps(entries, indent=1) + "\n")
    PAGE.write_text(page(entries))


def page(entries: list[dict[str, object]]) -> str:
    """Return docs/performance.md for the entries of docs/performance.json."""
    lines = [
        "# Performance",
        "",
        "Made by `./check bench` from `performance.json`. Medians; ours and its peer measured by turns in the same run on the same",
        "machine. The peer is Debian's dockerd 26.1.5 unless the command says otherwise. The machine is shared and noisy: read the ratio.",
        "",
        "| name | ours | peer | ratio | aim | unit | runs | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = [
            "–" if entry[key] is None else str(entry[key])
            for key in ("name", "ours", "peer", "ratio", "aim", "unit", "runs")
        ]
        lines.append(f"| {' | '.join(cells)} | `{entry['command']}` |")
    machines = sorted({str(entry["machine"]) for entry in entries})
    return "\n".join([*lines, "", "Measured on: " + "; ".join(machines) + ".", ""])


def main(names: list[str]) -> int:
    """Run the benches named, all when none is."""
    for module in MODULES:
        if (Path(__file__).parent / f"{module}.py").exists():
            importlib.import_module(f"tests.bench.{module}")
    if unknown := [name for name in names if name not in BENCHES]:
        print(f"no bench named {', '.join(unknown)}; there are: {', '.join(sorted(BENCHES))}", file=sys.stderr)
        return 2
    done: set[Bench] = set()
    failed = 0
    for name in names or sorted(BENCHES):
        function = BENCHES[name]
        if function in done:
            continue
        done.add(function)
        try:
            results = function()
        except Exception as error:
            failed += 1
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        save(results)
        for result in results:
            ratio = "" if result.ratio is None else f"  ratio {result.ratio:.3f}"
            print(f"{result.name}: {result.ours:.4g} {result.unit}, peer {result.peer}{ratio}  (aim {result.aim})")
    return 1 if failed else 0


if __name__ == "__main__":
    from tests.bench import registry  # the benches register there, not in __main__

    sys.exit(registry.main(sys.argv[1:]))
