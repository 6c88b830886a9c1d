"""RUN: one command in a container of its own on top of a stage, with what is mounted for it alone."""

import asyncio
import contextlib
import errno
import os
import posixpath
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.idmap import IdMap
from moorage_guest.images import kernel
from moorage_guest.images.archive import opened
from moorage_guest.images.build.board import Task
from moorage_guest.images.build.copying import place
from moorage_guest.images.build.gathering import not_there
from moorage_guest.images.build.mounts import Mount
from moorage_guest.images.build.planned import Origin, Run
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.runner import RunStep, StepRunner
from moorage_guest.images.build.seams import BuildError, Session
from moorage_guest.images.build.sources import FolderTree, SourceTree
from moorage_guest.images.build.stubs import Stubs, missing, tidy
from moorage_guest.images.buildcache import BuildCache, fill_folder
from moorage_guest.images.image import LayerBlob
from moorage_guest.images.layers import Layers
from moorage_guest.images.layerstore import remove_tree
from moorage_guest.images.streams import finished

#: What commands of builds are told is the machine's name.
HOSTNAME = "buildkitsandbox"

#: Bytes of secrets and programs that one command may be given.
PRIVATE_BYTES = 64 << 20


@dataclass
class _Place:
    """What the container is given besides its layers."""

    mounts: list[dict[str, Any]] = field(default_factory=list)
    tmpfs: dict[str, str] = field(default_factory=dict)
    variables: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list, repr=False)
    targets: list[str] = field(default_factory=list)

    def bind(self, source: Path, target: str, *, writable: bool) -> None:
        self.mounts.append({"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": not writable})
        self.targets.append(target)

    def environment(self, step: Run) -> list[str]:
        """Return the command's variables but for those that are secret."""
        secret = {each.partition("=")[0] for each in self.secrets}
        # An entry without a value takes away what containers are told of themselves.
        given = ("HOSTNAME", *step.environment, *step.proxies, *self.variables)
        return [each for each in given if each.partition("=")[0] not in secret]


