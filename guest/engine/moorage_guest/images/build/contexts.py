"""Where the files of a build are: the client's folders, addresses, results of other builds. Each is fetched once, when first wanted."""

import asyncio
import contextlib
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import remote
from moorage_guest.images.build import git
from moorage_guest.images.build.board import Board, Task
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.build.ignore import Ignore
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.seams import BuildError, Session
from moorage_guest.images.build.sources import FolderTree, SourceTree
from moorage_guest.images.compression import compression
from moorage_guest.images.layerstore import remove_tree
from moorage_guest.images.streams import BufferedSource, finished, with_body
from moorage_guest.images.tarformat import looks_like_tar

#: A Dockerfile larger than this is none.
MAX_DOCKERFILE = 8 << 20

IMAGE, INPUT, LOCAL = "docker-image://", "input:", "local:"
_UPLOADED = "http://buildkit-session/"


@dataclass(frozen=True)
class Text:
    """A Dockerfile as it was read. ``ignored`` is what lies beside it as NAME.dockerignore, None when nothing does."""

    name: str
    data: bytes
    ignored: str | None
    vertex: str = ""
    """The step that read it."""


@dataclass
class Contexts:
    """The places of one build. What was opened is closed with ``stack``. Raises BuildError."""

    request: Request
    session: Session
    board: Board
    tmp: Path
    stack: contextlib.AsyncExitStack
    follow: Sequence[str] = ()
    """Paths of the main context that the build needs; none for all of it."""
    ignored: Sequence[str] | None = None
    """What the main context leaves out; None until `read_ignored` has been."""
    _trees: dict[str, "asyncio.Task[SourceTree]"] = field(default_factory=dict)

    @property
    def _is_remote(self) -> bool:
        return bool(self.request.context)

    async def dockerfile(self) -> Text:
        """Read the Dockerfile."""
        request = self.request
        if self._is_remote and not request.own_dockerfile:
            tree = await self.tree("")
            with self.board.task(f"[internal] load build definition from {request.filename}") as task:
                return replace(await finished(asyncio.to_thread(_text, tree, request.filename)), vertex=task.digest)
        name = request.filename
        lower = posixpath.join(posixpath.dirname(name), posixpath.basename(name).lower())
        wanted = list(dict.fromkeys([name, f"{name}.dockerignore", lower]))
        with self.board.task(f"[internal] load build definition from {name}") as task:
            async with self._local(task, "dockerfile", request.dockerfile_name, follow=wanted) as tree:
                return replace(await finished(asyncio.to_thread(_text, tree, name)), vertex=task.digest)

    async def read_ignored(self, own: str | None) -> None:
        """Read what the main context leaves out; ``own`` is the Dockerfile's own list."""
        if own is not None:
            self.ignored = own.splitlines()
            return
        if self._is_remote:
            tree = await self.tree("")
            text = await finished(asyncio.to_thread(tree.read, ".dockerignore", MAX_DOCKERFILE))
            self.ignored = (text or "").splitlines()
            if self.ignored:
                tree.ignore = Ignore(self.ignored)
            return
        with self.board.task("[internal] load .dockerignore") as task:
            async with self._local(task, "context", self.request.context_name, follow=[".dockerignore"]) as local:
                text = await finished(asyncio.to_thread(local.read, ".dockerignore", MAX_DOCKERFILE))
        self.ignored = (text or "").splitlines()

    async def tree(self, address: str) -> SourceTree:
        """Return the files at an address, "" being the main context."""
        task = self._trees.get(address)
        if task is None:
            task = self._trees[address] = asyncio.ensure_future(self._open(address))
            self.stack.push_async_callback(_ended, task)
        return await asyncio.shield(task)

    async def _open(self, address: str) -> SourceTree:
        if not address and not self._is_remote:
            with self.board.task("[internal] load build context") as task:
                return await self._kept(task, self.request.context_name, self.follow, self.ignored or ())
        if address.startswith(LOCAL):
            return await self._named(address.removeprefix(LOCAL))
        where = address or self.request.context
        if where.startswith(_UPLOADED):
            with self.board.task("[internal] load remote build context") as task:
                return await self._uploaded(task, where.removeprefix(_UPLOADED))
        if git.is_git(where):
            with self.board.task(f"[internal] load git source {where}"):
                folder = await self.stack.enter_async_context(git.checked_out(where, self.tmp))
                if not self.request.keep_git:
                    await finished(asyncio.to_thread(remove_tree, folder / ".git"))
                return FolderTree(folder)
        if re.match(r"https?://", where):
            with self.board.task("[internal] load remote build context"):
                tree = self._new_tree()
                async with remote.opened(where) as body:
                    await with_body(body, lambda file: _take(tree, file.read_some, self.request.filename))
                return tree
        raise BuildError(
            f"unsupported context source {where.partition(':')[0]} in {where!r}: local, docker-image, http, https and git are"
        )

    async def _named(self, name: str) -> SourceTree:
        """Return another folder of the client's, but for what its own .dockerignore leaves out."""
        with self.board.task(f"[context {name}] load .dockerignore") as task:
            async with self._local(task, name, name, follow=[".dockerignore"]) as local:
                text = await finished(asyncio.to_thread(local.read, ".dockerignore", MAX_DOCKERFILE))
        with self.board.task(f"[context {name}] load from client") as task:
            return await self._kept(task, name, (), (text or "").splitlines())

    @contextlib.asynccontextmanager
    async def _local(self, task: Task, what: str, name: str, follow: Sequence[str]):  # type: ignore[no-untyped-def]
        tree = await self._received(task, what, name, follow, ())
        with contextlib.closing(tree):
            yield tree

    async def _kept(self, task: Task, name: str, follow: Sequence[str], exclude: Sequence[str]) -> SourceTree:
        tree = await self._received(task, "context", name, follow, exclude)
        self.stack.callback(tree.close)
        if exclude:
            tree.ignore = Ignore(exclude)
        return tree

    async def _received(
        self, task: Task, what: str, name: str, follow: Sequence[str], exclude: Sequence[str]
    ) -> ContextTree:
        begun = time.time_ns()
        come = 0

        def progress(size: int) -> None:
            nonlocal come
            come = size
            task.status(f"transferring {what}:", size, 0, begun_ns=begun)

        tree = await self.session.local(name, follow=follow, exclude=exclude, progress=progress)
        task.status(f"transferring {what}:", come, 0, begun_ns=begun, done=True)
        return tree

    def _new_tree(self) -> ContextTree:
        tree = ContextTree(self.tmp)
        self.stack.callback(tree.close)
        return tree

    async def _uploaded(self, task: Task, path: str) -> SourceTree:
        """Take in an archive, or a Dockerfile alone, that the client was given as a stream."""
        tree = self._new_tree()
        with tempfile.TemporaryFile(dir=self.tmp, prefix="uploaded-") as file:
            size, begun = 0, time.time_ns()
            async for piece in self.session.upload(path):
                await asyncio.to_thread(file.write, piece)
                size += len(piece)
                task.status("transferring context:", size, 0, begun_ns=begun)
            file.seek(0)
            await finished(asyncio.to_thread(_take, tree, lambda: file.read(1 << 20), self.request.filename))
        return tree


