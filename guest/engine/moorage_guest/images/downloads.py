"""Fetches one layer's blob: hashed, decompressed and unpacked while it comes, and gone on with where it broke off.

What broke off stays as a half blob, also when the daemon is killed; the next pull goes on from there, `docker image prune`
frees it. Which layers an image needs is for `pulling`.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moorage_guest.images import kernel
from moorage_guest.images.compression import Bounded, check_diff_id, compression
from moorage_guest.images.content import Ingest
from moorage_guest.images.image import LayerBlob
from moorage_guest.images.layerstore import remove_tree
from moorage_guest.images.registry import Registry, RegistryError
from moorage_guest.images.store import Images
from moorage_guest.images.streams import BufferedSource, Conveyor, Progress, bar, finished
from moorage_guest.images.tarformat import TarError

log = logging.getLogger(__name__)

#: Bytes that are gathered before a thread hashes and writes them, and those that may wait to be unpacked.
_BATCH, _HIGH, _LOW = 1 << 20, 8 << 20, 4 << 20

#: Seconds between two progress messages of one layer.
_INTERVAL = 0.1


class Damaged(RegistryError):
    """What came has not the digest that was asked for."""


@dataclass(frozen=True)
class WantedLayer:
    """A layer of the image being pulled, and the chain it belongs on top of."""

    blob: LayerBlob
    parent: str
    chain_id: str

    @property
    def short(self) -> str:
        """What clients are shown."""
        return self.blob.digest[7:19]


@dataclass
class Halves:
    """Whether the half blobs of one pull stay: when the registry was at fault, not when the content was or the client left."""

    stay: bool = False


async def fetch_layer(
    images: Images, registry: Registry, layer: WantedLayer, owner: str, progress: Progress, halves: Halves
) -> None:
    """Fetch, check, unpack and store a layer, held by ``owner``. Raises RegistryError, TarError, OSError."""
    for last in (False, True):
        download = _Download(images, registry, layer, progress)
        try:
            await download.run(owner)
            return
        except (Damaged, TarError):
            if last or not download.resumed:
                raise
            log.warning("what was kept of layer %s is damaged: fetching all of it", layer.blob.digest)
        except (RegistryError, ConnectionError, TimeoutError):
            halves.stay = True
            raise
        finally:
            await finished(asyncio.to_thread(download.close, halves.stay or images.stopping))


class _Download:
    """One try to get a blob; `close` ends it."""

    def __init__(self, images: Images, registry: Registry, layer: WantedLayer, progress: Progress) -> None:
        self._images = images
        self._registry = registry
        self._layer = layer
        self._progress = progress
        self._ingest: Ingest = images.content.half(layer.blob.digest)
        self._conveyor = Conveyor(_HIGH, _LOW)
        self._unpacked: tuple[Path, int] | None = None
        self._diff_id = ""
        self._told = 0.0
        self.resumed = False

    async def run(self, owner: str) -> None:
        """Do all of it; the threads have ended when this returns or raises."""
        blob, short = self._layer.blob, self._layer.short
        thread = kernel.umask_free_executor(1, "pull-unpack")
        unpacking = asyncio.get_running_loop().run_in_executor(thread, self._unpack)
        try:
            await self._recall()
            await self._fetch_patiently()
            self._conveyor.end()
            self._progress({"status": "Verifying Checksum", "progressDetail": {}, "id": short})
            whole = self._ingest.digest == blob.digest
            if whole:
                self._progress({"status": "Download complete", "progressDetail": {}, "id": short})
                detail, text = {"current": blob.size, "total": blob.size}, bar(blob.size, blob.size)
                self._progress({"status": "Extracting", "progressDetail": detail, "progress": text, "id": short})
            await asyncio.wait({unpacking})
            if self._ingest.size == blob.size and not whole:
                raise Damaged(f"filesystem layer verification failed for digest {blob.digest}")
            await unpacking
        finally:
            self._conveyor.end(TarError("unexpected EOF"))
            await finished(asyncio.wait({unpacking}))
            thread.shutdown(wait=False)
            if unpacking.exception() is not None:
                log.debug("layer %s was not unpacked: %s", blob.digest, unpacking.exception())
        await finished(asyncio.to_thread(self._store, owner))

    # -- fetching -----------------------------------------------------------------------------------------------------

    async def _recall(self) -> None:
        """Begin with what an earlier download left."""
        pieces = self._ingest.recall()
        while piece := await finished(asyncio.to_thread(next, pieces, b"")):
            self.resumed = True
            if self._ingest.size > self._layer.blob.size:
                raise Damaged(f"more is kept of layer {self._layer.blob.digest} than it has")
            if not await self._conveyor.put([piece]):
                return
        if self.resumed:
            log.info("going on with layer %s at %d bytes", self._layer.blob.digest, self._ingest.size)

    async def _fetch_patiently(self) -> None:
        """Fetch what is missing; tries again from where it stands."""
        digest = self._layer.blob.digest
        attempts = max(self._images.registries.max_download_attempts, 1)
        for attempt in range(1, attempts + 1):
            before = self._ingest.size
            try:
                await self._fetch()
                return
            except (RegistryError, OSError) as error:
                if isinstance(error, Damaged):
                    raise
                if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                    raise
                if attempt == attempts:
                    raise
                log.info("layer %s broke off at %d bytes (%s): trying again", digest, self._ingest.size, error)
                seconds = 0.1 if self._ingest.size > before else float(min(5 * attempt, 30))
                if self._ingest.size == before:
                    status = f"Retrying in {seconds:.0f} second{'s' if seconds != 1 else ''}"
                    self._progress({"status": status, "progressDetail": {}, "id": self._layer.short})
                await asyncio.sleep(seconds)

    async def _fetch(self) -> None:
        size = self._layer.blob.size
        have = self._ingest.size
        if have >= size > 0:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        path = f"blobs/{self._layer.blob.digest}"
        async with self._registry.request("GET", path, headers=headers, expect=(200, 206)) as response:
            if response.status == 200 and response.content_length is not None and response.content_length < size:
                raise Damaged(f"filesystem layer verification failed for digest {self._layer.blob.digest}")
            skip = have if response.status == 200 else 0
            batch: list[bytes] = []
            gathered = 0
            try:
                async for piece, _ends in response.content.iter_chunks():  # as they came: `iter_any` would copy them
                    if skip:
                        piece, skip = piece[skip:], max(skip - len(piece), 0)
                        if not piece:
                            continue
                    batch.append(piece)
                    gathered += len(piece)
                    if gathered < _BATCH:
                        continue
                    taken, batch, gathered = batch, [], 0
                    if not await self._take(taken):
                        return
            finally:
                if batch:
                    await self._take(batch)
        if self._ingest.size < size:
            raise RegistryError("unexpected EOF")

    async def _take(self, batch: list[bytes]) -> bool:
        """Hash and write bytes while they are handed to be unpacked; false when unpacking has failed."""
        blob = self._layer.blob
        current = self._ingest.size + sum(map(len, batch))
        if current > blob.size:
            raise TarError(f"layer {blob.digest} is longer than the {blob.size} bytes its manifest says: refused")
        self._tell(current)
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, batch))
        try:
            return await self._conveyor.put(batch)
        finally:
            await finished(writing)

    def _write(self, batch: list[bytes]) -> None:
        for piece in batch:
            self._ingest.write(piece)

    def _tell(self, current: int) -> None:
        now = asyncio.get_running_loop().time()
        total = self._layer.blob.size
        if now - self._told < _INTERVAL and current < total:
            return
        self._told = now
        detail, text = {"current": current, "total": total}, bar(current, total)
        self._progress({"status": "Downloading", "progressDetail": detail, "progress": text, "id": self._layer.short})

    # -- unpacking, in a thread ---------------------------------------------------------------------------------------

    def _unpack(self) -> None:
        try:
            source = BufferedSource(self._conveyor.read_some)
            undo = Bounded(compression(source.peek(8)))
            pieces = _undone(undo, source)
            plain = BufferedSource(lambda: next(pieces, b""))
            self._unpacked = self._images.layer_store.unpack_stream(self._layer.parent, plain)
            self._diff_id = undo.finish()
        finally:
            self._conveyor.close()

    def _store(self, owner: str) -> None:
        blob = self._layer.blob
        check_diff_id(self._diff_id, blob.diff_id)
        assert self._unpacked is not None
        self._ingest.commit(stay=True)
        work, size = self._unpacked
        self._images.layer_store.adopt(
            self._layer.parent, blob.diff_id, work, size, digest=blob.digest, media_type=blob.media_type, owner=owner
        )
        self._unpacked = None

    def close(self, stay: bool) -> None:
        """Throw away what is unfinished; the half blob may stay for the next pull. Blocks."""
        if stay:
            self._ingest.keep()
        else:
            self._ingest.discard()
        if self._unpacked is not None:
            remove_tree(self._unpacked[0])


def _undone(undo: Bounded, source: BufferedSource) -> Iterator[bytes]:
    while data := source.piece(_BATCH):
        yield from undo.feed(bytes(data))
