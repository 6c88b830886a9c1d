"""Routes of `docker cp`: describe, fetch and put files of a container."""

import asyncio
import contextlib
from collections.abc import Generator

from moorage_guest import web
from moorage_guest.api.server import ApiRequest, Route, empty_response, query_bool, stream_response
from moorage_guest.engine import files
from moorage_guest.engine.containers import Containers
from moorage_guest.errors import InvalidParameter, SystemError_
from moorage_guest.images.archive import PathStat, stat_path, tar_in, tar_out
from moorage_guest.images.streams import BodyFile, BufferedSource, uncompressed, with_body
from moorage_guest.images.tarformat import TarError, blamed_on_archive

HEADER = "X-Docker-Container-Path-Stat"


def routes(engine: Containers) -> list[Route]:
    """Return the routes of this area."""

    async def head(request: ApiRequest) -> web.StreamResponse:
        async with files.view(engine, request.match_info["id"], request.query.get("path", "")) as (_, place):
            found = await asyncio.to_thread(stat_path, place.root, place.path)
        return web.Response(status=200, headers={HEADER: found.header()})

    async def get(request: ApiRequest) -> web.StreamResponse:
        async with files.view(engine, request.match_info["id"], request.query.get("path", "")) as (container, place):

            def begin() -> tuple[PathStat, Generator[bytes, None, None], bytes]:
                found, chunks = tar_out(place.root, place.path, engine.ids)
                return found, chunks, next(chunks, b"")

            found, chunks, first = await asyncio.to_thread(begin)
            response = await stream_response(request, "application/x-tar", headers={HEADER: found.header()})
            async with contextlib.aclosing(engine.layers.stream(chunks)) as pieces:
                with contextlib.suppress(ConnectionError):
                    await response.write(first)
                    async for piece in pieces:
                        await response.write(piece)
                    await response.write_eof()
            engine.publish(container, "archive-path")
            return response

    async def put(request: ApiRequest) -> web.StreamResponse:
        keep_kind = query_bool(request, "noOverwriteDirNonDir")
        async with files.view(engine, request.match_info["id"], request.query.get("path", "")) as (container, place):
            await asyncio.to_thread(files.check_folder, container, place)

            def unpack(body: BodyFile) -> None:
                with blamed_on_archive():
                    source = uncompressed(BufferedSource(body.read_some))
                    tar_in(place.root, place.path, source, no_overwrite_dir_non_dir=keep_kind, ids=engine.ids)

            try:
                await with_body(request.content, unpack)
            except TarError as error:
                raise InvalidParameter(f"invalid archive: {error}") from error
            except OSError as error:
                raise SystemError_(f"cannot write {error.filename or place.path}: {error.strerror}") from error
        engine.publish(container, "extract-to-dir")
        return empty_response(200)

    return [
        Route("HEAD", "/containers/{id}/archive", head),
        Route("GET", "/containers/{id}/archive", get),
        Route("PUT", "/containers/{id}/archive", put),
    ]
