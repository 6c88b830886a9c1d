"""What the host has in the running guest: one SSH connection that comes back, the engine's socket, the agent, the clock.

Blocking SSH work runs in threads; nothing here starts or stops the machine.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from moorage_contract import agent as protocol
from moorage_contract.postponed import postponed
from pydantic import ValidationError

from moorage_host.errors import ErrorCode, HostError
from moorage_host.link import agent
from moorage_host.link.keys import Keys

with postponed("paramiko", "moorage_host.link.ssh"):  # the machine can be started meanwhile
    import paramiko

    from moorage_host.link import ssh

logger = logging.getLogger(__name__)

ENGINE_SOCKET = "/run/moorage/docker.sock"
PING = b"GET /_ping HTTP/1.1\r\nHost: moorage\r\nConnection: close\r\n\r\n"
HANDSHAKE = 20.0  # seconds; a tcg guest on a busy host needs two
SILENCE = 10.0  # seconds after which a connection that says nothing is taken for dead
RELEASE = 120.0  # seconds that mounting may take: a disk whose power was cut is repaired first
AGENT_RETRY = 0.5
AGENT_PATIENCE = 60.0
LINK_WAIT = 15.0  # seconds that a client of docker.sock waits for the connection to come back
ENGINE_WAIT = 30.0  # seconds that it waits for somebody who listens in the guest
RETIREMENT = 60.0  # seconds of silence after which the clients of a connection that was replaced are given up

M = TypeVar("M", bound=protocol.Message)
T = TypeVar("T")


class Session:
    """The running guest as the host sees it. `port` tells the SSH port on 127.0.0.1 at each attempt."""

    def __init__(self, keys: Keys, port: Callable[[], Awaitable[int]]) -> None:
        self._keys = keys
        self._port = port
        self._link: ssh.Link | None = None
        self._retired: list[ssh.Link] = []
        self._changed = threading.Condition()
        self._closed = False
        self._executor = ThreadPoolExecutor(max_workers=16, thread_name_prefix="guest")

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.alive

    async def connect(self) -> None:
        """One attempt to be connected; returns quietly when it is already so. Raises HostError."""
        if self.connected:
            return
        port = await self._port()
        link = await self._run(lambda: ssh.Link.connect(("127.0.0.1", port), self._keys, timeout=HANDSHAKE))
        with self._changed:
            if self._closed:
                link.close()
                return
            self._link = link
            self._changed.notify_all()

    async def answers(self) -> bool:
        """Whether the guest answers through the connection, whatever becomes of the engine."""
        return await self._run(lambda: self.link().answers(SILENCE)) if self.connected else False

    async def renew(self) -> None:
        """Replace a connection that has gone silent, once another one can be made: a guest that is merely slow, as under a
        busy host, answers through neither, and keeps the old one. Clients who came through the old one keep it as long as the
        guest answers there at all: it may have been slow, too. Raises HostError."""
        port = await self._port()
        fresh = await self._run(lambda: ssh.Link.connect(("127.0.0.1", port), self._keys, timeout=HANDSHAKE))
        if await self.answers():
            fresh.close()
            return
        with self._changed:
            if self._closed:
                fresh.close()
                return
            old, self._link = self._link, fresh
            if old is not None:
                self._retired = [link for link in self._retired if link.alive] + [old]
            self._changed.notify_all()
        if old is not None:
            retire = threading.Thread(
                target=lambda: old.retire(silence=SILENCE, patience=RETIREMENT), name="link-retires", daemon=True
            )
            retire.start()

    def link(self, wait: float = 0) -> ssh.Link:
        """The connection, waited for up to `wait` seconds; blocks. Raises HostError when there is none."""
        deadline = time.monotonic() + wait
        with self._changed:
            while not self._closed:
                if self._link is not None and self._link.alive:
                    return self._link
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.5))
        raise HostError("there is no connection to the guest", hint="see moorage status", code=ErrorCode.UNAVAILABLE)

    def open_engine(self) -> paramiko.Channel:
        """A stream to the engine's socket for a client; blocks while the connection comes back, and somewhat longer while
        nobody listens in the guest. Raises HostError."""
        deadline = time.monotonic() + ENGINE_WAIT
        while True:
            link = self.link(LINK_WAIT)
            try:
                return link.unix_socket(ENGINE_SOCKET, timeout=LINK_WAIT, client=True)
            except ssh.NobodyListens:
                if time.monotonic() > deadline:
                    raise
            with self._changed:
                self._changed.wait(AGENT_RETRY)

    async def ping(self, timeout: float = 10) -> bool:
        """Whether the engine answers /_ping through the tunnel within `timeout` seconds."""

        def ask() -> bool:
            channel = self.link().unix_socket(ENGINE_SOCKET, timeout=timeout)
            try:
                channel.settimeout(timeout)
                channel.sendall(PING)
                answer = b""
                while b"\r\n" not in answer and len(answer) < 4096 and (data := channel.recv(1024)):
                    answer += data
                return answer.split(b"\r\n")[0].split(b" ")[1:2] == [b"200"]
            finally:
                channel.close()

        try:
            return await self._run(ask)
        except (HostError, OSError, EOFError) as error:
            logger.debug("ping: %s", error)
            return False

    async def agent(self, request: protocol.Request, result: type[M], *, timeout: float = 30, patience: float = 0) -> M:
        """Ask the agent; the answer checked against `result`. Raises HostError.

        For `patience` seconds an agent that does not listen is waited for: it is away for some while it starts, and
        while it changes to the code of another engine.
        """
        params = request.model_dump(mode="json", exclude={"method"}, exclude_none=True)
        deadline = time.monotonic() + patience
        while True:
            try:
                answer = await self._run(lambda: agent.call(self.link(), request.method, params, timeout=timeout))
                return parsed(result, answer, request.method)
            except ssh.NobodyListens:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(AGENT_RETRY)

    def watch_agent(self, told: Callable[[protocol.Status], None], ended: Callable[[], None]) -> None:
        """Call `told` with each status the agent sends, and `ended` when no more come, from another thread. Returns at once."""

        def follow(link: ssh.Link) -> None:
            try:
                for answer in agent.watch(link):
                    told(parsed(protocol.Status, answer, "watch"))
            except HostError as error:
                logger.info("watching the agent ended: %s", error)
            ended()

        threading.Thread(target=follow, args=(self.link(),), name="agent-watch", daemon=True).start()

    async def config_text(self) -> str:
        """daemon.json in the guest."""
        return (await self.agent(protocol.ConfigGet(), protocol.ConfigText)).content

    async def config_apply(self, content: str, mode: str) -> protocol.ConfigApplied:
        """Let the agent put `content` in force; waits until it has, or has put the old one back."""
        request = protocol.ConfigApply(content=content, mode="restart" if mode == "restart" else "reload")
        return await self.agent(request, protocol.ConfigApplied, timeout=120, patience=AGENT_PATIENCE)

    async def set_clock(self) -> None:
        """Give the guest the host's time."""
        await self.agent(protocol.ClockSet(ns=time.time_ns()), protocol.Done)

    async def release(self) -> None:
        """Let a held guest go on, with the host's time and randomness of its own; returns when its data disk is mounted."""
        random = base64.b64encode(os.urandom(64)).decode("ascii")
        await self.agent(protocol.Release(ns=time.time_ns(), random=random), protocol.Done, timeout=RELEASE)

    async def run(self, command: str, *, timeout: float = 30) -> tuple[int, str]:
        """Run a fixed command in the guest: exit status and output, both streams together."""

        def ask() -> tuple[int, str]:
            channel = self.link().session(timeout=timeout)
            try:
                channel.settimeout(timeout)
                channel.set_combine_stderr(True)
                channel.exec_command(command)
                output = b""
                while data := channel.recv(65536):
                    output += data
                return channel.recv_exit_status(), output.decode("utf-8", "replace")
            except (TimeoutError, OSError, paramiko.SSHException) as error:
                raise HostError(f"the command in the guest did not end: {error}", code=ErrorCode.TIMEOUT) from error
            finally:
                channel.close()

        return await self._run(ask)

    async def upload(self, source: str, target: str) -> None:
        """Copy a file into the guest."""
        await self._run(lambda: self.link().upload(source, target))

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def drop(self) -> None:
        """Close the connection so that the next `connect` makes a new one."""
        for link in (self._link, *self._retired):
            if link is not None:
                link.close()

    def close(self) -> None:
        """Close the connection for good. Idempotent; does not wait for requests under way, whose channels are closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.drop()
        self._executor.shutdown(wait=False, cancel_futures=True)


def parsed(model: type[M], answer: dict[str, Any], method: str) -> M:
    """The agent's answer as `model`; HostError when it does not fit."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise HostError(
            f"the agent answered {method} with something else than it should: {error.errors()[0]['msg']}"
        ) from error
