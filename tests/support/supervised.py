"""The supervising agent for tests, with the real moored below it, under temporary roots."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage_guest.engine.shims import Agent
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.shim import kernel

from tests.support.shims import DEADLINE, Harness, end_process, until


class AgentRefused(Exception):
    """An error that agent.sock answered with."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Host:
    """A connection to agent.sock, as the host has it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one request and return its result."""
        number = secrets.randbelow(1 << 30)
        self.writer.write(json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n")
        await self.writer.drain()
        while True:
            line = await self.line()
            if line.get("id") == number:
                if "error" in line:
                    raise AgentRefused(line["error"]["code"], line["error"]["message"])
                result: dict[str, Any] = line["result"]
                return result

    async def line(self) -> dict[str, Any]:
        """Return the next line, whatever it is."""
        async with asyncio.timeout(2 * DEADLINE):
            data = await self.reader.readline()
        if not data:
            raise AssertionError("the agent closed the connection")
        line: dict[str, Any] = json.loads(data)
        return line

    async def close(self) -> None:
        """Disconnect."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Supervised:
    """A supervising agent. `start` again after its death."""

    root: Path
    arguments: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    @property
    def exec_root(self) -> ExecRoot:
        return ExecRoot(self.root / "run")

    @property
    def data_root(self) -> DataRoot:
        return DataRoot(self.root / "data")

    def log(self) -> str:
        """Return what agent and daemon have logged last."""
        text = ""
        for name in ("agent.log", "daemon.log"):
            with contextlib.suppress(OSError):
                text += f"--- {name}\n" + (self.data_root.root / "log" / name).read_text(errors="replace")[-6000:]
        return text

    async def start(self) -> None:
        """Start the agent; returns at once."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "moorage_guest.agent.main", "--supervise", "--data-root", str(self.data_root.root),
            "--exec-root", str(self.exec_root.root), *self.arguments, stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )  # fmt: skip

    async def host(self) -> Host:
        """Connect to agent.sock, waiting for it to be there."""

        async def connect() -> Host | None:
            try:
                return Host(*await asyncio.open_unix_connection(str(self.exec_root.agent_sock), limit=1 << 22))
            except OSError:
                return None

        host: Host = await until("agent.sock", connect)
        return host

    async def status(self) -> dict[str, Any]:
        """Return the result of `status`."""
        host = await self.host()
        try:
            return await host.ask("status")
        finally:
            await host.close()

    async def running(self, *, other_than: int = 0) -> dict[str, Any]:
        """Wait until a daemon (with another pid) is ready and return the status."""

        async def look() -> dict[str, Any] | None:
            status = await self.status()
            good = status["daemon"]["state"] == "running" and status["daemon"]["pid"] != other_than
            return status if good else None

        try:
            result: dict[str, Any] = await until("a running daemon", look)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        return result

    async def harness(self) -> Harness:
        """Return a harness that starts containers through this agent, beside the real daemon."""
        agent = await Agent.connect(self.exec_root, data_root=self.data_root, start_if_missing=False, role="test")
        return Harness(self.root, agent, self.root.name)

    async def kill(self) -> None:
        """SIGKILL the agent alone."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def close(self) -> None:
        """End the agent (and daemon), then whatever is left."""
        record = self.exec_root.root / "supervised.json"
        pids = [value for key, value in json.loads(record.read_text()).items() if key.endswith("_pid")] if record.exists() else []  # fmt: skip
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(DEADLINE):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        for pid in pids:
            if pid:
                await end_process(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 -- it has ended
        shutil.rmtree(self.root)


@contextlib.asynccontextmanager
async def supervised(*arguments: str, started: bool = True, **environment: str) -> AsyncIterator[Supervised]:
    """Start a supervising agent under a temporary root; the daemon has no bridge, so that it touches no network.

    With `started` off, the test starts the agent itself.
    """
    root = Path(tempfile.mkdtemp(prefix="mo-", dir="/var/tmp"))
    root.chmod(0o755)
    kernel.become_subreaper()
    result = Supervised(root, ["--bridge", "none", *arguments], environment)
    try:
        if started:
            await result.start()
        yield result
    finally:
        await result.close()


async def ping(path: Path) -> bytes:
    """Ask /_ping on a unix socket and return the answer; waits in the backlog while no daemon serves."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            return await reader.read()
    finally:
        writer.close()


def socket_inode(path: Path) -> int:
    """Return the inode of a socket file."""
    assert path.is_socket()
    return path.stat().st_ino
