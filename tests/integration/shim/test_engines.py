"""Changing the engine under running containers, with built engines of this tree."""

from pathlib import Path

import pytest

from tests.support.engines import build_engine
from tests.support.shims import Harness, until
from tests.support.supervised import AgentRefused, Host, Supervised, ping, socket_inode

pytestmark = pytest.mark.root

_BROKEN_DAEMON = "import sys\n\ndef main(argv):\n    sys.stderr.write('this engine is broken\\n')\n    return 1\n"


async def connect_when_switched(guest: Supervised, version: str, since: float) -> Host:
    """Return a connection to the agent of that engine, which began after `since`."""

    async def switched() -> Host | None:
        host = await guest.host()
        try:
            status = await host.ask("status")
        except (AssertionError, OSError):
            return None
        good = status["engine_version"] == version and status["daemon"]["state"] == "running"
        if good and status["agent"]["since"] > since:
            return host
        await host.close()
        return None

    host: Host = await until(f"engine {version}", switched)
    return host


async def test_patch_release_is_put_in_force_and_back_under_a_running_container(
    guest: Supervised, harness: Harness, tmp_path: Path
) -> None:
    shim, started = await harness.run("sleep", "1000", labels={"name": "/keeper"})
    old = (await guest.running())["daemon"]
    inode = socket_inode(guest.exec_root.docker_sock)
    file = tmp_path / "engine.tar.gz"
    digest = build_engine(file, "26.11.7")
    host = await guest.host()
    before = (await host.ask("engine.versions"))["current"]
    since = (await host.ask("status"))["agent"]["since"]
    await host.ask("engine.upgrade", path=str(file), sha256=digest)
    await host.close()

    host = await connect_when_switched(guest, "26.11.7", since)
    assert await host.ask("engine.versions") == {
        "current": "26.11.7", "previous": before, "versions": sorted({before, "26.11.7"}),
    }  # fmt: skip
    assert (await guest.running())["daemon"]["pid"] != old["pid"]
    assert (await shim.status()).pid == started.pid
    another, _ = await harness.run("sleep", "1000")
    assert (await another.status()).running

    since = (await host.ask("status"))["agent"]["since"]
    await host.ask("engine.rollback")
    await host.close()
    host = await connect_when_switched(guest, before, since)
    assert (await host.ask("engine.versions"))["current"] == before
    await host.close()
    assert (await shim.status()).running
    assert socket_inode(guest.exec_root.docker_sock) == inode
    assert (await ping(guest.exec_root.docker_sock)).startswith(b"HTTP/1.1 200")


async def test_engine_that_does_not_come_up_goes_back_by_itself(
    guest: Supervised, harness: Harness, tmp_path: Path
) -> None:
    shim, _ = await harness.run("sleep", "1000")
    file = tmp_path / "engine.tar.gz"
    digest = build_engine(file, "26.11.8", {"moorage_guest/daemon.py": _BROKEN_DAEMON})
    host = await guest.host()
    before = await host.ask("engine.versions")
    with pytest.raises(AgentRefused, match=r"this engine is broken.*in force again"):
        await host.ask("engine.upgrade", path=str(file), sha256=digest)
    assert (await host.ask("engine.versions"))["current"] == before["current"]
    await host.close()
    await guest.running()
    assert (await ping(guest.exec_root.docker_sock)).startswith(b"HTTP/1.1 200")
    assert (await shim.status()).running


async def test_engine_that_cannot_be_used_is_refused_before_anything_changes(
    guest: Supervised, harness: Harness, tmp_path: Path
) -> None:
    await harness.run("sleep", "1000", labels={"name": "/keeper"})
    old = (await guest.running())["daemon"]
    host = await guest.host()
    file = tmp_path / "engine.tar.gz"

    async def refused(digest: str, why: str) -> None:
        with pytest.raises(AgentRefused, match=why):
            await host.ask("engine.upgrade", path=str(file), sha256=digest)

    with pytest.raises(AgentRefused, match="no engine to go back to"):
        await host.ask("engine.rollback")
    await refused("0" * 64, "no such file")
    digest = build_engine(file, "26.11.8", {"moorage_guest/daemon.py": "import nosuchmodule\n"})
    await refused(digest, "cannot be imported: .*nosuchmodule")
    await refused("0" * 64, "its sha256 is")
    await refused(build_engine(file, "26.12.0"), "26.12.0 leaves 26.11.*stop these first: keeper")
    file.write_bytes(b"no archive at all")
    await refused("6e3cbe59b6ee2a1fdff34a1ac3a1ba6dc6a07ec5ad2a4dbfb9c5ef4a9bd14f2b", "its sha256 is")
    assert (await guest.running())["daemon"]["pid"] == old["pid"]
    assert not list((guest.data_root.root / "engine").glob("2*"))
    await host.close()
