"""Real shims for tests: a private agent under a temporary exec root, and bundles made of Debian's static busybox."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage_guest.engine.shims import Agent, Pipes, Shim, ShimRequest, Started
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.shim import kernel

#: Seconds that anything may take on a slow, busy machine before a test calls it hung.
DEADLINE = 60.0

_APPLETS = ("sh", "cat", "echo", "sleep", "true", "stty", "yes", "head", "kill", "dd", "stat", "id", "tty", "test")


async def until(what: str, condition: Callable[[], Any] | Callable[[], Awaitable[Any]], deadline: float = DEADLINE) -> Any:  # fmt: skip
    """Return the first true value of `condition`, which may be a coroutine function."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if loop.time() > end:
            raise AssertionError(f"waited {deadline:.0f} s in vain: {what}")
        await asyncio.sleep(0.01)


def make_rootfs(folder: Path) -> Path:
    """Make a root file system with a shell."""
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy("/usr/bin/busybox", folder / "bin/busybox")
    for name in _APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    return folder


def oci_process(*args: str, tty: bool = False) -> dict[str, Any]:
    """Return an OCI process object."""
    capabilities = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE", "CAP_CHOWN"]
    return {
        "terminal": tty, "user": {"uid": 0, "gid": 0}, "args": list(args), "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm"], "noNewPrivileges": True,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
    }  # fmt: skip


@dataclass
class Harness:
    """An agent, and containers to start under it. Everything ends with `close`."""

    root: Path
    agent: Agent
    name: str
    shims: list[Shim] = field(default_factory=list)

    @property
    def exec_root(self) -> ExecRoot:
        return ExecRoot(self.root / "run")

    async def shim(self, **options: Any) -> Shim:
        """Spawn a shim for a new container."""
        shim = await self.agent.spawn_shim(ShimRequest(secrets.token_hex(32), **options))
        self.shims.append(shim)
        return shim

    def bundle(self, container_id: str, *args: str, tty: bool = False) -> Path:
        """Write an OCI bundle that runs `args`."""
        rootfs = self.root / "rootfs"
        if not rootfs.exists():
            make_rootfs(rootfs)
        folder = self.root / "bundles" / container_id
        folder.mkdir(parents=True)
        config = {
            "ociVersion": "1.0.2", "process": oci_process(*args, tty=tty), "root": {"path": str(rootfs), "readonly": False},
            "hostname": "test",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            ],
            "linux": {
                "cgroupsPath": f"/{self.name}/{container_id}",
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            },
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    async def run(self, *args: str, **options: Any) -> tuple[Shim, Started]:
        """Spawn a shim and start a container in it."""
        shim = await self.shim(**options)
        started = await shim.run(self.bundle(shim.container_id, *args, tty=bool(options.get("tty"))))
        return shim, started

    async def _no_shims(self) -> bool:
        return not await self.agent.shim_ids()

    async def end_containers(self) -> None:
        """End all containers and shims, also those whose shim died."""
        for shim in self.shims:
            shim.close()
        with contextlib.suppress(Exception):
            for container_id in await self.agent.shim_ids():
                shim = await Shim.connect(self.exec_root, container_id)
                await shim.shutdown(force=True)
        with contextlib.suppress(Exception):
            for container_id in await self.agent.dead_shims():
                await self.agent.bury(container_id)
        with contextlib.suppress(Exception):
            await until("the shims to end", self._no_shims)
        remove_cgroups(self.name)

    async def close(self) -> None:
        """End all containers, the agent, and remove the files."""
        await self.end_containers()
        pid = agent_pid(self.exec_root)
        await self.agent.close()
        if pid:
            await end_process(pid, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 -- it has ended
        shutil.rmtree(self.root)


def agent_pid(exec_root: ExecRoot) -> int:
    """Return the pid of the agent that serves an exec root, 0 when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(str(exec_root.supervise_sock))
        except OSError:
            return 0
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")


async def end_process(pid: int, number: int) -> None:
    """Send a signal to a process that may not be a child of ours, and wait until it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, gone.set)
    try:
        signal.pidfd_send_signal(descriptor, number)
        async with asyncio.timeout(DEADLINE):
            await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def remove_cgroups(name: str) -> None:
    """Remove the empty cgroups that a test made."""
    for parent in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
        for folder, _, _ in os.walk(parent / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


@contextlib.asynccontextmanager
async def private_agent() -> AsyncIterator[Harness]:
    """Start a private agent under a temporary root."""
    root = Path(tempfile.mkdtemp(prefix="mo-", dir="/var/tmp"))
    root.chmod(0o755)
    kernel.become_subreaper()  # the agent is orphaned on purpose, and not every first process reaps
    exec_root = ExecRoot(root / "run")
    agent = await Agent.connect(exec_root, data_root=DataRoot(root / "data"))
    harness = Harness(root, agent, root.name)
    try:
        yield harness
    finally:
        await harness.close()


async def read_pipe(fd: int, deadline: float = DEADLINE) -> bytes:
    """Read a non-blocking pipe to its end."""
    data = bytearray()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(deadline):
        while True:
            try:
                chunk = os.read(fd, 65536)
            except BlockingIOError:
                ready: asyncio.Future[None] = loop.create_future()
                loop.add_reader(fd, lambda waiting=ready: waiting.done() or waiting.set_result(None))  # type: ignore[misc]
                try:
                    await ready
                finally:
                    loop.remove_reader(fd)
                continue
            if not chunk:
                return bytes(data)
            data += chunk


def read_some(fd: int) -> bytes:
    """Read what a non-blocking pipe has now, b"" when it has nothing."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def close_pipes(pipes: Pipes) -> None:
    """Close all descriptors."""
    for stream in pipes.streams:
        for fd in (stream.a_read, stream.b_read, stream.b_write):
            os.close(fd)


async def read_socket(sock: socket.socket, enough: bytes | None = None) -> bytes:
    """Read to the end, or until what was read ends with or contains `enough`."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    data = bytearray()
    async with asyncio.timeout(DEADLINE):
        while enough is None or enough not in data:
            chunk = await loop.sock_recv(sock, 65536)
            if not chunk:
                break
            data += chunk
    return bytes(data)


def frames(data: bytes) -> dict[int, bytes]:
    """Take multiplexed output apart, by stream."""
    result: dict[int, bytes] = {}
    while data:
        stream, size = data[0], int.from_bytes(data[4:8], "big")
        result[stream] = result.get(stream, b"") + data[8 : 8 + size]
        data = data[8 + size :]
    return result
