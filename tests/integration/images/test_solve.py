"""Builds in BuildKit's way without a wire: a folder is the client, a list sees what happens. Commands are run in `compat/`."""

import asyncio
import hashlib
import io
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.context import ContextTree
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.seams import BuildError, Built, Notice, Vertex
from moorage_guest.images.build.solve import Site, solving
from moorage_guest.images.registry import Credentials

from tests.support.images import busybox_archive
from tests.support.imagestore import Shelf, assert_whole, shelf, source

pytestmark = pytest.mark.root


class NoCommands:
    """No command is run here."""

    async def create(self, step: object) -> str:
        raise AssertionError(f"{step} has to be run")

    run = keep = remove = create


@dataclass
class Client:
    """A client whose folders are on this disk."""

    folders: Mapping[str, Path]
    tmp: Path

    async def local(self, name: str, *, follow: Sequence[str] = (), **options: Any) -> ContextTree:
        if name not in self.folders:
            raise InvalidParameter(f"no folder {name}")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(self.folders[name], arcname=".")
        tree = ContextTree(self.tmp)
        tree.unpack(source(buffer.getvalue()))
        return tree

    async def credentials(self, host: str) -> Credentials:
        return Credentials()


@dataclass
class Seen:
    """What a build told of itself."""

    steps: dict[str, Vertex] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def vertex(self, vertex: Vertex) -> None:
        self.steps[vertex.name] = vertex

    def status(self, *what: object) -> None:
        """Pass over how far it is."""

    log = status

    def warning(self, notice: Notice) -> None:
        self.notices.append(notice)

    def made(self) -> list[str]:
        """Steps that were carried out."""
        return [name.partition("] ")[2] for name, each in self.steps.items() if _is_step(name) and not each.cached]


def _is_step(name: str) -> bool:
    return not name.startswith("[internal]") and "FROM" not in name


@dataclass
class Bench:
    """An image store with busybox in it, and a folder to build."""

    shelf: Shelf
    folder: Path

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    @asynccontextmanager
    async def built(
        self,
        dockerfile: str,
        attributes: Mapping[str, str] | None = None,
        *,
        folders: Mapping[str, Path] | None = None,
        inputs: Mapping[str, Built] | None = None,
    ) -> AsyncIterator[tuple[Built, Seen]]:
        self.write({"Dockerfile": dockerfile})
        client = Client({"context": self.folder, "dockerfile": self.folder, **(folders or {})}, self.folder.parent)
        site = Site(self.shelf.images, self.shelf.layers, NoCommands(), self.shelf.cache)  # type: ignore[arg-type]
        seen = Seen()
        async with solving(site, Request.of(attributes or {}), client, seen, inputs) as built:  # type: ignore[arg-type]
            yield built, seen

    async def files(self, built: Built, *below: str) -> dict[str, tuple[int, int, str]]:
        """Mode, user and content of files of the result."""

        def look(root: Path) -> dict[str, tuple[int, int, str]]:
            found = {}
            for top in below:
                for path in sorted((root / top).rglob("*")):
                    status = path.lstat()
                    text = path.read_text(errors="replace") if path.is_file() else "/"
                    found[str(path.relative_to(root))] = (status.st_mode & 0o7777, status.st_uid, text)
            return found

        return await self.shelf.layers.read(built.chain, look)


@asynccontextmanager
async def bench(root: Path) -> AsyncIterator[Bench]:
    folder = root / "context"
    folder.mkdir(exist_ok=True)
    async with shelf(root / "data") as opened:
        if opened.images.find("busybox") is None:
            await asyncio.to_thread(opened.load, busybox_archive().read_bytes())
        yield Bench(opened, folder)


