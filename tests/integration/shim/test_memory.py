"""What the process beside each container takes for itself; the aim of `./check bench shim_private_mib` is 1.5 MiB."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shims import private_agent

pytestmark = pytest.mark.root

#: Generous: it has been 1.4 MiB, and 1.8 before all shims were forked off a process that does nothing else.
_LIMIT_KIB = 1700

_HOW = (
    "`perf record -a -e page-faults -c 1 -d` shows which code copies which page (see moorage_guest/agent/rehearsal.py)"
)


def _private_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+)", text, re.MULTILINE))


async def test_a_shim_beside_an_idle_container_takes_little_memory_for_itself() -> None:
    async with private_agent() as harness:
        shims = [(await harness.run("sleep", "1000"))[0] for _ in range(4)]
        sizes = sorted([_private_kib((await shim.status()).shim_pid) for shim in shims])
    assert sizes[1] < _LIMIT_KIB, f"private memory of shims, KiB: {sizes}; {_HOW}"


_REHEARSE = """
import os, sys
from pathlib import Path
from moorage_guest.agent.rehearsal import rehearse
from moorage_guest.shim.loop import Loop

root = Path(sys.argv[1])
loop = Loop(print)
before = os.listdir("/proc/self/fd")
os.environ["PATH"] = sys.argv[2]
rehearse(loop, root)
children = Path(f"/proc/self/task/{os.getpid()}/children")
while children.read_text():  # one may be about to end
    loop.step(1.0)
print(os.listdir("/proc/self/fd") == before, list(root.iterdir()))
"""


@pytest.mark.parametrize("path", ["/usr/bin:/bin", "/nonexistent"])
def test_rehearsing_a_shims_life_leaves_no_descriptor_file_or_process(tmp_path: Path, path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _REHEARSE, str(tmp_path), path], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1].split() == ["True", "[]"]
    assert ("no rehearsal" in done.stdout) == (path == "/nonexistent")
