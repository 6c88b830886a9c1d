"""Debian's packages for tests, unpacked but not installed, in the checkout's ``.cache/tools``."""

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).parents[2] / ".cache" / "tools"


def unpacked(
    name: str,
    suite: str,
    packages: str,
    proof: str,
    finish: Callable[[Path], None] = lambda root: None,
    architecture: str | None = None,
) -> Path:
    """Return the folder with packages (names with commas between) and what they need, made on first use; takes minutes then.

    ``proof`` is a file in it by which a finished one is known; ``finish`` gets the folder before anyone else does. Processes that
    ask at the same time wait for the one that unpacks. They are the machine's own unless a Debian architecture is named. Raises AssertionError with mmdebstrap's words.
    """
    root = TOOLS / name
    if (root / proof).exists():
        return root
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / proof).exists():
            return root
        work = Path(tempfile.mkdtemp(dir=TOOLS, prefix=f"{name}-"))
        try:
            fetch = ["mmdebstrap", "--mode=chrootless", "--variant=extract", "--format=directory"]
            fetch += ["--aptopt=APT::Install-Recommends false", f"--include={packages}", suite, str(work / "root")]
            if architecture is not None:
                fetch.insert(1, f"--architectures={architecture}")
            done = subprocess.run(fetch, capture_output=True, text=True, timeout=280, check=False)
            assert done.returncode == 0, f"cannot unpack {packages} of Debian {suite}: {done.stderr[-2000:]}"
            finish(work / "root")
            assert (work / "root" / proof).exists(), f"{packages} of Debian {suite} have no {proof}"
            shutil.rmtree(root, ignore_errors=True)
            (work / "root").rename(root)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return root
