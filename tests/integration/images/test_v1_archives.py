"""Archives without a manifest, as docker save wrote them before 1.10, load as dockerd 26.1.5 loads them."""

import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.errors import InvalidParameter

from tests.support.images import layer_tar
from tests.support.imagestore import Shelf, shelf

pytestmark = pytest.mark.root

BASE, TOP = "a" * 64, "b" * 64
CONFIG = {
    "architecture": "amd64", "os": "linux", "created": "2015-01-01T00:00:00Z", "config": {"Cmd": ["/x"], "Env": ["A=1"]},
    "docker_version": "1.9",
}  # fmt: skip

#: What dockerd made of this very archive.
IDS = {
    "reg.example/x:latest": "sha256:18d131d9d13cab36d695ed0ede533cfeb02eba3a9031fd197ca0ff613dc79c0a",
    "docker.io/library/old:1": "sha256:64ee8ab7327fc90dc777a44e418aa24e9f26645c6e49d7bbb2d54b3648c4234f",
}


def one(old_id: str, letter: str, **more: Any) -> dict[str, bytes]:
    config = {"id": old_id, **more, **CONFIG, "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) ADD {letter}"]}}
    return {
        f"{old_id}/VERSION": b"1.0",
        f"{old_id}/json": json.dumps(config).encode(),
        f"{old_id}/layer.tar": layer_tar({letter: f"{letter}\n".encode()}),
    }


def files() -> dict[str, bytes]:
    names = {"old": {"1": TOP}, "reg.example/x": {"latest": BASE}}
    return {**one(BASE, "x"), **one(TOP, "y", parent=BASE), "repositories": json.dumps(names).encode()}


def archive(content: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path / "data") as found:
        yield found


async def test_images_get_the_ids_names_and_history_that_dockerd_gives_them(opened: Shelf) -> None:
    images = opened.load(archive(files()))
    assert {tag: image.id for image in images for tag in image.tags} == IDS
    base, top = images
    assert top.parent == base.id
    assert top.config == CONFIG["config"]
    assert [step["created_by"] for step in top.document["history"]] == [
        "/bin/sh -c #(nop) ADD x", "/bin/sh -c #(nop) ADD y",
    ]  # fmt: skip
    await opened.layers.create_rw("c1", top.id)
    root = await opened.layers.mount("c1")
    assert ((root / "x").read_text(), (root / "y").read_text()) == ("x\n", "y\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repositories": None}, '"repositories" is missing'),
        ({"repositories": b'{"old": {"1": "c"}}'}, "no image has the id c"),
        ({"repositories": b'{"old": 1}'}, "names with tags are expected"),
        ({"repositories": b'{"O LD": {"1": "c"}}'}, "invalid reference format"),
        ({f"{TOP}/layer.tar": None}, 'layer.tar" is missing'),
        ({f"{BASE}/json": None}, 'json" is missing'),
        ({f"{TOP}/json": b"[]"}, "an object is expected"),
        ({f"{BASE}/json": json.dumps({"parent": TOP}).encode()}, "too many images lie on top of each other"),
        ({f"{TOP}/layer.tar": b"no tar" * 200}, "tar"),
    ],
)
async def test_what_is_damaged_is_refused_whole(
    opened: Shelf, change: Mapping[str, bytes | None], message: str
) -> None:
    before = opened.files()
    content = {name: data for name, data in {**files(), **change}.items() if data is not None}
    with pytest.raises(InvalidParameter, match=message):
        opened.load(archive(content))
    assert opened.images.all() == []
    assert opened.files() == before
