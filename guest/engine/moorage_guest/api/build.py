"""Routes of builds: POST /build, and the pruning of what builds left as cache."""

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from moorage_contract.postponed import postponed

from moorage_guest import web
from moorage_guest.api.buildkit import BuildKit
from moorage_guest.api.images import streamed
from moorage_guest.api.server import ApiRequest, Route, filters, json_response, query_bool, query_int
from moorage_guest.errors import InvalidParameter
from moorage_guest.images import listing, remote
from moorage_guest.images.build.runner import StepRunner
from moorage_guest.images.build.sources import FolderTree, SourceTree
from moorage_guest.images.buildcache import BuildCache
from moorage_guest.images.compression import compression
from moorage_guest.images.layers import Layers
from moorage_guest.images.registry import decode_header
from moorage_guest.images.store import Images
from moorage_guest.images.streams import BodyFile, BufferedSource, ProgressQueue, with_body
from moorage_guest.images.tarformat import looks_like_tar

with postponed(
    *(f"moorage_guest.images.build.{each}" for each in ("builder", "context", "git", "options")),
    "moorage_guest.buildkit.legacy",
    "moorage_guest.images.cacheuse",
):
    from moorage_guest.buildkit import legacy
    from moorage_guest.images import cacheuse
    from moorage_guest.images.build import builder, context, git, options


def routes(images: Images, layers: Layers, runner: StepRunner, cache: BuildCache, buildkit: BuildKit) -> list[Route]:
    """Return the routes of this area."""
    handlers = _Handlers(images, layers, runner, cache, buildkit)
    return [
        Route("POST", "/build", handlers.build),
        Route("POST", "/build/prune", handlers.prune),
        Route("POST", "/build/cancel", handlers.cancel),
    ]


@dataclass
class _Handlers:
    images: Images
    layers: Layers
    runner: StepRunner
    cache: BuildCache
    buildkit: BuildKit

    async def build(self, request: ApiRequest) -> web.StreamResponse:
        if request.query.get("version") == "2":
            return await self._build_as_buildkit(request)
        header = request.headers.get("X-Registry-Config", "")
        wanted = options.read_options(request.query, decode_header(header))

        async def work(progress: ProgressQueue) -> None:
            async with self._context(request, wanted) as tree:
                await builder.Builder(self.images, self.layers, self.runner, wanted, progress.send).run(tree)

        return await streamed(request, work)

    @contextlib.asynccontextmanager
    async def _context(self, request: ApiRequest, wanted: "options.BuildOptions") -> AsyncIterator[SourceTree]:
        """Take the context in, from the client or from where it says. Raises InvalidParameter and what the way there raises."""
        tmp = self.images.content.tmp
        if git.is_git(wanted.remote):
            async with git.checked_out(wanted.remote, tmp) as folder:
                yield FolderTree(folder)
            return
        if wanted.remote and not re.match(r"https?://", wanted.remote):
            raise InvalidParameter(f"remoteURL ({wanted.remote}) could not be recognized as URL")
        with contextlib.closing(context.ContextTree(tmp)) as tree:
            if not wanted.remote:
                await with_body(request.content, lambda file: take(tree, file))
            else:
                async with remote.opened(wanted.remote) as body:
                    await with_body(body, lambda file: take(tree, file, dockerfile=wanted.dockerfile))
            yield tree

    async def _build_as_buildkit(self, request: ApiRequest) -> web.StreamResponse:
        async def work(progress: ProgressQueue) -> None:
            await legacy.build(self.buildkit.control, request.query, request.content, progress.send)

        return await streamed(request, work)

    async def prune(self, request: ApiRequest) -> web.StreamResponse:
        wanted = filters(request, listing.CACHE_FILTERS)
        times = [*wanted.get("until", []), *wanted.get("unused-for", [])]
        narrowed = wanted.keys() - {"until", "unused-for"}
        what = cacheuse.Prune(
            everything=query_bool(request, "all"),
            until=min((listing.timestamp(each) for each in times), default=None),
            chosen=(lambda entry: listing.cached(entry, wanted)) if narrowed else None,
            reserved=query_int(request, "reserved-space") or query_int(request, "keep-storage") or 0,
            max_used=query_int(request, "max-used-space") or 0,
            min_free=query_int(request, "min-free-space") or 0,
        )
        self.buildkit.forget_files()
        deleted, _gone, freed = await cacheuse.CacheUse(self.images, self.cache).prune(what)
        return json_response({"CachesDeleted": deleted or None, "SpaceReclaimed": freed})

    async def cancel(self, request: ApiRequest) -> web.StreamResponse:
        """End a build in BuildKit's way by its id; a classic build ends when its client goes."""
        build_id = request.query.get("id", "")
        if not build_id:
            raise InvalidParameter("build ID not provided")
        self.buildkit.control.cancel(build_id)
        return web.Response(status=200)


def take(tree: "context.ContextTree", file: BodyFile, *, dockerfile: str = "") -> None:
    """Take in a context; a text instead of an archive is the Dockerfile itself if its name is given. Blocks."""
    source = BufferedSource(file.read_some)
    head = source.peek(512)
    if dockerfile and not compression(head) and not (len(head) == 512 and looks_like_tar(head)):
        parts = []
        while piece := source.piece(1 << 20):
            parts.append(bytes(piece))
        tree.write("Dockerfile" if "/" in dockerfile else dockerfile, b"".join(parts).decode("utf-8", "replace"))
        return
    tree.unpack(source)