@dataclass(frozen=True)
class Machine:
    """Runs the commands of one build."""

    layers: Layers
    runner: StepRunner
    cache: BuildCache
    request: Request
    session: Session
    tmp: Path
    owner: str
    files: Callable[[Origin], AbstractAsyncContextManager[SourceTree]]
    """Gives what an origin means for the time of a block."""
    identity: Callable[[Origin, str], Awaitable[str]]
    """Says what an origin's files at a path are made of."""
    slots: asyncio.Semaphore
    """How many commands run at once."""

    async def run(self, step: Run, chain: Sequence[str], task: Task) -> LayerBlob:
        """Run a command to its end and return its layer, held by the owner. Raises BuildError and the engine's errors."""
        async with self._placed(step) as given:
            stubs = await self.layers.read(chain, lambda root: missing(root, given.targets))
            config: dict[str, Any] = {"User": step.user, "Env": given.environment(step), "WorkingDir": step.folder}
            host = {**self.request.host, "Mounts": given.mounts, "Tmpfs": given.tmpfs}
            if step.network:
                host["NetworkMode"] = step.network
            if step.network != "host":
                config["Hostname"] = self.request.hostname or HOSTNAME
            wanted = RunStep("", step.command, config, host, chain=tuple(chain), secret_env=tuple(given.secrets))
            async with self.slots:
                layer = await self._made(wanted, step, task, stubs)
            assert layer is not None
            return layer

    async def _made(self, wanted: RunStep, step: Run, task: Task, stubs: Stubs) -> LayerBlob | None:
        """Run a command and return its layer; its container is gone then, however it ended."""
        container_id = await self.runner.create(wanted)
        try:
            code = await self._ended(container_id, task)
            if code != 0:
                raise BuildError(
                    f"process {_quoted(' '.join(step.command))} did not complete successfully: exit code: {code}",
                    source=step.statement.source, code=code,
                )  # fmt: skip
            layer = await self.layers.take(
                container_id, self.owner, keep=False, empty=True, tidy=lambda diff: tidy(diff, stubs)
            )
        finally:
            await finished(self.runner.remove(container_id))
        return layer

    async def _ended(self, container_id: str, task: Task) -> int:
        """Return a command's exit code; one that cannot be started says why where its output would be."""
        try:
            return await self.runner.run(container_id, task.log)
        except EngineError as error:
            _, found, why = str(error).partition("unable to start container process: ")
            if not found:
                raise
            task.log(2, f"crun run failed: {found}{why.removesuffix(': unknown')}\n".encode())
            return 1

    # -- what is mounted ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _placed(self, step: Run) -> AsyncIterator[_Place]:
        given = _Place()
        async with contextlib.AsyncExitStack() as stack:
            private = Path()
            if step.script is not None or any(each.kind in ("secret", "ssh") for each, _ in step.mounts):
                private = await stack.enter_async_context(_memory(self.tmp))
            if step.script is not None:
                name, text = step.script
                (private / "pipes").mkdir(mode=0o755)
                _write(private / "pipes" / name, text.encode(), 0o755)
                given.bind(private / "pipes", "/dev/pipes", writable=False)
            for number, (mount, origin) in enumerate(step.mounts):
                if mount.kind == "tmpfs":
                    size = f",size={mount.size}" if mount.size else ""
                    given.tmpfs[mount.target] = f"rw,exec,nosuid,mode=1777{size}"
                    given.targets.append(mount.target)
                elif mount.kind == "cache":
                    given.bind(await self._cached(stack, step, mount, origin), mount.target, writable=mount.writable)
                elif mount.kind == "bind":
                    assert origin is not None
                    given.bind(await self._bound(stack, mount, origin), mount.target, writable=mount.writable)
                elif mount.kind == "secret":
                    await self._secret(step, mount, private / str(number), given)
                else:
                    await self._agent(stack, step, mount, private / f"agent{number}", given)
            yield given

    async def _cached(self, stack: contextlib.AsyncExitStack, step: Run, mount: Mount, origin: Origin | None) -> Path:
        tree = await stack.enter_async_context(self.files(origin)) if origin is not None else None
        mode = mount.mode if mount.mode is not None else 0o755

        def fill(folder: Path) -> None:
            uid, gid = self.layers.ids.outside(mount.uid, mount.gid)
            fill_folder(folder, mode=mode, uid=uid, gid=gid)
            if tree is not None:
                _copy(tree, mount.source, folder, self.layers.ids)

        key = mount.id if origin is None else f"{mount.id} {await self.identity(origin, mount.source)}"
        description = f'cached mount {mount.target} from exec {" ".join(step.command)} with id "/{mount.id}"'  # as BuildKit has it
        return await stack.enter_async_context(self.cache.folder(key, mount.sharing, description, fill))

    async def _bound(self, stack: contextlib.AsyncExitStack, mount: Mount, origin: Origin) -> Path:
        """Return a path with the files of a bind: where they lie, or a copy of them, which may be written to."""
        tree = await stack.enter_async_context(self.files(origin))
        if isinstance(tree, FolderTree) and not mount.writable:
            return await asyncio.to_thread(_inside, tree, mount.source)
        folder = Path(tempfile.mkdtemp(dir=self.tmp, prefix="bound-"))
        stack.push_async_callback(lambda: finished(asyncio.to_thread(remove_tree, folder)))
        (folder / "root").mkdir()
        (folder / "root").chmod(0o755)
        self.layers.ids.give(folder / "root")
        return await self.layers.in_thread(lambda: _copy(tree, mount.source, folder / "root", self.layers.ids))

    async def _secret(self, step: Run, mount: Mount, path: Path, given: _Place) -> None:
        value = await self.session.secret(mount.id)
        if value is None:
            if mount.required:
                raise step.statement.error(f"secret {mount.id}: not found")
            return
        if mount.variable:
            given.secrets.append(f"{mount.variable}={value.decode('utf-8', 'surrogateescape')}")
        if mount.target:
            uid, gid = self.layers.ids.outside(mount.uid, mount.gid)
            _write(path, value, mount.mode if mount.mode is not None else 0o400, uid, gid)
            given.bind(path, mount.target, writable=False)

    async def _agent(
        self, stack: contextlib.AsyncExitStack, step: Run, mount: Mount, path: Path, given: _Place
    ) -> None:
        mode = mount.mode if mount.mode is not None else 0o600
        uid, gid = self.layers.ids.outside(mount.uid, mount.gid)
        try:
            await stack.enter_async_context(self.session.ssh(mount.id, path, uid, gid, mode))
        except InvalidParameter as error:
            if mount.required:
                raise step.statement.error(str(error)) from None
            return
        earlier = sum(each.startswith("SSH_AUTH_SOCK=") for each in given.variables)
        target = (
            mount.target or f"/run/buildkit/ssh_agent.{len([each for each in given.targets if 'ssh_agent.' in each])}"
        )
        if not earlier:
            given.variables.append(f"SSH_AUTH_SOCK={target}")
        given.bind(path, target, writable=True)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _inside(tree: FolderTree, source: str) -> Path:
    """Return where a path of a folder lies, its links followed inside of it. Blocks. Raises InvalidParameter."""
    root = os.open(tree.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with opened(root, source, os.O_PATH) as found:
            return Path(f"/proc/self/fd/{found}").readlink()
    except OSError:
        raise not_there(tree, source) from None
    finally:
        os.close(root)


def _copy(tree: SourceTree, source: str, folder: Path, ids: IdMap) -> Path:
    """Copy what is at a path into a folder and return where it is then. Blocks. Raises InvalidParameter."""
    clean = posixpath.normpath(f"/{source.lstrip('/')}").lstrip("/")
    try:
        (found,) = tree.find(clean or "/", command="RUN", archives=False)
    except (InvalidParameter, ValueError):
        raise not_there(tree, source) from None
    place(folder, [found], "/", chown=None, chmod=None, ids=ids)
    return folder if found.is_folder else folder / posixpath.basename(found.path)


def _write(path: Path, data: bytes, mode: int, uid: int = 0, gid: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)


@asynccontextmanager
async def _memory(tmp: Path) -> AsyncIterator[Path]:
    """Give a folder in memory that goes with the block, or at the daemon's next start."""
    folder = Path(tempfile.mkdtemp(dir=tmp, prefix="private-"))
    merged = folder / "merged"
    try:
        merged.mkdir()
        options = f"mode=0700,size={PRIVATE_BYTES}"
        try:
            kernel.mount("tmpfs", str(merged), "tmpfs", 0, f"{options},noswap")
        except OSError as error:
            if error.errno != errno.EINVAL:  # kernels before 6.4 do not know the option
                raise
            kernel.mount("tmpfs", str(merged), "tmpfs", 0, options)
        try:
            yield merged
        finally:
            kernel.unmount(merged, lazy=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
