"""`python -m tests.soak [--faults N] [--seed N] [--containers N] [--vm]`, also as `./check soak`."""

import argparse
import secrets
import sys
from pathlib import Path

from tests.soak.machine import soak_machine
from tests.soak.run import Plan, soak

RECORDS = Path(__file__).parents[2] / "artifacts" / "soak"


def main() -> int:
    """Run one soak; 0 when nothing was found."""
    parser = argparse.ArgumentParser(
        prog="soak", description="Random faults over busy containers: nothing may be lost."
    )
    parser.add_argument("--faults", type=int, default=200, help="how many (200)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="decides everything; else by chance")
    parser.add_argument("--containers", type=int, help="busy containers (20, in a machine 4)")
    parser.add_argument(
        "--vm", action="store_true", help="in a virtual machine of its own, with faults of all its parts"
    )
    parser.add_argument("--record", type=Path, help="file of JSON lines (artifacts/soak/SEED.jsonl)")
    options = parser.parse_args()
    record = options.record or RECORDS / f"{'vm-' if options.vm else ''}{options.seed}.jsonl"
    containers = options.containers or (4 if options.vm else 20)

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    say(f"soak: {options.faults} faults over {containers} containers, seed {options.seed}, record {record}")
    found = (soak_machine if options.vm else soak)(Plan(options.seed, options.faults, containers, record, say))
    for sentence in found:
        say(f"FOUND {sentence}")
    say(f"soak: seed {options.seed}: {len(found) or 'nothing'} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
