"""The zygote that init starts ahead of the agent, and what an image keeps so that it imports faster."""

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.shims import until
from tests.support.supervised import Supervised, supervised

pytestmark = pytest.mark.root

USING = """
import sys
from pathlib import Path
from moorage_guest.agent import precompiled
from moorage_guest.agent.imports import import_daemon
with precompiled.used(Path(sys.argv[1])):
    import_daemon()
import aiohttp, moorage_guest.api.server
from moorage_guest.shim.container import Spec
loader = type(moorage_guest.api.server.__spec__.loader).__module__
spec = Spec("a", tty=False, open_stdin=True, stdin_once=False, runtime="crun", runtime_args=[], labels={})
assert spec == Spec("a", tty=False, open_stdin=True, stdin_once=False, runtime="crun", runtime_args=[], labels={})
assert Path(moorage_guest.api.server.__file__).is_file() and moorage_guest.api.__path__
print(loader, spec)
"""


@pytest.fixture
async def later() -> AsyncIterator[Supervised]:
    """An agent that does not run yet, whose folder for sockets is there."""
    async with supervised(started=False) as guest:
        guest.exec_root.root.mkdir(parents=True)
        yield guest


async def ahead(guest: Supervised) -> asyncio.subprocess.Process:
    """A zygote as init starts it, so far as to have said who it is."""
    zygote = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moorage_guest.agent.zygote", str(guest.exec_root.root), "--ahead",
        stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await until("the zygote's record", lambda: record(guest))
    return zygote


async def record(guest: Supervised) -> dict[str, int] | None:
    path = guest.exec_root.root / "supervised.json"
    return json.loads(path.read_text()) if path.exists() else None


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_agent_takes_the_zygote_that_was_started_ahead_of_it(later: Supervised) -> None:
    zygote = await ahead(later)
    await later.start()
    status = await later.running()
    assert parent(status["daemon"]["pid"]) == zygote.pid
    assert (await record(later) or {})["zygote_pid"] == zygote.pid
    await later.close()
    assert await asyncio.wait_for(zygote.wait(), 120) != 0
    later.root.mkdir()  # its fixture removes it once more


async def test_zygote_that_died_before_the_agent_came_is_replaced(later: Supervised) -> None:
    zygote = await ahead(later)
    zygote.kill()
    await zygote.wait()
    await later.start()
    assert parent((await later.running())["daemon"]["pid"]) not in (0, zygote.pid)


async def test_zygote_that_dies_while_it_imports_is_replaced(later: Supervised) -> None:
    zygote = await ahead(later)
    await later.start()
    await (await later.host()).close()
    zygote.kill()
    await zygote.wait()
    assert parent((await later.running())["daemon"]["pid"]) not in (0, zygote.pid)


async def test_zygote_of_the_image_is_ended_when_another_engine_is_in_force(later: Supervised) -> None:
    folder = later.data_root.root / "engine" / "26.11.7"
    folder.mkdir(parents=True)
    for name in ("moorage_guest", "moorage_contract"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        (folder / name).symlink_to(spec.submodule_search_locations[0])
    (folder.parent / "current").symlink_to("26.11.7")
    zygote = await ahead(later)
    await later.start()
    assert await asyncio.wait_for(zygote.wait(), 120) != 0
    assert parent((await later.running())["daemon"]["pid"]) not in (0, zygote.pid)


@pytest.mark.parametrize("content", ["recorded", "of another Python", "missing"])
def test_daemon_is_imported_from_the_image_file_or_without_it(content: str) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "precompiled.bin"
        if content == "recorded":
            subprocess.run([sys.executable, "-m", "moorage_guest.agent.precompiled", str(file)], check=True)
        elif content == "of another Python":
            file.write_bytes(b"\0\0\r\nnothing that could be loaded")
        done = subprocess.run([sys.executable, "-c", USING, str(file)], capture_output=True, text=True, check=True)
    loader, text = done.stdout.split(" ", 1)
    assert loader == ("moorage_guest.agent.precompiled" if content == "recorded" else "_frozen_importlib_external")
    assert text.startswith("Spec(")
