"""A folder served over http on loopback, inside of a daemon's own network."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.moored import Sandbox, wait_for
from tests.support.registry import free_port

_ASK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5).close()"


@contextlib.contextmanager
def served(folder: Path, sandbox: Sandbox) -> Iterator[str]:
    """Serve the folder and yield its address, host:port; what the server is asked is in ``folder/../http.log``."""
    port = free_port()
    log = folder.parent / "http.log"
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(sandbox.command(*serve), stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def answers() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the server ended: {log.read_text()}")
        done = sandbox.run(sys.executable, "-c", _ASK, f"http://127.0.0.1:{port}/", check=False)
        return done.returncode == 0

    try:
        wait_for("the server to answer", answers)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