async def test_a_step_is_made_again_when_what_it_is_made_of_has_changed(tmp_path: Path) -> None:
    text = "FROM busybox\nCOPY a /a\nCOPY b /b\nWORKDIR /w\nLABEL x=1\n"
    async with bench(tmp_path) as own:
        own.write({"a": "1", "b": "1"})
        async with own.built(text) as (first, seen):
            assert seen.made() == ["COPY a /a", "COPY b /b", "WORKDIR /w"]
        async with own.built(text.replace("x=1", "x=2")) as (second, seen):
            assert seen.made() == []
            assert second.chain == first.chain
            assert second.document["created"] == first.document["created"]
        own.write({"b": "2", "unused": "1"})
        async with own.built(text) as (_, seen):
            assert seen.made() == ["COPY b /b", "WORKDIR /w"]
        async with own.built(text, {"no-cache": ""}) as (_, seen):
            assert seen.made() == ["COPY a /a", "COPY b /b", "WORKDIR /w"]
        stages = f"{text.replace('busybox', 'busybox AS one')}FROM busybox AS two\nCOPY --from=one /a /a\n"
        async with own.built(stages, {"no-cache": "two"}) as (_, seen):
            assert seen.made() == ["COPY --from=one /a /a"]


async def test_what_was_made_outlives_the_daemon_and_goes_when_it_is_pruned(tmp_path: Path) -> None:
    text = "FROM busybox\nCOPY a /a\n"
    async with bench(tmp_path) as own:
        own.write({"a": "1"})
        async with own.built(text):
            pass
        assert [image.tags for image in own.shelf.images.all()] == [("docker.io/library/busybox:latest",)]
    async with bench(tmp_path) as own:
        async with own.built(text) as (built, seen):
            assert seen.made() == []
            ids, freed = own.shelf.cache.prune([record["ID"] for record in own.shelf.cache.records()])
            assert (len(ids), freed) == (1, 0), "the build holds its layer"
            assert (await own.files(built, ""))["a"][2] == "1"
        assert own.shelf.cache.records() == []
        assert_whole(own.shelf)


async def test_a_linked_copy_is_not_made_again_when_what_is_below_changes(tmp_path: Path) -> None:
    text = "FROM busybox\nCOPY a /a\nCOPY --link d /new/d\n"
    async with bench(tmp_path) as own:
        own.write({"a": "1", "d/x": "x"})
        async with own.built(text):
            pass
        own.write({"a": "2"})
        async with own.built(text) as (built, seen):
            assert seen.made() == ["COPY a /a"]
            files = await own.files(built, "new")
        assert files == {"new/d": (0o755, 0, "/"), "new/d/x": (0o644, 0, "x")}
        async with own.built("FROM busybox\nCOPY --link a /tmp/a\n") as (built, _):
            mode = await own.shelf.layers.read(built.chain, lambda root: (root / "tmp").stat().st_mode & 0o7777)
        assert mode == 0o1777, "a folder that is there stays as it is"


