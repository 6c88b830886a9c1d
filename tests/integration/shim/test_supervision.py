"""The supervising agent with the real daemon: restarts, recovery, daemon.json."""

import signal

import pytest

from tests.support.shims import until
from tests.support.supervised import Supervised, ping, socket_inode

pytestmark = pytest.mark.root


async def test_daemon_is_back_after_sigkill_and_connections_wait_for_it(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    path = guest.exec_root.docker_sock
    inode = socket_inode(path)
    assert path.stat().st_mode & 0o777 == 0o600
    host = await guest.host()
    await host.ask("daemon.kill")
    assert (await ping(path)).startswith(b"HTTP/1.1 200")
    after = (await guest.running(other_than=before["pid"]))["daemon"]
    assert after["restarts"] == before["restarts"] + 1
    assert after["last_exit"] == -signal.SIGKILL
    assert socket_inode(path) == inode
    await host.close()


async def test_agent_killed_finds_daemon_and_socket_again(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    inode = socket_inode(guest.exec_root.docker_sock)
    await guest.kill()
    assert (await ping(guest.exec_root.docker_sock)).startswith(b"HTTP/1.1 200")
    await guest.start()
    after = (await guest.running())["daemon"]
    assert after["pid"] == before["pid"]
    assert socket_inode(guest.exec_root.docker_sock) == inode
    host = await guest.host()
    await host.ask("daemon.kill")
    await guest.running(other_than=before["pid"])
    assert (await ping(guest.exec_root.docker_sock)).startswith(b"HTTP/1.1 200")
    assert socket_inode(guest.exec_root.docker_sock) == inode
    await host.close()


async def test_broken_daemon_json_never_takes_effect(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    host = await guest.host()
    for content in ("{", '{"no-such-key": 1}', '{"bip": "nonsense"}'):
        verdict = await host.ask("config.validate", content=content)
        assert verdict["ok"] is False
        assert verdict["message"]
        assert "candidate" not in verdict["message"]
        applied = await host.ask("config.apply", content=content, mode="restart")
        assert applied == {"ok": False, "message": verdict["message"], "rolled_back": False}
    assert (await guest.running())["daemon"]["pid"] == before["pid"]
    assert not (guest.data_root.root / "daemon.json").exists()
    await host.close()


async def test_good_daemon_json_is_applied_by_reload_and_by_restart(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    host = await guest.host()
    content = '{"debug": true}\n'
    assert await host.ask("config.apply", content=content, mode="reload") == {
        "ok": True, "message": "", "rolled_back": False,
    }  # fmt: skip
    assert (await guest.running())["daemon"]["pid"] == before["pid"]
    assert (await host.ask("config.get"))["content"] == content
    assert (await host.ask("config.apply", content="{}\n", mode="restart"))["ok"]
    assert (await guest.running())["daemon"]["pid"] != before["pid"]
    assert (guest.data_root.root / "daemon.json.good").read_text() == "{}\n"
    await host.close()


async def test_daemon_json_broken_by_hand_is_set_aside_for_the_last_good_one(guest: Supervised) -> None:
    await guest.running()
    file = guest.data_root.config_file
    host = await guest.host()
    assert (await host.ask("config.apply", content='{"debug": true}\n', mode="restart"))["ok"]
    before = (await guest.running())["daemon"]
    file.write_text('{"no-such-key": true}\n')
    await host.ask("daemon.kill")
    status = await guest.running(other_than=before["pid"])
    assert "no-such-key" in status["config"]["rolled_back"]["message"]
    assert file.read_text() == '{"debug": true}\n'
    assert "no-such-key" in file.with_name("daemon.json.rejected").read_text()
    await host.close()


async def test_status_is_told_to_whoever_watches(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    watcher, host = await guest.host(), await guest.host()
    await watcher.ask("watch")
    assert (await watcher.line())["event"] == "status"
    await host.ask("daemon.kill")

    async def back() -> bool:
        daemon = (await watcher.line())["result"]["daemon"]
        return bool(daemon["state"] == "running" and daemon["pid"] != before["pid"])

    await until("news of the next daemon", back)
    await watcher.close()
    await host.close()