async def _ended(task: "asyncio.Task[SourceTree]") -> None:
    """See a fetch to its end, or break it off."""
    task.cancel()
    await asyncio.wait([task])


def _take(tree: ContextTree, read: Callable[[], bytes], dockerfile: str) -> None:
    """Take in an archive; a text instead of one is the Dockerfile itself. Blocks."""
    source = BufferedSource(read)
    head = source.peek(512)
    if compression(head) or (len(head) == 512 and looks_like_tar(head)):
        tree.unpack(source)
        return
    parts = []
    while piece := source.piece(1 << 20):
        parts.append(bytes(piece))
    tree.write(posixpath.basename(dockerfile), b"".join(parts).decode("utf-8", "replace"))


def _text(tree: SourceTree, name: str) -> Text:
    """Find the Dockerfile. Blocks. Raises BuildError."""
    found = name
    text = tree.read(name, MAX_DOCKERFILE)
    if text is None and posixpath.basename(name) == "Dockerfile":
        found = posixpath.join(posixpath.dirname(name), "dockerfile")
        text = tree.read(found, MAX_DOCKERFILE)
    if text is None:
        raise BuildError(f"failed to read dockerfile: open {posixpath.basename(name)}: no such file or directory")
    if not text.strip():
        raise BuildError("the Dockerfile cannot be empty")
    return Text(posixpath.basename(found), text.encode("utf-8", "surrogateescape"), tree.read(f"{name}.dockerignore", MAX_DOCKERFILE))  # fmt: skip


def address_kind(address: str, inputs: Mapping[str, object]) -> str:
    """Say what the address of a context leads to: IMAGE, INPUT or "" for files. Raises InvalidParameter."""
    if address.startswith(IMAGE):
        return IMAGE
    if address.startswith(INPUT):
        if address.removeprefix(INPUT) not in inputs:
            raise InvalidParameter(
                f"unknown input {address.removeprefix(INPUT)}: no other target of this name was built"
            )
        return INPUT
    if address.startswith("oci-layout://"):
        raise InvalidParameter(
            "oci-layout contexts are not supported: docker load the image and name it as docker-image://NAME"
        )
    return ""
