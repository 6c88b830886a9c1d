"""Work on an image store that is killed at its n-th change of the file system. Run as a program, it does what lines tell it.

A line is a JSON object: ``work`` (see `WORK`), ``data`` (the data root), ``at`` (the change before which it is killed, 0 for
never) and what the work needs. The answer is a line with the number of changes, or "killed".
"""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from moorage_guest.images import importing, names
from moorage_guest.images.pulling import pull
from moorage_guest.images.pushing import push
from moorage_guest.images.registry import Credentials

from tests.support.imagestore import Shelf, shelf, source

_CHANGES = frozenset({"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _ignore(message: dict[str, Any]) -> None:
    return None


async def do_pull(opened: Shelf, task: dict[str, Any]) -> None:
    """Pull ``name``."""
    await pull(opened.images, names.parse(task["name"]), _ignore, credentials=Credentials())


async def do_push(opened: Shelf, task: dict[str, Any]) -> None:
    """Push ``name``."""
    await push(opened.images, names.parse(task["name"]), _ignore, credentials=Credentials())


async def do_load(opened: Shelf, task: dict[str, Any]) -> None:
    """Load the archive ``file``."""
    await asyncio.to_thread(opened.load, Path(task["file"]).read_bytes())


async def do_import(opened: Shelf, task: dict[str, Any]) -> None:
    """Import the tar ``file``."""
    tar = source(Path(task["file"]).read_bytes())
    await asyncio.to_thread(lambda: importing.import_tar(opened.images, tar, config={}, reference="imported:1"))


async def do_commit(opened: Shelf, task: dict[str, Any]) -> None:
    """Commit a container of ``name`` that wrote a file."""
    await opened.layers.create_rw("c", opened.images.resolve(task["name"]).id)
    root = await opened.layers.mount("c")
    (root / "written").write_bytes(b"written" * 50_000)
    await opened.layers.commit("c", config={}, reference="committed:1")
    await opened.layers.remove_rw("c")


async def do_remove(opened: Shelf, task: dict[str, Any]) -> None:
    """Remove ``name``."""
    await opened.images.remove(task["name"], force=True)


WORK: dict[str, Callable[[Shelf, dict[str, Any]], Awaitable[None]]] = {
    "pull": do_pull, "push": do_push, "load": do_load, "import": do_import, "commit": do_commit, "remove": do_remove,
}  # fmt: skip


async def _run(task: dict[str, Any]) -> int:
    changes = itertools.count(1)
    seen = 0
    counting = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not counting or (event not in _CHANGES and not (event == "open" and arguments[2] & _WRITING)):
            return
        seen = next(changes)
        if seen == task["at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    async with shelf(Path(task["data"])) as opened:
        sys.addaudithook(hook)
        counting = True
        await WORK[task["work"]](opened, task)
        counting = False
    return seen


def main() -> None:
    """Serve lines until standard input ends; every piece of work has a process of its own."""
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os.write(writing, str(asyncio.run(_run(json.loads(line)))).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        _pid, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        sys.stdout.write(("killed" if killed else told or f"status {status}") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