async def test_copies_choose_names_and_modes(tmp_path: Path) -> None:
    text = (
        "FROM scratch\nCOPY --parents d/e/x ./d/./y* /p/\nCOPY --exclude=*.md --exclude=e d /x/\n"
        "COPY --chmod=u=rwX,go=r d /m/\nCOPY --chmod=0600 --chown=3 <<one /h/\nhello\none\n"
    )
    async with bench(tmp_path) as own:
        own.write({"d/e/x": "x", "d/y": "y", "d/z.md": "z"})
        async with own.built(text) as (built, _):
            files = await own.files(built, "p", "x", "m", "h")
    assert {name: text for name, (_, _, text) in files.items() if text != "/"} == {
        "p/d/e/x": "x", "p/y": "y", "x/y": "y", "m/e/x": "x", "m/y": "y", "m/z.md": "z", "h/one": "hello\n",
    }  # fmt: skip
    assert (files["m/e"][0], files["m/y"][0], files["h/one"][:2]) == (0o744, 0o644, (0o600, 3))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by http and give its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_downloads_are_what_their_checksum_says(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file").write_text("fetched")
    digest = hashlib.sha256(b"fetched").hexdigest()
    async with bench(tmp_path) as own:
        with served(folder) as address:
            async with own.built(f"FROM scratch\nADD --checksum=sha256:{digest} {address}/file /f/\n") as (built, _):
                assert await own.files(built, "f") == {"f/file": (0o600, 0, "fetched")}
            wrong = "0" * 64
            with pytest.raises(BuildError, match=f"digest mismatch sha256:{digest}: sha256:{wrong}") as caught:
                async with own.built(f"FROM scratch\nADD --checksum=sha256:{wrong} {address}/file /f/\n"):
                    pass
        assert caught.value.source is not None
        assert caught.value.source.ranges == ((2, 2),)


async def test_names_stand_for_other_folders_and_results(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "o").write_text("other")
    (other / "left").write_text("left out")
    (other / ".dockerignore").write_text("left\n")
    text = "FROM base\nCOPY --from=files / /f/\nCOPY --from=base /a /again\n"
    async with bench(tmp_path) as own:
        own.write({"a": "1"})
        async with own.built("FROM scratch\nCOPY a /a\nENV FROM=base\n") as (base, _):
            attributes = {"context:files": "local:files", "context:base": "input:0-base"}
            async with own.built(text, attributes, folders={"files": other}, inputs={"0-base": base}) as (built, _):
                assert (await own.files(built, "f"))["f/o"][2] == "other"
                assert "f/left" not in await own.files(built, "f")
                assert (await own.files(built, ""))["again"][2] == "1"
                assert "FROM=base" in built.document["config"]["Env"]
        async with own.built("FROM anything\n", {"context:anything": "docker-image://busybox"}) as (built, _):
            assert (await own.files(built, "bin"))["bin/sh"]


async def test_a_dockerfile_has_a_list_of_its_own_of_what_is_left_out(tmp_path: Path) -> None:
    async with bench(tmp_path) as own:
        own.write({"a": "1", "b": "1", ".dockerignore": "a\n", "Dockerfile.dockerignore": "b\n"})
        async with own.built("FROM scratch\nCOPY . /c/\n") as (built, _):
            files = await own.files(built, "c")
    assert "c/a" in files
    assert "c/b" not in files


async def test_the_same_time_is_said_of_everything_when_it_is_given(tmp_path: Path) -> None:
    async with bench(tmp_path) as own:
        own.write({"a": "1"})
        given = {"build-arg:SOURCE_DATE_EPOCH": "0"}
        async with own.built("FROM scratch\nCOPY a /\nLABEL a=b\n", given) as (built, _):
            times = {row["created"] for row in built.document["history"]} | {built.document["created"]}
    assert times == {"1970-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("text", "said", "step"),
    [
        ("FROM busybox\nCOPY nope /x", 'failed to calculate checksum of ref build context: "/nope": not found', True),
        ("FROM busybox\nCOPY --chmod=u+q Dockerfile /x", "invalid chmod parameter: 'u+q'", True),
        ("FROM busybox\nADD --checksum=sha256:12 http://x/y /x", "invalid checksum digest length", False),
        ("# syntax=other/frontend:1\nFROM busybox", "frontend image other/frontend:1 (# syntax=) cannot be run", False),
        ("FROM nowhere.invalid/image", "nowhere.invalid/image: failed to resolve source metadata", True),
    ],
)
async def test_what_fails_says_where_and_leaves_nothing(tmp_path: Path, text: str, said: str, step: bool) -> None:
    async with bench(tmp_path) as own:
        with pytest.raises(BuildError) as caught:
            async with own.built(text):
                pass
        assert said in str(caught.value)
        assert caught.value.source is not None
        assert caught.value.source.ranges[0][0] == (1 if text.startswith("#") or "nowhere" in text else 2)
        assert bool(caught.value.vertex) == step
        assert_whole(own.shelf)


async def test_empty_lines_in_a_command_are_warned_of(tmp_path: Path) -> None:
    async with bench(tmp_path) as own, own.built("FROM busybox\nLABEL a=1 \\\n\n b=2\n") as (built, seen):
        assert [(each.short, each.source.ranges if each.source else ()) for each in seen.notices] == [
            ("Empty continuation line found in: LABEL a=1  b=2", ((2, 4),))
        ]
        assert built.document["config"]["Labels"] == {"a": "1", "b": "2"}
