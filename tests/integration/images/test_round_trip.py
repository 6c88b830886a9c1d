"""Whatever a file system can say about a file comes back after commit, save, load, push and pull."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.images import names
from moorage_guest.images.pulling import pull
from moorage_guest.images.pushing import push
from moorage_guest.images.registry import Credentials

from tests.support.images import docker_archive, layer_tar
from tests.support.imagestore import Shelf, image_api, serving, shelf
from tests.support.registry import Registry, registry

pytestmark = pytest.mark.root

LONG = "long-" * 20


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Registry]:
    with registry(tmp_path / "registry") as running:
        yield running


def change(root: Path) -> None:
    """Do to a root file system what containers do, and more."""
    (root / "emptied").joinpath("old").unlink()
    (root / "emptied").rmdir()
    (root / "emptied").mkdir()
    (root / "emptied" / "new").write_text("new")
    (root / "gone").unlink()
    (root / "turned").unlink()
    (root / "turned").mkdir(mode=0o750)
    (root / LONG / LONG / LONG).mkdir(parents=True)
    (root / LONG / LONG / LONG / "käse \udcff").write_text("deep")  # a name that is no UTF-8
    (root / "file").write_bytes(os.urandom(70_000))
    os.link(root / "file", root / "hard")
    os.link(root / "file", root / LONG / "harder")
    (root / "link").symlink_to("file")
    (root / "broken").symlink_to(f"/{LONG}/{LONG}/nowhere")
    (root / "suid").write_text("#!")
    os.chown(root / "suid", 1234, 4321)
    (root / "suid").chmod(0o6755)
    os.chown(root / "link", 77, 88, follow_symlinks=False)
    (root / "sticky").mkdir()
    os.chown(root / "sticky", 5, 2_000_000)
    (root / "sticky").chmod(0o3777)
    os.mkfifo(root / "fifo", 0o620)
    (root / "kept").chmod(0o400)
    os.setxattr(root / "file", "user.binary", bytes(range(256)))
    os.setxattr(root / "suid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(root / "sticky", "user.folder", b"yes")
    os.utime(root / "suid", (1_234_567_890, 1_234_567_890))
    os.utime(root / "sticky", (1, 1))


def description(root: Path) -> dict[str, Any]:
    """Everything about a tree that images keep; what every container has anyway is left out."""
    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)  # noqa: PTH118 -- bytes
            shown = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            if shown.partition("/")[0] in ("dev", "etc", "proc", "sys", ".dockerenv"):
                continue
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content: Any = (inodes.setdefault(status.st_ino, shown), file.read())
            else:
                content = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None  # noqa: PTH115 -- bytes
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if not key.startswith("trusted.overlay")
            }
            found[shown] = (
                oct(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime), content, attributes,
            )  # fmt: skip
    return found


async def described(opened: Shelf, image: str) -> dict[str, Any]:
    await opened.layers.create_rw("looked-at", opened.images.resolve(image).id)
    try:
        return description(await opened.layers.mount("looked-at"))
    finally:
        await opened.layers.remove_rw("looked-at")


async def test_everything_about_files_survives_every_way(tmp_path: Path, plain: Registry) -> None:
    base = layer_tar(
        [("emptied", None), ("emptied/old", b"old"), ("gone", b"gone"), ("turned", b"file"), ("kept", b"kept")]
    )
    name = f"{plain.host}/changed:1"
    async with shelf(tmp_path / "one") as opened, serving(opened, image_api(opened)):
        opened.load(docker_archive([base], tags=["base:1"]))
        await opened.layers.create_rw("c", opened.images.resolve("base:1").id)
        root = await opened.layers.mount("c")
        change(root)
        wanted = description(root)
        await opened.layers.commit("c", config={}, reference=name)
        await opened.layers.remove_rw("c")
        assert "emptied/old" not in wanted
        assert await described(opened, name) == wanted
        done = await opened.docker("save", "-o", str(tmp_path / "saved.tar"), opened.images.resolve(name).id)
        assert done.returncode == 0, done
        await push(opened.images, names.parse(name), lambda message: None, credentials=Credentials())
        image_id = opened.images.resolve(name).id
    async with shelf(tmp_path / "two") as opened:
        (loaded,) = opened.load((tmp_path / "saved.tar").read_bytes())
        assert (loaded.id, loaded.repo_tags) == (image_id, [])
        assert await described(opened, image_id) == wanted
    async with shelf(tmp_path / "three") as opened:
        await pull(opened.images, names.parse(name), lambda message: None, credentials=Credentials())
        assert await described(opened, name) == wanted
        assert opened.images.resolve(name).id == image_id
