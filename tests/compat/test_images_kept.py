"""Which images prune leaves, what is said of their sizes and digests, and archives of images by id."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.support.images import docker_archive, layer_tar
from tests.support.moored import Moored
from tests.support.registry import registry

pytestmark = pytest.mark.root

SHARED = layer_tar({"shared": b"s" * 40_000})


def load(moored: Moored, folder: Path, tag: str, **labels: str) -> str:
    """Load an image with a layer of its own on top of the shared one; returns its id."""
    own = layer_tar({"own": tag.encode() * 1000})
    path = folder / "image.tar"
    path.write_bytes(docker_archive([SHARED, own], tags=[tag], config={"Labels": labels}))
    moored.docker("load", "-q", "-i", str(path))
    return moored.docker("images", "-q", "--no-trunc", tag)


def tags(moored: Moored) -> set[str]:
    return set(moored.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()) - {"busybox:latest"}


def prune(moored: Moored, *filters: str) -> None:
    moored.docker("image", "prune", "-af", *(word for each in filters for word in ("--filter", each)))


def test_prune_takes_what_its_filters_choose_and_no_image_in_use(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    moored.docker("create", "--name", "user", "busybox")
    for tag, labels in (
        ("plain:1", {}),
        ("keep:1", {"keep": "yes"}),
        ("old:1", {"age": "old"}),
        ("new:1", {"age": "new"}),
    ):
        load(moored, tmp_path, tag, **labels)
    everything = {"plain:1", "keep:1", "old:1", "new:1"}
    moored.docker("image", "prune", "-f")
    assert tags(moored) == everything
    prune(moored, "until=2001-01-01")
    assert tags(moored) == everything
    prune(moored, "label=age=old", "label=nothing")
    assert tags(moored) == everything
    prune(moored, "label=age=old")
    assert tags(moored) == everything - {"old:1"}
    prune(moored, "label!=keep", "label!=age")
    assert tags(moored) == {"keep:1", "new:1"}
    prune(moored, "until=1h", "label=age")
    assert tags(moored) == {"keep:1"}
    prune(moored)
    assert tags(moored) == set()
    assert moored.docker("images", "-q", "busybox") != ""
    moored.docker("rm", "user")
    prune(moored)
    usage = moored.api.get("/system/df").json
    assert (usage["Images"], usage["LayersSize"]) == ([], 0)
    assert "invalid filter" in moored.docker_run("image", "prune", "-f", "--filter", "what=x").stderr


def test_layers_that_images_share_are_kept_once_and_counted_so(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    before = moored.api.get("/system/df").json["LayersSize"]
    for tag in ("one:1", "two:1"):
        load(moored, tmp_path, tag)
    assert moored.api.get("/system/df").json["LayersSize"] == before + 40_000 + 5000 + 5000
    found = {each["RepoTags"][0]: each for each in moored.api.get("/images/json", **{"shared-size": "1"}).json}
    assert (found["one:1"]["Size"], found["one:1"]["SharedSize"]) == (45_000, 40_000)
    assert found["busybox:latest"]["SharedSize"] == 0
    moored.docker("rmi", "two:1")
    alone = {each["RepoTags"][0]: each for each in moored.api.get("/images/json", **{"shared-size": "1"}).json}
    assert alone["one:1"]["SharedSize"] == 0
    assert moored.api.get("/system/df").json["LayersSize"] == before + 45_000
    sizes = [each["Size"] for each in moored.api.call("GET", "/images/one:1/history", check=False).json]
    assert sizes == [5000, 40_000]


def test_digests_are_listed_and_images_go_by_them(moored: Moored, tmp_path: Path) -> None:
    with registry(tmp_path / "registry", sandbox_command=moored.sandbox.command()) as plain:
        name = f"{plain.host}/sea/boat:1"
        load(moored, tmp_path, name)
        assert "<none>" in moored.docker("images", "--digests", name)
        pushed = moored.docker("push", name)
        digest = moored.docker("images", "--digests", "--format", "{{.Digest}}", name.removesuffix(":1"))
        assert digest in pushed
        by_digest = f"{plain.host}/sea/boat@{digest}"
        assert moored.docker("images", "-q", by_digest) == moored.docker("images", "-q", name)
        assert f"Untagged: {name}" in moored.docker("rmi", name)
        assert moored.docker_run("image", "inspect", by_digest).returncode != 0
        moored.docker("pull", "-q", by_digest)
        assert moored.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--digests", by_digest).endswith(
            "<none>"
        )
        assert f"Untagged: {by_digest}" in moored.docker("rmi", by_digest)


def test_several_images_are_saved_by_name_and_id_and_imported_with_changes(moored: Moored, tmp_path: Path) -> None:
    first, second = load(moored, tmp_path, "first:1"), load(moored, tmp_path, "second:1")
    moored.docker("tag", "first:1", "first:2")
    archive = tmp_path / "saved.tar"
    moored.docker("save", "-o", str(archive), "first:1", "first:2", second[7:19])
    with tarfile.open(archive) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        manifest = json.load(file)
        names = tar.getnames()
    assert sorted(sorted(each["RepoTags"] or []) for each in manifest) == [[], ["first:1", "first:2"]]
    assert len(set(names)) == len(names), "what images share is in the archive once"
    moored.docker("rmi", "first:1", "first:2", "second:1")
    loaded = moored.docker("load", "-i", str(archive))
    assert "Loaded image: first:1" in loaded
    assert f"Loaded image ID: {second}" in loaded
    assert moored.docker("images", "-q", "--no-trunc", "first:2") == first
    (tmp_path / "root.tar").write_bytes(layer_tar({"file": b"x"}))
    changes = ["CMD cat /file", "ENV A=b", "EXPOSE 80", "LABEL l=m"]
    arguments = [word for each in changes for word in ("-c", each)]
    moored.docker("import", "-m", "by hand", *arguments, str(tmp_path / "root.tar"), "imported:1")
    made = json.loads(moored.docker("image", "inspect", "imported:1"))[0]
    assert made["Config"]["Cmd"] == ["/bin/sh", "-c", "cat /file"]
    assert made["Config"]["Env"] == ["A=b"]
    assert list(made["Config"]["ExposedPorts"]) == ["80/tcp"]
    assert made["Config"]["Labels"] == {"l": "m"}
    assert made["Comment"] == "by hand"
    moored.docker("rmi", "imported:1", "first:1", "first:2", second)


def test_a_load_keeps_parents_and_times_and_tells_of_a_name_that_moves(moored: Moored, tmp_path: Path) -> None:
    ids = []
    for number, base in enumerate(("busybox", "made:0")):
        moored.docker("run", "--name", "made", "--network", "none", base, "touch", f"/{number}")
        ids.append(moored.docker("commit", "made", f"made:{number}"))
        moored.docker("rm", "made")
    before = json.loads(moored.docker("image", "inspect", "made:0", "made:1"))
    moored.docker("save", "-o", str(tmp_path / "both.tar"), "made:1", "made:0")
    moored.docker("load", "-i", str(tmp_path / "both.tar"))
    assert json.loads(moored.docker("image", "inspect", "made:0", "made:1")) == before
    moored.docker("rmi", "made:1", "made:0")
    moored.docker("tag", "busybox", "made:1")
    out = moored.docker("load", "-i", str(tmp_path / "both.tar"))
    assert "The image made:1 already exists, renaming the old one with ID sha256:" in out
    after = json.loads(moored.docker("image", "inspect", *ids))
    assert [each["Parent"] for each in after] == ["", ids[0]]
    moored.docker("rmi", "made:1", "made:0")
