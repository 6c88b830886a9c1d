"""A daemon that is killed in the middle, or a machine that loses power, leaves nothing that the next start does not find."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.images import busybox_archive, docker_archive, layer_tar
from tests.support.imagestore import assert_whole, shelf

pytestmark = pytest.mark.root

#: Loads an archive again and again until it is killed, telling of every image that is complete.
_LOADER = """
import asyncio, sys
from pathlib import Path
from tests.support.imagestore import shelf

async def main() -> None:
    async with shelf(Path(sys.argv[1])) as opened:
        print("ready", flush=True)
        for number, archive in enumerate(sys.argv[2:]):
            opened.load(Path(archive).read_bytes())
            print("loaded", number, flush=True)
        print("done", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def archives(folder: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        noise = random.Random(number).randbytes(300_000)
        layers = [layer_tar({f"{n}/file{i}": noise[i : i + 3000] for i in range(200)}) for n in range(3)]
        path = folder / f"{number}.tar"
        path.write_bytes(docker_archive(layers, tags=[f"i{number}:1"], compress=number % 2 == 1))
        made.append(path)
    return made


def spawn(data: Path, files: list[Path]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_LOADER), str(data), *map(str, files)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip


@pytest.mark.parametrize("moment", range(6))
async def test_sigkill_while_loading_leaves_whole_images_or_nothing(tmp_path: Path, moment: int) -> None:
    data = tmp_path / "data"
    process = spawn(data, archives(tmp_path, 6))
    assert process.stdout is not None
    with process.stdout:
        while (line := process.stdout.readline()) and line.split()[:2] != ["loaded", str(moment % 5)]:
            pass
        await asyncio.sleep(0.01 * moment)  # a different instant of the next load each time
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    async with shelf(data) as opened:
        assert_whole(opened)
        assert {image.repo_tags[0] for image in opened.images.all()} >= {f"i{n}:1" for n in range(moment % 5 + 1)}
        assert opened.load(busybox_archive().read_bytes())


async def test_what_a_power_cut_spoilt_is_unpacked_again_or_dropped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with shelf(data) as opened:
        (whole,) = opened.load(docker_archive([layer_tar({"a": b"whole"})], tags=["whole:1"]))
        (spoilt,) = opened.load(docker_archive([layer_tar({"a": b"spoilt"})], tags=["spoilt:1"]))
        # As after a cut: the machine has booted since, files are empty, and a blob has lost its content.
        for key, record in opened.store.all("layer").items():
            opened.store.put("layer", key, {**record, "boot": "another"})
            (data / "layers" / record["folder"] / "diff" / "a").write_bytes(b"")
        opened.images.content.path(spoilt.layers[0].digest).write_bytes(b"\0" * 10)
    async with shelf(data) as opened:
        assert [image.id for image in opened.images.all()] == [whole.id]
        assert_whole(opened)
        await opened.layers.create_rw("c", whole.id)
        assert (await opened.layers.mount("c") / "a").read_bytes() == b"whole"


async def test_new_layers_are_marked_until_they_are_on_disk(tmp_path: Path) -> None:
    async with shelf(tmp_path / "data") as opened:
        opened.load(docker_archive([layer_tar({"a": b"1"})], tags=["a:1"]))
        assert all(layer.boot for layer in opened.images.layer_store.all())
        await asyncio.to_thread(opened.images.layer_store.make_durable)
        assert not any(layer.boot for layer in opened.images.layer_store.all())
        assert not any(record["boot"] for record in opened.store.all("layer").values())


async def test_a_damaged_record_costs_its_image_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with shelf(data) as opened:
        opened.load(docker_archive([layer_tar({"a": b"1"})], tags=["a:1"]))
        (other,) = opened.load(docker_archive([layer_tar({"a": b"2"})], tags=["b:1"]))
        opened.store.put("image", other.id, {"version": 1, "nonsense": True})
    async with shelf(data) as opened:
        assert [image.repo_tags for image in opened.images.all()] == [["a:1"]]
        assert_whole(opened)


@pytest.mark.parametrize("by_id", [False, True])
async def test_an_image_whose_names_are_gone_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_id: bool
) -> None:
    data = tmp_path / "data"
    async with shelf(data) as opened:
        (image,) = opened.load(docker_archive([layer_tar({"a": b"1"})], tags=["a:1"]))

        def killed(*_: object) -> None:
            raise KeyboardInterrupt("killed between the names and the image")

        monkeypatch.setattr(opened.images, "_delete", killed)
        with pytest.raises(KeyboardInterrupt):
            opened.images._remove(image.id if by_id else "a:1", False, True)
    async with shelf(data) as opened:
        assert opened.images.all() == []
        assert opened.files() == set()


async def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(small)], check=True, timeout=60)
    try:
        async with shelf(small / "data") as opened:
            with pytest.raises(OSError, match="No space left"):
                opened.load(docker_archive([layer_tar({"big": bytes(60 << 20)})], tags=["big:1"]))
            assert opened.files() == set()
            assert opened.load(docker_archive([layer_tar({"small": b"1"})], tags=["small:1"]))
    finally:
        subprocess.run(["umount", str(small)], check=True, timeout=60)


async def test_the_layout_can_be_read_by_other_tools(tmp_path: Path) -> None:
    async with shelf(tmp_path / "data") as opened:
        opened.load(busybox_archive().read_bytes())
        index = json.loads((opened.data_root.images / "index.json").read_text())
        assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "docker.io/library/busybox:latest"
        done = subprocess.run(
            ["skopeo", "inspect", "--raw", f"oci:{opened.data_root.images}:latest"], capture_output=True, timeout=60
        )
        assert done.returncode == 0, done
        assert json.loads(done.stdout)["layers"]
