"""Where the result of a build goes: into the image store, or to the client as files or as a tar archive.

Which of them a client asked for is read by `wanted`; everything else is refused before anything is built.
"""

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from moorage_guest.buildkit.messages import Exporter
from moorage_guest.buildkit.session import ClientSession
from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.images import names
from moorage_guest.images.build.seams import Built, Reporter, Vertex
from moorage_guest.images.layers import Layers
from moorage_guest.images.pack import pack_tree
from moorage_guest.images.store import Images
from moorage_guest.images.streams import finished

#: What clients call the image store; buildx says "moby" to an engine's own builder.
IMAGE_STORE = ("moby", "image")


#: Waits for the session of the client that asked for the build.
Client = Callable[[], Awaitable[ClientSession]]


@dataclass(frozen=True)
class Step:
    """The vertex of an export, told of as it goes on."""

    reporter: Reporter
    vertex: str

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of it, begun and over."""
        begun = time.time_ns()
        self.reporter.status(self.vertex, name, 0, 0, begun, None)
        yield
        self.reporter.status(self.vertex, name, 0, 0, begun, time.time_ns())

    def progress(self, name: str, begun_ns: int, size: int, *, over: bool = False) -> None:
        """How many bytes of a part are done."""
        self.reporter.status(self.vertex, name, size, 0, begun_ns, time.time_ns() if over else None)


@contextlib.contextmanager
def step(reporter: Reporter, name: str) -> Iterator[Step]:
    """A vertex for a block; what the block raises is its error."""
    digest = "sha256:" + hashlib.sha256(f"{uuid.uuid4().hex} {name}".encode()).hexdigest()
    vertex = Vertex(digest, name, started_ns=time.time_ns())
    reporter.vertex(vertex)
    try:
        yield Step(reporter, digest)
    except asyncio.CancelledError:
        reporter.vertex(replace(vertex, completed_ns=time.time_ns(), error="context canceled"))
        raise
    except EngineError as error:
        reporter.vertex(replace(vertex, completed_ns=time.time_ns(), error=str(error)))
        raise
    reporter.vertex(replace(vertex, completed_ns=time.time_ns()))


class Destination(Protocol):
    """One export."""

    async def export(self, built: Built, client: Client, reporter: Reporter) -> dict[str, str]:
        """Bring a result where it belongs; returns what the client is told of it. Raises EngineError."""


@dataclass(frozen=True)
class ImageStore:
    """An image, with names or without."""

    images: Images
    tags: tuple[names.Reference, ...]
    inline_cache: bool = False

    async def export(self, built: Built, client: Client, reporter: Reporter) -> dict[str, str]:
        """See `Destination`."""
        document = built.exported(with_steps=self.inline_cache)
        raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        image_id = "sha256:" + hashlib.sha256(raw).hexdigest()
        with step(reporter, "exporting to image") as here:
            with here.part("exporting layers"):
                pass  # they are stored as they are made
            if self.inline_cache:
                with here.part("preparing layers for inline cache"):
                    pass  # the document says what its layers were made of
            with here.part(f"writing image {image_id}"):
                image = await finished(asyncio.to_thread(self.images.create, raw, built.layers, owner=built.owner))
            for tag in self.tags:
                with here.part(f"naming to {tag}"):
                    await finished(asyncio.to_thread(self.images.tag, image, tag))
        answer = {"containerimage.digest": image.id, "containerimage.config.digest": image.id}
        if self.tags:
            answer["image.name"] = ",".join(str(tag) for tag in self.tags)
        return answer


@dataclass(frozen=True)
class ClientFiles:
    """Files in a folder of the client's."""

    layers: Layers
    number: int

    async def export(self, built: Built, client: Client, reporter: Reporter) -> dict[str, str]:
        """See `Destination`."""
        with step(reporter, "exporting to client directory") as here:
            session = await client()
            begun = time.time_ns()
            async with self.layers.viewed(built.chain) as root:
                sent = await session.send_files(
                    str(self.number), root, lambda size: here.progress("copying files", begun, size)
                )
            here.progress("copying files", begun, sent, over=True)
        return {}


@dataclass(frozen=True)
class ClientTar:
    """A tar archive that the client writes."""

    layers: Layers
    number: int

    async def export(self, built: Built, client: Client, reporter: Reporter) -> dict[str, str]:
        """See `Destination`."""
        with step(reporter, "exporting to client tarball") as here, here.part("sending tarball"):
            session = await client()
            async with (
                self.layers.viewed(built.chain) as root,
                contextlib.aclosing(self.layers.stream(pack_tree(root))) as pieces,
            ):
                await session.send_tar(str(self.number), pieces)
        return {}


def wanted(exporters: Sequence[Exporter], images: Images, layers: Layers, *, inline_cache: bool) -> list[Destination]:
    """Return where a client wants a result. Raises InvalidParameter."""
    found: list[Destination] = []
    for number, exporter in enumerate(exporters):
        if exporter.type in IMAGE_STORE:
            if exporter.attrs.get("push") == "true":
                raise InvalidParameter("the engine does not push what it builds: push the image once it is built")
            texts = [text for text in exporter.attrs.get("name", "").split(",") if text]
            found.append(ImageStore(images, tuple(_name(text) for text in texts), inline_cache))
        elif exporter.type == "local":
            found.append(ClientFiles(layers, number))
        elif exporter.type == "tar":
            found.append(ClientTar(layers, number))
        else:
            raise InvalidParameter(f'exporter "{exporter.type}" could not be found')
    return found


def _name(text: str) -> names.Reference:
    name = names.parse(text)
    if name.digest:
        raise InvalidParameter(f"refusing to create a tag with a digest reference: {text}")
    return name
