"""Carries out the steps of stages, each a layer on top of those before, made now or found in the build cache."""

import asyncio
import contextlib
import os
import posixpath
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from moorage_guest.errors import InvalidParameter
from moorage_guest.idmap import IdMap
from moorage_guest.images.archive import make_folders
from moorage_guest.images.build.board import Board, Task
from moorage_guest.images.build.contexts import Contexts
from moorage_guest.images.build.copying import place
from moorage_guest.images.build.document import rows_of
from moorage_guest.images.build.gathering import gathered, look, not_there, stands_alone
from moorage_guest.images.build.planned import Copy, Laid, MakeFolder, Origin, Planned, Run, Step
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.runner import StepRunner
from moorage_guest.images.build.running import Machine
from moorage_guest.images.build.seams import Built, Session
from moorage_guest.images.build.sources import FolderTree, Source, SourceTree
from moorage_guest.images.build.steps import owner_of
from moorage_guest.images.buildcache import BuildCache, Cached, key_of
from moorage_guest.images.image import LayerBlob
from moorage_guest.images.layers import Layers
from moorage_guest.images.layerstore import chain_ids
from moorage_guest.images.store import Images
from moorage_guest.images.streams import finished

#: Goes into every key: raised when a step comes to mean something else.
_VERSION = 1


