"""Archives become images, images become root file systems, and what containers wrote can be told apart."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from moorage_guest.images import names

from tests.support.images import BUSYBOX_IMAGE, busybox_archive, docker_archive, layer_tar
from tests.support.imagestore import Shelf, image_api, serving, shelf

pytestmark = pytest.mark.root


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path / "data") as found:
        yield found


async def test_busybox_is_loaded_and_mounted(opened: Shelf) -> None:
    (image,) = opened.load(busybox_archive().read_bytes())
    assert opened.images.resolve("busybox").id == image.id == opened.images.resolve(image.id[7:20]).id
    assert image.config["Cmd"] == ["sh"]
    await opened.layers.create_rw("c1", image.id)
    root = await opened.layers.mount("c1")
    assert await opened.layers.mount("c1") == root
    assert (root / "bin/busybox").stat().st_mode & 0o777 == 0o755
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert (root / "etc/hosts").read_bytes() == b""
    assert (root / "etc/mtab").readlink() == Path("/proc/mounts")
    assert await opened.layers.changes("c1") == []
    (root / "etc/new").write_text("x" * 1000)
    (root / "etc/passwd").unlink()
    (root / "etc/group").chmod(0o600)
    assert await opened.layers.changes("c1") == [("/etc", 0), ("/etc/group", 0), ("/etc/new", 1), ("/etc/passwd", 2)]
    rw, total = await opened.layers.sizes("c1")
    assert 1000 <= rw < 2000
    assert total == rw + image.size
    await opened.layers.remove_rw("c1")
    assert not root.exists()


async def test_whiteouts_and_opaque_folders_hide_what_is_below(opened: Shelf) -> None:
    below = layer_tar({"a": None, "a/one": b"1", "a/two": b"2", "b": None, "b/three": b"3", "c": b"c"})
    above = layer_tar({"a": None, "a/.wh.one": b"", "b": None, "b/.wh..wh..opq": b"", "b/four": b"4", ".wh.c": b""})
    (image,) = opened.load(docker_archive([below, above], tags=["t:1"], compress=True))
    await opened.layers.create_rw("c2", image.id)
    root = await opened.layers.mount("c2")
    assert sorted(path.name for path in (root / "a").iterdir()) == ["two"]
    assert sorted(path.name for path in (root / "b").iterdir()) == ["four"]
    assert not (root / "c").exists()


async def test_a_commit_holds_what_the_container_changed(opened: Shelf) -> None:
    (image,) = opened.load(docker_archive([layer_tar({"d": None, "d/old": b"old", "keep": b"k"})], tags=["t:1"]))
    await opened.layers.create_rw("c3", image.id)
    root = await opened.layers.mount("c3")
    (root / "d/old").unlink()
    (root / "d/new").write_bytes(b"new")
    made = opened.images.get(await opened.layers.commit("c3", config={"Cmd": ["x"]}, reference="mine", comment="hi"))
    assert made.repo_tags == ["mine:latest"]
    assert made.parent == image.id
    assert len(made.chain) == 2
    await opened.layers.create_rw("c4", made.id)
    again = await opened.layers.mount("c4")
    assert (again / "d/new").read_bytes() == b"new"
    assert not (again / "d/old").exists()
    assert (again / "keep").exists()


async def test_images_and_layers_are_there_after_a_restart_and_leftovers_are_not(tmp_path: Path) -> None:
    async with shelf(tmp_path / "data") as first:
        (image,) = first.load(busybox_archive().read_bytes())
        await first.layers.create_rw("kept", image.id)
        await first.layers.create_rw("lost", image.id)
        blob = first.images.content.add(b"nobody needs this")
        (first.data_root.layers / "stray").mkdir()
    async with shelf(tmp_path / "data", live=("kept",)) as second:
        assert second.images.resolve(BUSYBOX_IMAGE).id == image.id
        assert not second.images.content.has(blob)
        assert not (second.data_root.layers / "stray").exists()
        assert not second.data_root.mount("lost").exists()
        root = await second.layers.mount("kept")
        assert (root / "bin/sh").is_symlink()


async def test_a_name_given_again_is_noted_without_a_write_and_kept(tmp_path: Path) -> None:
    async with shelf(tmp_path / "data") as opened:
        (image,) = opened.load(busybox_archive().read_bytes())
        first = opened.images.get(image.id).last_tagged
        record = opened.store.get("image", image.id)
        opened.images.tag(image, names.parse(image.tags[0]))
        again = opened.images.get(image.id)
        assert again.last_tagged > first
        assert opened.store.get("image", image.id) == record
        assert again.tags == image.tags
    async with shelf(tmp_path / "data") as opened:
        assert opened.images.get(image.id).last_tagged == again.last_tagged


async def test_the_cli_loads_lists_tags_saves_and_removes(opened: Shelf, tmp_path: Path) -> None:
    async with serving(opened, image_api(opened)):
        done = await opened.docker("load", "-i", str(busybox_archive()))
        assert done.stdout == b"Loaded image: busybox:latest\n", done
        assert (await opened.docker("tag", "busybox", "localhost:5000/b/b:v1")).returncode == 0
        listed = await opened.docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}")
        assert sorted(line.split()[0] for line in listed.stdout.decode().splitlines()) == [
            "busybox:latest",
            "localhost:5000/b/b:v1",
        ]
        saved = tmp_path / "saved.tar"
        assert (await opened.docker("save", "-o", str(saved), "busybox", "localhost:5000/b/b:v1")).returncode == 0
        assert b"layer 0" in (await opened.docker("history", "busybox", "--no-trunc")).stdout
        removed = await opened.docker("rmi", "busybox", "localhost:5000/b/b:v1")
        assert b"Untagged: busybox:latest" in removed.stdout, removed
        assert b"Deleted: sha256:" in removed.stdout
        assert opened.files() == set()
        again = await opened.docker("load", "-i", str(saved))
        assert sorted(again.stdout.splitlines()) == [
            b"Loaded image: busybox:latest",
            b"Loaded image: localhost:5000/b/b:v1",
        ], again
        missing = await opened.docker("rmi", "nothing")
        assert b"No such image: nothing:latest" in missing.stderr
