"""A build in BuildKit's way: a Dockerfile's target becomes an image, only what it needs is built, side by side, found again by content.

No step is an image of its own: layers stay in the build cache. Getting the result out is for who asked.
"""

import asyncio
import contextlib
import os
import posixpath
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.images import names, platforms, pulling
from moorage_guest.images.build import dialect
from moorage_guest.images.build.board import Board, Task
from moorage_guest.images.build.contexts import IMAGE, INPUT, Contexts, Text, address_kind
from moorage_guest.images.build.document import described
from moorage_guest.images.build.gathering import check_checksum
from moorage_guest.images.build.laying import Layering
from moorage_guest.images.build.planned import Copy, Laid, Origin, Planned, Run, is_fetched
from moorage_guest.images.build.planning import Planner, check
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.runner import StepRunner
from moorage_guest.images.build.seams import INLINE_CACHE, BuildError, Built, Notice, Reporter, Session, Source
from moorage_guest.images.buildcache import BuildCache
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.layers import Layers
from moorage_guest.images.registry import DEFAULT_HOST
from moorage_guest.images.store import Images
from moorage_guest.images.streams import finished

#: How many commands of a build run at once at least; twice as many as there are processors where that is more.
COMMANDS_AT_ONCE = 4


@dataclass(frozen=True)
class Site:
    """What builds need of the engine."""

    images: Images
    layers: Layers
    runner: StepRunner
    cache: BuildCache


@asynccontextmanager
async def solving(
    site: Site,
    request: Request,
    session: Session,
    reporter: Reporter,
    inputs: Mapping[str, Built] | None = None,
) -> AsyncIterator[Built]:
    """Build and give the result, held until the block ends. Raises BuildError.

    ``inputs`` are what contexts of the address ``input:NAME`` mean: results of other builds that are still held.
    """
    owner = f"build:{uuid.uuid4().hex}"
    board = Board(reporter, owner)
    try:
        async with contextlib.AsyncExitStack() as stack:
            contexts = Contexts(request, session, board, site.images.content.tmp, stack)
            solve = _Solve(site, request, session, board, owner, contexts, inputs or {})
            built = await solve.run()
        yield built
    finally:
        await finished(asyncio.to_thread(site.images.release_work, owner))


