"""Answers that go on while moored, or the agent, is killed and comes back."""

import asyncio
import json

import pytest

from tests.support.supervised import Supervised

pytestmark = pytest.mark.root


class Events:
    """`GET /events` over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, guest: Supervised) -> "Events":
        reader, writer = await asyncio.open_unix_connection(str(guest.exec_root.docker_sock))
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        return cls(reader, writer)

    async def next(self) -> str:
        """Return the action of the next event."""
        async with asyncio.timeout(60):
            while True:
                size = int(await self._reader.readline(), 16)
                text = (await self._reader.readexactly(size + 2)).strip()
                if text:
                    return str(json.loads(text)["Action"])

    def close(self) -> None:
        self._writer.close()


async def test_events_go_on_across_sigkill_of_moored_and_of_the_agent(guest: Supervised) -> None:
    before = (await guest.running())["daemon"]
    events = await Events.connect(guest)
    host = await guest.host()
    await host.ask("daemon.reload")
    assert await events.next() == "reload"

    await host.ask("daemon.kill")
    middle = (await guest.running(other_than=before["pid"]))["daemon"]
    await host.ask("daemon.reload")
    assert await events.next() == "reload"
    await host.close()

    await guest.kill()
    await guest.start()
    assert (await guest.running())["daemon"]["pid"] == middle["pid"]
    host = await guest.host()
    await host.ask("daemon.reload")
    assert await events.next() == "reload"
    await host.ask("daemon.kill")
    await guest.running(other_than=middle["pid"])
    await host.ask("daemon.reload")
    assert await events.next() == "reload"
    events.close()
    await host.close()