@dataclass
class Layering:
    """The stages of one build, carried out side by side. ``stages`` are the tasks that give each."""

    images: Images
    layers: Layers
    cache: BuildCache
    request: Request
    board: Board
    contexts: Contexts
    owner: str
    runner: StepRunner
    session: Session
    slots: asyncio.Semaphore
    """How many commands run at once."""
    shared: frozenset[str]
    """Images that several stages begin with."""
    taken: Mapping[str, tuple[LayerBlob, str]]
    """Layers of images that were named as caches, and when they were made, by key."""
    stages: dict[int, "asyncio.Task[Laid]"] = field(default_factory=dict)
    _shown: set[tuple[str, ...]] = field(default_factory=set)
    _making: dict[str, asyncio.Lock] = field(default_factory=dict)
    """A step that two stages have is made once."""
    _made: set[str] = field(default_factory=set)
    """What this build made itself: that is fresh whatever is asked for."""

    def __post_init__(self) -> None:
        self._machine = Machine(
            self.layers, self.runner, self.cache, self.request, self.session, self.images.content.tmp, self.owner,
            self.files, self.identity, self.slots,
        )  # fmt: skip

    # -- where files come from ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def files(self, origin: Origin) -> AsyncIterator[SourceTree]:
        """Give the files of an origin for the time of the block."""
        if origin.address is not None:
            yield await self.contexts.tree(origin.address)
            return
        async with self.layers.viewed(await self._chain(origin)) as root:
            yield FolderTree(root, origin="stage", with_owners=True, ids=self.layers.ids)

    async def _chain(self, origin: Origin) -> Sequence[str]:
        if origin.stage is not None:
            return (await asyncio.shield(self.stages[origin.stage])).chain
        assert origin.image is not None
        return origin.image.chain

    async def identity(self, origin: Origin, path: str) -> str:
        """Say what an origin's files at a path are made of."""
        if origin.address is None:
            return f"{(await self._chain(origin))[-1:]} {path}"
        tree = await self.contexts.tree(origin.address)
        clean = posixpath.normpath(f"/{path.lstrip('/')}").lstrip("/") or "/"

        def digests() -> str:
            try:
                found = tree.find(clean, command="RUN", archives=False)
            except InvalidParameter:
                raise not_there(tree, path) from None
            return " ".join(tree.digest(source) for source in found)

        return await self.layers.in_thread(digests)

    # -- a stage ------------------------------------------------------------------------------------------------------

    async def stage(self, planned: Planned) -> Laid:
        """Carry out a stage. Raises BuildError."""
        laid = await self._base(planned)
        times: list[str] = []
        layers, chain, made = list(laid.layers), list(laid.chain), list(laid.steps)
        for step in planned.steps:
            await self._ready(step)
            for _ in range(step.documents_made):
                with self.board.task("[internal] preparing inline document"):
                    pass
            with self.board.task(_name(planned, step), source=step.statement.source) as task:
                done = await self._step(planned, step, chain, task)
            made.append((done.key, len(layers), done.created))
            layers.append(done.layer)
            chain.append(chain_ids([*chain[-1:], done.layer.diff_id])[-1])
            times.append(done.created)
        return Laid(tuple(layers), tuple(chain), laid.below, (*laid.rows, *rows_of(planned, times)), tuple(made))

    async def _ready(self, step: Step) -> None:
        """Wait for the files that a step takes: until they are there it has not begun."""
        origins = [origin for _, origin in step.mounts if origin is not None] if isinstance(step, Run) else []
        if isinstance(step, Copy) and step.needs_origin:
            origins = [step.origin]
        for origin in origins:
            if origin.stage is not None:
                await asyncio.shield(self.stages[origin.stage])
            elif origin.address is not None:
                await self.contexts.tree(origin.address)

    async def _base(self, planned: Planned) -> Laid:
        base = planned.base
        if base is None:
            return Laid()
        if base.stage is not None:
            return await asyncio.shield(self.stages[base.stage])
        if base.made_here:
            assert base.image is not None
            return Laid(base.image.layers, base.image.chain, tuple(base.image.document.get("history") or ()), ())
        prefix = f"{planned.label} " if planned.label else ""
        name = f"[{prefix}{_place_of(planned, 1)}] FROM {base.name}"
        if base.image is not None:
            self._show_base(base.image, f"FROM {base.name}" if base.name in self.shared else name, planned)
            return Laid(base.image.layers, base.image.chain, tuple(base.image.document.get("history") or ()), ())
        with self.board.task(name, source=planned.stage.base.source) as task:
            assert base.address is not None
            tree = await self.contexts.tree(base.address)
            found = await self.layers.in_thread(lambda: tree.find("/", command="FROM", archives=False))
            key = key_of(_VERSION, "files", await self.layers.in_thread(lambda: tree.digest(found[0])))
            async with self._once(key):
                known = await self._known(key, self.request.no_cache, task, ())
                if known is None:

                    def fill(root: Path) -> None:
                        place(root, found, "/", chown=None, chmod=None, ids=self.layers.ids)

                    layer = await self.layers.change((), self.owner, fill, empty=True)
                    assert layer is not None
                    known = await self._remember(key, layer, [layer.diff_id], name)
            return Laid((known.layer,), (known.layer.diff_id,), (), ())

    def _show_base(self, image: Built, name: str, planned: Planned) -> None:
        """Report an image that stages begin with, once."""
        if image.chain in self._shown:
            return
        self._shown.add(image.chain)
        with self.board.task(name, source=planned.stage.base.source) as task:
            if self.cache.began_with(image.chain):
                task.cached()

    # -- a step -------------------------------------------------------------------------------------------------------

    async def _step(self, planned: Planned, step: Step, chain: Sequence[str], task: Task) -> Cached:
        fresh = self.request.no_cache or planned.stage.name in self.request.no_cache_stages
        if isinstance(step, Copy):
            return await self._copy(step, chain, task, fresh)
        key = await self._key(step, chain)
        async with self._once(key):
            known = await self._known(key, fresh, task, chain)
            if known is not None:
                return known
            if isinstance(step, Run):
                layer = await self._machine.run(step, chain, task)
            else:
                assert isinstance(step, MakeFolder)
                made = await self.layers.change(
                    chain, self.owner, lambda root: _make_folder(root, step, self.layers.ids), empty=True
                )
                assert made is not None
                layer = made
            return await self._remember(key, layer, _on(chain, layer), _description(planned, step))

    async def _key(self, step: Step, chain: Sequence[str]) -> str:
        top = chain[-1:]
        if isinstance(step, MakeFolder):
            return key_of(_VERSION, "folder", top, step.path, step.user)
        assert isinstance(step, Run)
        mounts = []
        for mount, origin in step.mounts:
            made_of = await self.identity(origin, mount.source) if origin is not None else ""
            spec = {name: value for name, value in vars(mount).items() if name not in ("origin", "required")}
            mounts.append([spec, made_of])
        return key_of(
            _VERSION, "run", top, step.command, step.environment, step.user, step.folder, mounts, step.network,
            step.script, self.request.hostname, self.request.host,
        )  # fmt: skip

    async def _copy(self, step: Copy, chain: Sequence[str], task: Task, fresh: bool) -> Cached:
        async with contextlib.AsyncExitStack() as stack:
            plain = await stack.enter_async_context(self.files(step.origin)) if step.needs_origin else None
            words = await stack.enter_async_context(gathered(step, self.images.content.tmp, plain))
            found = await self.layers.in_thread(lambda: look(step, words))
            digests = await self.layers.in_thread(lambda: [source.tree.digest(source) for source, _ in found])
            linked = step.link and await self.layers.read(chain, lambda root: stands_alone(root, found))
            under = () if linked else tuple(chain)
            copied = [
                (digest, source.is_folder, source.is_archive, posixpath.basename(source.path), target)
                for (source, target), digest in zip(found, digests, strict=True)
            ]
            owner = None
            if step.chown:
                owner = await self.layers.read(chain, lambda root: _owner(root, step.chown))
            key = key_of(_VERSION, "copy", under[-1:], copied, owner)
            async with self._once(key):
                known = await self._known(key, fresh, task, under)
                if known is None:
                    layer = await self.layers.change(
                        under, self.owner, lambda root: _place(root, found, owner, self.layers.ids), empty=True
                    )
                    assert layer is not None
                    known = await self._remember(key, layer, _on(under, layer), task.vertex.name)
            if linked and chain:
                layer = known.layer
                await self.layers.in_thread(lambda: self.images.add_layer(chain[-1], layer, owner=self.owner))
            return known

    # -- the cache ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _once(self, key: str) -> AsyncIterator[None]:
        async with self._making.setdefault(key, asyncio.Lock()):
            yield

    async def _known(self, key: str, fresh: bool, task: Task, under: Sequence[str]) -> Cached | None:
        if fresh and key not in self._made:
            return None
        known = await finished(asyncio.to_thread(self.cache.find, key, self.owner))
        if known is None and key in self.taken:
            layer, created = self.taken[key]
            below = under[-1] if under else ""
            await self.layers.in_thread(lambda: self.images.add_layer(below, layer, owner=self.owner))
            # Whoever made that image may claim anything of its layers: they are this build's alone, and never its successors'.
            known = Cached("", key, layer, tuple(_on(under, layer)), task.vertex.name, created)
        if known is not None:
            task.cached()
        return known

    async def _remember(self, key: str, layer: LayerBlob, chain: Sequence[str], description: str) -> Cached:
        known = await finished(asyncio.to_thread(self.cache.add, key, layer, chain, description))
        self._made.add(key)
        return known