@dataclass
class _Solve:
    site: Site
    request: Request
    session: Session
    board: Board
    owner: str
    contexts: Contexts
    inputs: Mapping[str, Built]

    async def run(self) -> Built:
        text = await self.contexts.dockerfile()
        parsed = dialect.parse(text.data, text.name)
        self._check_syntax(parsed, text)
        for short, lines in parsed.warnings:
            source = Source(text.name, text.data, (lines,))
            self.board.reporter.warning(Notice(text.vertex, short, source=source))
        for statement in parsed.statements:
            check(statement)
        planner = Planner(self.request, *dialect.stages(parsed.statements))
        bases, found = await self._outside(planner)
        planned = planner.plan(bases, found)
        self._check(planned)
        await self.contexts.read_ignored(text.ignored)
        self.contexts.follow = _followed(planned)
        laid = await self._carry_out(planned, await self._taken())
        last = planned[-1]
        platform = self.request.platform or platforms.this_platform()
        document = described(last, laid, platform, self.request.build_args.get("SOURCE_DATE_EPOCH", ""))
        return Built(document, laid.layers, laid.chain, platform, self.owner, laid.steps)

    def _check_syntax(self, parsed: dialect.Parsed, text: Text) -> None:
        dialect.check_syntax(self.request.syntax)
        try:
            dialect.check_syntax(parsed.syntax)
        except BuildError as error:
            error.source = Source(text.name, text.data, ((1, 1),))
            raise

    def _check(self, planned: Sequence[Planned]) -> None:
        for stage in planned:
            for step in stage.steps:
                if isinstance(step, Copy):
                    check_checksum(step)

    # -- images and contexts ------------------------------------------------------------------------------------------

    async def _outside(self, planner: Planner) -> tuple[dict[int, Origin | None], dict[str, Origin]]:
        """Find what the needed stages are based on and copy from that is no stage. Raises BuildError."""
        bases: dict[int, Origin | None] = {}
        found: dict[str, Origin] = {}
        finding: dict[tuple[str, str], asyncio.Task[Origin]] = {}
        async with _Together() as group:

            def find(name: str, platform: platforms.Platform | None, source: Source | None) -> asyncio.Task[Origin]:
                key = (name, str(platform))
                if key not in finding:
                    finding[key] = group.create_task(self._origin(name, platform, source))
                return finding[key]

            wanted: dict[int, asyncio.Task[Origin]] = {}
            others: dict[str, asyncio.Task[Origin]] = {}
            for index in planner.needed:
                stage = planner.stages[index]
                base = planner.bases[index]
                if stage.name and self.request.named_context(stage.name) is not None:
                    wanted[index] = find(stage.name, planner.base_platform(stage), stage.base.source)
                elif planner.named(base, index) is not None:
                    pass
                elif base == "scratch" and self.request.named_context(base) is None:
                    bases[index] = None
                else:
                    wanted[index] = find(base, planner.base_platform(stage), stage.base.source)
                for source, name in planner.outside(index):
                    if not name.isdigit() and name != "scratch":
                        others[name] = find(name, self.request.platform, source)
        bases.update({index: task.result() for index, task in wanted.items()})
        found.update({name: task.result() for name, task in others.items()})
        return bases, found

    async def _origin(self, name: str, platform: platforms.Platform | None, source: Source | None) -> Origin:
        address = self.request.named_context(name)
        try:
            kind = address_kind(address, self.inputs) if address is not None else IMAGE
        except InvalidParameter as error:
            raise BuildError(str(error), source=source) from None
        if kind == INPUT:
            assert address is not None
            return Origin(image=self.inputs[address.removeprefix(INPUT)], name=name, made_here=True)
        if kind != IMAGE:
            return Origin(address=address, name=name)
        wanted = address.removeprefix(IMAGE) if address is not None else name
        return await self._image(wanted, platform, source)

    async def _image(self, name: str, platform: platforms.Platform | None, source: Source | None) -> Origin:
        try:
            reference = names.parse(name).with_default_tag()
        except InvalidParameter as error:
            raise BuildError(f"failed to parse stage name {name!r}: {error}", source=source) from None
        with self.board.task(f"[internal] load metadata for {reference}", source=source) as task:
            image = self.site.images.find(name)
            fits = image is not None and (platform is None or platform.matches(_platform_of(image)))
            if image is None or not fits or self.request.pull:
                try:
                    image = await self._fetched(reference, platform, task)
                except EngineError as error:
                    raise BuildError(
                        f"{name}: failed to resolve source metadata for {reference}: {error}", source=source
                    ) from error
                await finished(asyncio.to_thread(self.site.cache.keep_base, image, f"pulled from {reference}"))
            else:
                self.site.images.hold_for(self.owner, image)
        built = Built(image.document, image.layers, image.chain, platforms.this_platform(), self.owner)
        return Origin(image=built, name=str(reference))

    async def _fetched(self, reference: names.Reference, platform: platforms.Platform | None, task: Task) -> Image:
        """Take an image from its registry, which is asked each time for what the name means now."""
        host = DEFAULT_HOST if reference.domain == names.DEFAULT_DOMAIN else reference.domain
        credentials = await self.session.credentials(host)

        def progress(message: Mapping[str, Any]) -> None:
            detail = message.get("progressDetail") or {}
            if message.get("id") and isinstance(detail, dict) and detail.get("current"):
                task.status(str(message["id"]), int(detail["current"]), int(detail.get("total") or 0))

        return await pulling.take(
            self.site.images, reference, progress, credentials=credentials, platform=platform, owner=self.owner
        )

    # -- carrying out -------------------------------------------------------------------------------------------------

    async def _taken(self) -> dict[str, tuple[LayerBlob, str]]:
        """Return the steps of images that are named as caches. One that cannot be had is reported, and done without."""
        found: dict[str, tuple[LayerBlob, str]] = {}
        for name in self.request.cache_from:
            with contextlib.suppress(BuildError), self.board.task(f"importing cache manifest from {name}") as task:
                reference = names.parse(name).with_default_tag()
                image = self.site.images.find(name)
                if image is None:
                    image = await self._fetched(reference, self.request.platform, task)
                else:
                    self.site.images.hold_for(self.owner, image)
                found.update(_steps_of(image))
        return found

    async def _carry_out(self, planned: Sequence[Planned], taken: Mapping[str, tuple[LayerBlob, str]]) -> Laid:
        site = self.site
        layering = Layering(
            site.images, site.layers, site.cache, self.request, self.board, self.contexts, self.owner, site.runner,
            self.session, asyncio.Semaphore(max(COMMANDS_AT_ONCE, 2 * (os.cpu_count() or 1))), _shared(planned),
            taken,
        )  # fmt: skip
        async with _Together() as group:
            for stage in planned:
                layering.stages[stage.stage.index] = group.create_task(layering.stage(stage))
        return layering.stages[planned[-1].stage.index].result()


class _Together:
    """Tasks that end together: what is wrong with the first that fails is what is raised, not a group."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> asyncio.TaskGroup:
        return await self._group.__aenter__()

    async def __aexit__(self, *details: Any) -> None:
        try:
            await self._group.__aexit__(*details)
        except BaseExceptionGroup as group:
            first: BaseException = group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None


def _steps_of(image: Image) -> dict[str, tuple[LayerBlob, str]]:
    """Return what an image says of its steps; what makes no sense is passed over."""
    found: dict[str, tuple[LayerBlob, str]] = {}
    entries = image.document.get(INLINE_CACHE)
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case [str(key), int(number), str(created)] if 0 <= number < len(image.layers):
                found[key] = (image.layers[number], created)
    return found


def _shared(planned: Sequence[Planned]) -> frozenset[str]:
    names_ = [stage.base.name for stage in planned if stage.base is not None and stage.base.image is not None]
    return frozenset(name for name in names_ if names_.count(name) > 1)


def _platform_of(image: Image) -> Mapping[str, str]:
    return {"os": image.os, "architecture": image.architecture, "variant": str(image.document.get("variant") or "")}


def _followed(planned: Sequence[Planned]) -> tuple[str, ...]:
    """Return the paths of the main context that steps name; none when one of them is all of it."""
    found: set[str] = set()
    for stage in planned:
        for step in stage.steps:
            if isinstance(step, Copy) and step.origin.address == "":
                found.update(word for word in step.sources if not (step.is_add and is_fetched(word)))
            elif isinstance(step, Run):
                found.update(
                    mount.source for mount, origin in step.mounts if origin is not None and origin.address == ""
                )
    clean = {posixpath.normpath(f"/{path.lstrip('/')}").lstrip("/") for path in found}
    return () if "" in clean else tuple(sorted(clean))
