"""Routes of images: list, inspect, load, save, pull, push, import, tag, remove, prune, search.

What they do is in `moorage_guest.images`; builds are in `api.build`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moorage_contract.postponed import postponed

from moorage_guest import web
from moorage_guest.api import transfers
from moorage_guest.api.server import (
    ApiRequest,
    Route,
    empty_response,
    filters,
    json_response,
    query_bool,
    query_int,
    stream_response,
)
from moorage_guest.engine.shims import Agent
from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.images import listing, names, platforms, remote
from moorage_guest.images.build.changes import apply_changes
from moorage_guest.images.image import Image
from moorage_guest.images.registry import Credentials
from moorage_guest.images.registry import login as registry_login
from moorage_guest.images.store import Images
from moorage_guest.images.streams import BufferedSource, ProgressQueue, failure, with_body

with postponed(
    "moorage_guest.images.distribution",
    "moorage_guest.images.importing",
    "moorage_guest.images.loading",
    "moorage_guest.images.saving",
):
    from moorage_guest.images import distribution, importing, loading, saving

log = logging.getLogger(__name__)


def routes(images: Images, agent: Agent | None = None) -> list[Route]:
    """Return the routes of this area. Under an ``agent`` that is a supervisor pulls and pushes outlive this daemon."""
    handlers = _Handlers(images, agent)
    name = "{name:.+}"
    return [
        Route("GET", "/images/json", handlers.list_all),
        Route("POST", "/images/load", handlers.load),
        Route("GET", "/images/get", handlers.save_many),
        Route("POST", "/images/prune", handlers.prune),
        Route("POST", "/images/create", handlers.create),
        Route("GET", "/images/search", handlers.search),
        Route("POST", f"/images/{name}/push", handlers.push),
        Route("GET", f"/distribution/{name}/json", handlers.distribution),
        Route("GET", f"/images/{name}/get", handlers.save_one),
        Route("GET", f"/images/{name}/json", handlers.inspect),
        Route("GET", f"/images/{name}/history", handlers.history),
        Route("POST", f"/images/{name}/tag", handlers.tag),
        Route("DELETE", f"/images/{name}", handlers.remove),
    ]


@dataclass
class _Handlers:
    images: Images
    agent: Agent | None

    async def list_all(self, request: ApiRequest) -> web.StreamResponse:
        found = listing.list_images(
            self.images,
            filters(request, listing.LIST_FILTERS),
            everything=query_bool(request, "all"),
            shared_size=query_bool(request, "shared-size"),
        )
        if request.api_version < (1, 44):
            for each in found:
                each["VirtualSize"] = each["Size"]
        if request.api_version < (1, 43):
            for each in found:
                if not each["RepoTags"] and not each["RepoDigests"]:
                    each["RepoTags"], each["RepoDigests"] = ["<none>:<none>"], ["<none>@<none>"]
        return json_response(found)

    async def inspect(self, request: ApiRequest) -> web.StreamResponse:
        image = self.images.resolve(request.match_info["name"])
        return json_response(listing.inspect(self.images, image, request.api_version))

    async def history(self, request: ApiRequest) -> web.StreamResponse:
        return json_response(listing.history(self.images, self.images.resolve(request.match_info["name"])))

    async def tag(self, request: ApiRequest) -> web.StreamResponse:
        image = self.images.resolve(request.match_info["name"])
        repository = request.query.get("repo", "")
        if not repository:
            raise InvalidParameter("invalid reference format: repo is missing")
        wanted = names.parse(importing.tags_from_query(repository, request.query.get("tag", "")))
        if wanted.familiar_name == "sha256":
            raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
        await asyncio.to_thread(self.images.tag, image, wanted)
        return empty_response(201)

    async def remove(self, request: ApiRequest) -> web.StreamResponse:
        if not request.match_info["name"].strip():
            raise InvalidParameter("image name cannot be blank")
        done = await self.images.remove(
            request.match_info["name"], force=query_bool(request, "force"), prune=not query_bool(request, "noprune")
        )
        return json_response(done)

    async def prune(self, request: ApiRequest) -> web.StreamResponse:
        wanted = filters(request, listing.PRUNE_FILTERS)
        dangling = listing.boolean("dangling", wanted.get("dangling", []))
        until = min((listing.timestamp(each) for each in wanted.get("until", [])), default=None)

        def keep(image: Image) -> bool:
            labels = listing.labels_of(image)
            return not all(listing.label_matches(labels, each) for each in wanted.get("label", [])) or any(
                listing.label_matches(labels, each) for each in wanted.get("label!", [])
            )

        labelled = bool(wanted.get("label") or wanted.get("label!"))
        done, freed = await self.images.prune(
            dangling=dangling is not False, until=until, keep=keep if labelled else None
        )
        self.images.events.publish("image", "prune", "", {"reclaimed": str(freed)})
        return json_response({"ImagesDeleted": done or None, "SpaceReclaimed": freed})

    # -- registries ---------------------------------------------------------------------------------------------------

    async def create(self, request: ApiRequest) -> web.StreamResponse:
        query = request.query
        platform = _platform(request)
        if query.get("fromImage"):
            reference = importing.tags_from_query(query["fromImage"], query.get("tag", ""))
            return await self._transfer(request, transfers.record_of(request, "pull", reference))
        source = query.get("fromSrc", "")
        if not source:
            raise InvalidParameter("fromImage or fromSrc has to be given")
        reference = importing.tags_from_query(query.get("repo", ""), query.get("tag", ""))
        config = apply_changes({}, query.getall("changes", []))
        message = query.get("message", "")

        async def take(progress: ProgressQueue) -> None:
            if source == "-":
                image = await with_body(
                    request.content,
                    lambda file: importing.import_tar(
                        self.images, BufferedSource(file.read_some), config=config, reference=reference,
                        message=message, platform=platform,
                    ),
                )  # fmt: skip
            else:
                async with remote.opened(source) as body:
                    progress.send({"status": f"Downloading from {source}"})
                    image = await with_body(
                        body,
                        lambda file: importing.import_tar(
                            self.images, BufferedSource(file.read_some), config=config, reference=reference,
                            message=message or f"Imported from {source}", platform=platform,
                        ),
                    )  # fmt: skip
            progress.send({"status": image.id})

        return await streamed(request, take)

    async def push(self, request: ApiRequest) -> web.StreamResponse:
        reference = importing.tags_from_query(request.match_info["name"], request.query.get("tag", ""))
        return await self._transfer(request, transfers.record_of(request, "push", reference))

    async def _transfer(self, request: ApiRequest, record: dict[str, Any]) -> web.StreamResponse:
        names.parse(record["reference"])  # what is wrong with it is no matter of a registry
        if self.agent is not None and self.agent.supervised and not request.version_http10:
            return await transfers.answered(self.images, self.agent, request, record)
        return await streamed(request, lambda progress: transfers.work(self.images, record, progress))

    async def distribution(self, request: ApiRequest) -> web.StreamResponse:
        wanted = names.parse(request.match_info["name"]).with_default_tag()
        return json_response(await distribution.describe(self.images.registries, wanted, _credentials(request)))

    async def search(self, request: ApiRequest) -> web.StreamResponse:
        limit = query_int(request, "limit", 25) or 25
        if not 1 <= limit <= 100:
            raise InvalidParameter(f"limit {limit} is outside the range of [1, 100]")
        known = ("is-automated", "is-official", "stars")
        found = await distribution.search(
            self.images.registries, request.query.get("term", ""), limit, filters(request, known), _credentials(request)
        )
        return json_response(found)

    # -- archives -----------------------------------------------------------------------------------------------------

    async def load(self, request: ApiRequest) -> web.StreamResponse:
        platform = _platform(request)
        quiet = query_bool(request, "quiet")

        async def work(progress: ProgressQueue) -> None:
            await with_body(
                request.content,
                lambda file: loading.load(
                    self.images, BufferedSource(file.read_some), progress.send, quiet=quiet, platform=platform
                ),
            )

        return await streamed(request, work, always=True)

    async def save_one(self, request: ApiRequest) -> web.StreamResponse:
        return await self._save(request, [request.match_info["name"]])

    async def save_many(self, request: ApiRequest) -> web.StreamResponse:
        wanted = [name for value in request.query.getall("names", []) for name in value.split(",") if name]
        if not wanted:
            raise InvalidParameter("no image to save: give names")
        return await self._save(request, wanted)

    async def _save(self, request: ApiRequest, wanted: list[str]) -> web.StreamResponse:
        chosen = saving.select(self.images, wanted, _platform(request))
        owner = f"save:{id(request)}"
        for image, _ in chosen:
            self.images.content.holds.hold(owner, [image.id, image.manifest, *(layer.digest for layer in image.layers)])
        try:
            response = await stream_response(request, "application/x-tar")
            await send_parts(request, response, saving.save(self.images, chosen))
            await response.write_eof()
        finally:
            await asyncio.to_thread(self.images.content.holds.release, owner)
        for image, tags in chosen:
            self.images.publish("save", image, names.parse(tags[0]).familiar if tags else image.id)
        return response


async def login(images: Images, credentials: Mapping[str, Any]) -> dict[str, Any]:
    """Check a login at its registry; returns the answer of POST /auth."""
    return await registry_login(images.registries, credentials)


def _credentials(request: ApiRequest) -> Credentials:
    return Credentials.of_header(request.headers.get("X-Registry-Auth", ""))


def _platform(request: ApiRequest) -> platforms.Platform | None:
    """Read the parameter ``platform``: a JSON object of OCI, or os/architecture."""
    return platforms.of_query(request.query.get("platform", ""))


async def streamed(
    request: ApiRequest,
    work: "Callable[[ProgressQueue], Any]",
    content_type: str = "application/json",
    *,
    always: bool = False,
) -> web.StreamResponse:
    """Answer with the messages that ``work`` sends.

    An error before the first message is answered with its status, a later one in the stream, as dockerd does;
    with ``always`` the first one is in the stream, too.
    """
    remote.UPSTREAM.set(request.headers.get("User-Agent", ""))
    progress = ProgressQueue()
    failed: list[BaseException] = []

    async def run() -> None:
        try:
            await work(progress)
        except (EngineError, OSError) as error:
            failed.append(error)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            failed.append(error)
        finally:
            progress.end()

    task = asyncio.get_running_loop().create_task(run(), name=f"{request.method} {request.path}")
    response: web.StreamResponse | None = None
    watcher = asyncio.get_running_loop().create_task(_until_gone(request, task), name="client of a stream")
    try:
        async for lines in progress.lines():
            if response is None:
                response = await stream_response(request, content_type)
            await response.write(lines)
        await task
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
    if failed:
        log.info("%s %s: %s", request.method, request.path, failed[0])
        if response is None and always:
            response = await stream_response(request, content_type)
        if response is None:
            raise failed[0] if isinstance(failed[0], EngineError) else EngineError(str(failed[0]))
        await response.write(_line(failure(failed[0])))
    if response is None:
        response = await stream_response(request, content_type)
    await response.write_eof()
    return response


async def _until_gone(request: ApiRequest, task: "asyncio.Task[None]") -> None:
    """Cancel the work when the client closes its connection."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 -- there is no event for it
        await asyncio.sleep(0.2)
    task.cancel()


def _line(message: Mapping[str, Any]) -> bytes:
    return json_response(message).body or b""  # type: ignore[return-value]


async def send_parts(request: ApiRequest, response: web.StreamResponse, parts: "Iterator[saving.Part]") -> None:
    """Write an archive; the content of files goes from the disk to a plain socket inside the kernel."""
    loop = asyncio.get_running_loop()
    end = object()
    while (part := await asyncio.to_thread(next, parts, end)) is not end:
        if isinstance(part, bytes):
            if part:
                await response.write(part)
            continue
        assert isinstance(part, saving.FilePart)
        with part.path.open("rb") as file:
            transport = request.transport
            direct = not request.version_http10 and part.size > 65536 and transport is not None
            if direct and transport is not None:
                transport.write(b"%x\r\n" % part.size)
                await loop.sendfile(transport, file, 0, part.size, fallback=True)
                transport.write(b"\r\n")
                continue
            left = part.size
            while left:
                data = await asyncio.to_thread(file.read, min(left, 1 << 20))
                if not data:
                    raise EngineError(f"{part.path} is shorter than it was")
                left -= len(data)
                await response.write(data)
