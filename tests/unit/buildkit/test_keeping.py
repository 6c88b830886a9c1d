"""Folders that are built again: what has not changed is not sent again, and what is kept ends."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from moorage_guest.buildkit import filesync, keeping
from moorage_guest.buildkit.session import ClientSession, Sessions
from moorage_guest.buildkit.session_messages import Packet, Stat
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.build.sources import Source

from tests.support.buildclient import Answer, BuildClient, session

LONG = 60.0

LARGE = bytes(range(256)) * 2000


class Folder:
    """A client's folder; remembers which files were asked for."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self.contents = dict(contents)
        self.times = dict.fromkeys(contents, 1)
        self.asked: list[str] = []
        self.fails = False

    async def answer(self, answer: Answer) -> None:
        found = [Stat(name, 0o644, 0, 0, len(self.contents[name]), self.times[name]) for name in sorted(self.contents)]
        await answer.send(
            *(Packet(0, each) for each in found), *([Packet(4, data=b"lost")] if self.fails else [Packet(0)])
        )
        while (packet := await answer.packet()) is not None and packet.type == 1:
            name = found[packet.id].path
            self.asked.append(name)
            await answer.send(Packet(2, None, packet.id, self.contents[name]), Packet(2, None, packet.id))
        await answer.send(Packet(3))

    def change(self, name: str, data: bytes) -> None:
        self.contents[name], self.times[name] = data, self.times.get(name, 1) + 1


@contextlib.asynccontextmanager
async def client(folder: Folder, sessions: Sessions, *, shared_key: str = "key") -> AsyncIterator[ClientSession]:
    offered = BuildClient({filesync.FILES: folder.answer})
    async with asyncio.timeout(LONG):
        async with session(offered, sessions.tmp, sessions=sessions, shared_key=shared_key):
            yield await sessions.get("here")


def contents(tree: ContextTree) -> dict[str, bytes]:
    return {
        entry.name: os.pread(content.descriptor, entry.size, content.offset)
        for entry, content in tree.walk(Source(tree, "", True))
        if content is not None
    }


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_only_what_has_changed_is_sent_again(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    folder = Folder({"a": LARGE, "b": b"small", "dir-less": b"", "gone": b"x" * 10})
    for round_number in range(6):
        async with client(folder, sessions) as found:
            with contextlib.closing(await found.local("context")) as tree:
                assert contents(tree) == folder.contents
        expected = ["a", "b", "gone"] if round_number == 0 else ["b", "new"] if round_number == 1 else ["b"]
        assert folder.asked == expected
        folder.asked.clear()
        folder.change("b", f"changed {round_number}".encode())
        folder.change("new", b"new") if round_number == 0 else None
        folder.contents.pop("gone", None)
    sessions.keeper.clear()


async def test_a_file_that_was_touched_is_sent_again(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    folder = Folder({"a": LARGE})
    for _ in range(2):
        async with client(folder, sessions) as found:
            (await found.local("context")).close()
        folder.times["a"] += 1
    assert folder.asked == ["a", "a"]
    sessions.keeper.clear()


async def test_builds_at_the_same_time_share_nothing(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    folder = Folder({"a": LARGE, "b": b"1"})
    async with client(folder, sessions) as found:
        (await found.local("context")).close()
        folder.asked.clear()
        first = await found.local("context")
        second = await found.local("context")
        assert folder.asked == ["a", "b"]
        assert contents(first) == contents(second) == folder.contents
        first.close()
        second.close()
        second.close()
        (await found.local("context")).close()
        assert folder.asked == ["a", "b"]
    sessions.keeper.clear()


async def test_other_clients_other_folders_and_other_parts_are_kept_apart(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    folder = Folder({"a": LARGE})
    for key, name, follow in (("1", "context", []), ("2", "context", []), ("1", "other", []), ("1", "context", ["a"])):
        async with client(folder, sessions, shared_key=key) as found:
            (await found.local(name, follow=follow)).close()
    for _ in range(2):
        async with client(folder, sessions, shared_key="") as found:
            (await found.local("context")).close()
    assert folder.asked == ["a"] * 6
    sessions.keeper.clear()


async def test_a_transfer_that_fails_leaves_nothing_and_the_next_one_is_whole(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    folder = Folder({"a": LARGE})
    async with client(folder, sessions) as found:
        (await found.local("context")).close()
        before = descriptors()
        folder.fails = True
        with pytest.raises(InvalidParameter, match="lost"):
            await found.local("context")
        assert descriptors() < before, "what was kept has been given up"
        folder.fails = False
        with contextlib.closing(await found.local("context")) as tree:
            assert contents(tree) == folder.contents
    assert folder.asked == ["a", "a"]
    sessions.keeper.clear()


async def test_what_is_kept_ends_by_time_by_size_and_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    sessions = Sessions(tmp_path)
    folder = Folder({"a": LARGE})

    async def use(key: str = "key") -> None:
        async with client(folder, sessions, shared_key=key) as found:
            (await found.local("context")).close()

    monkeypatch.setattr(keeping, "KEEP", 0.01)
    await use()
    while descriptors() > before:  # noqa: ASYNC110 -- nothing tells of it
        await asyncio.sleep(0.01)
    monkeypatch.setattr(keeping, "KEEP", LONG)
    await use()
    assert descriptors() == before + 1
    sessions.keeper.clear()
    assert descriptors() == before
    monkeypatch.setattr(keeping, "MAX_BYTES", 2 * len(LARGE))
    for key in "1234":
        await use(key)
    assert descriptors() == before + 2
    sessions.keeper.clear()
    for limit, value in (("MIN_BYTES", 1 << 30), ("MAX_FILES", 0), ("MAX_BYTES", 10)):
        with monkeypatch.context() as patch:
            patch.setattr(keeping, limit, value)
            await use()
            assert descriptors() == before, limit


async def test_a_folder_that_changes_much_is_not_kept_forever(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    folder = Folder({"a": LARGE})
    for number in range(8):
        async with client(folder, sessions) as found:
            tree = await found.local("context")
            assert contents(tree) == folder.contents
            assert tree.measure[2] <= 3 * len(LARGE)
            tree.close()
        folder.change("a", LARGE[number:] + bytes(number))
    sessions.keeper.clear()