def _on(chain: Sequence[str], layer: LayerBlob) -> list[str]:
    return [*chain, chain_ids([*chain[-1:], layer.diff_id])[-1]]


def _name(planned: Planned, step: Step) -> str:
    """Return how a step is shown."""
    prefix = f"{planned.label} " if planned.label else ""
    note = step.note if isinstance(step, Run) else ""
    return f"[{prefix}{_place_of(planned, step.number)}] {step.shown}{note}"


def _place_of(planned: Planned, number: int) -> str:
    return f"{number:{len(str(planned.total))}}/{planned.total}"


def _description(planned: Planned, step: Step) -> str:
    """Return what the build cache calls a step."""
    if isinstance(step, Run):
        return f"mount / from exec {' '.join(step.command)}"
    return _name(planned, step)


def _make_folder(root: Path, step: MakeFolder, ids: IdMap) -> None:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = ids.outside(*_owner(root, step.user)) if step.user else ids.root
        make_folders(descriptor, step.path, owner)
    except NotADirectoryError:
        raise InvalidParameter(f"failed to make the folder {step.path}: not a directory") from None
    finally:
        os.close(descriptor)


def _owner(root: Path, text: str) -> tuple[int, int]:
    """Resolve --chown in the image. Who is not in it is root, as in BuildKit. Blocks."""
    try:
        return owner_of(root, text) or (0, 0)
    except InvalidParameter:
        return 0, 0


def _place(root: Path, found: Sequence[tuple[Source, str]], owner: tuple[int, int] | None, ids: IdMap) -> None:
    for source, target in found:
        place(root, [source], target, chown=owner, chmod=None, ids=ids)
