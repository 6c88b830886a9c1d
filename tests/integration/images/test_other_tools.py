"""Archives of Debian's skopeo, buildah and umoci load here, and ours load there."""

import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.images import busybox_archive
from tests.support.imagestore import Shelf, image_api, serving, shelf

pytestmark = pytest.mark.root

POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path / "data") as found:
        yield found


class Tools:
    """The tools with all their state below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "policy.json").write_text(POLICY)

    def run(self, *argv: str) -> str:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=self.folder)
        assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def skopeo(self, source: str, target: str) -> None:
        self.run("skopeo", "--policy", "policy.json", "--tmpdir", str(self.folder), "copy", "-q", source, target)

    def buildah(self, *argv: str) -> str:
        places = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "runroot")]
        if argv[0] in ("from", "push", "pull"):
            argv = (argv[0], "--signature-policy", str(self.folder / "policy.json"), *argv[1:])
        return self.run("buildah", *places, "--storage-driver", "vfs", *argv)

    def pack(self, layout: Path) -> bytes:
        archive = self.folder / "layout.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(layout.rglob("*")):
                tar.add(path, path.relative_to(layout), recursive=False)
        return archive.read_bytes()


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    folder = tmp_path / "tools"
    folder.mkdir()
    return Tools(folder)


async def saved(opened: Shelf, target: Path, *names: str) -> Path:
    async with serving(opened, image_api(opened)):
        done = await opened.docker("save", "-o", str(target), *names)
        assert done.returncode == 0, done
    return target


async def test_archives_of_skopeo_load(opened: Shelf, tools: Tools) -> None:
    busybox = f"docker-archive:{busybox_archive()}"
    tools.skopeo(busybox, "oci-archive:oci.tar:example.org/bb:one")
    tools.skopeo(busybox, "docker-archive:docker.tar:example.org/bb:two")
    (one,) = opened.load((tools.folder / "oci.tar").read_bytes())
    (two,) = opened.load((tools.folder / "docker.tar").read_bytes())
    assert one.repo_tags == ["example.org/bb:one"]
    assert "example.org/bb:two" in two.repo_tags
    assert one.chain == two.chain


async def test_our_archive_goes_through_skopeo_umoci_and_back(opened: Shelf, tools: Tools, tmp_path: Path) -> None:
    (image,) = opened.load(busybox_archive().read_bytes())
    archive = await saved(opened, tmp_path / "ours.tar", "busybox")
    tools.skopeo(f"docker-archive:{archive}", "oci:layout:v1")
    tools.skopeo(f"oci-archive:{archive}", "oci:other:v1")
    tools.run("umoci", "unpack", "--image", "layout:v1", "bundle")
    assert (tools.folder / "bundle/rootfs/bin/busybox").exists()
    (tools.folder / "bundle/rootfs/etc/added").write_text("by umoci")
    tools.run("umoci", "repack", "--image", "layout:v2", "bundle")
    loaded = opened.load(tools.pack(tools.folder / "layout"))
    assert len(loaded) == 2
    changed = next(each for each in loaded if len(each.chain) > len(image.chain))
    await opened.layers.create_rw("c", changed.id)
    root = await opened.layers.mount("c")
    assert (root / "etc/added").read_text() == "by umoci"
    assert (root / "bin/sh").is_symlink()


async def test_buildah_builds_on_ours_and_we_load_what_it_made(opened: Shelf, tools: Tools, tmp_path: Path) -> None:
    opened.load(busybox_archive().read_bytes())
    archive = await saved(opened, tmp_path / "ours.tar", "busybox")
    container = tools.buildah("from", f"docker-archive:{archive}")
    (tools.folder / "hello").write_text("hello")
    tools.buildah("copy", container, str(tools.folder / "hello"), "/hello")
    tools.buildah("config", "--label", "by=buildah", container)
    tools.buildah("commit", container, "localhost/made:1")
    tools.buildah("push", "localhost/made:1", f"oci-archive:{tools.folder}/made.tar:localhost/made:1")
    (made,) = opened.load((tools.folder / "made.tar").read_bytes())
    assert made.repo_tags == ["localhost/made:1"]
    assert made.config["Labels"]["by"] == "buildah"
    await opened.layers.create_rw("c", made.id)
    assert ((await opened.layers.mount("c")) / "hello").read_text() == "hello"
