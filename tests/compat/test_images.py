"""Images through the docker CLI, docker-py and the bare API, every reply checked against the specification."""

import io
import json
import tarfile
import time
from datetime import datetime
from pathlib import Path

import pytest
from docker.errors import APIError, ImageNotFound

from tests.support.images import busybox_layer, docker_archive, layer_tar
from tests.support.moored import Moored
from tests.support.openapi import Reply

pytestmark = pytest.mark.root


def names(moored: Moored, *filters: str) -> list[str]:
    arguments = [word for each in filters for word in ("--filter", each)]
    return sorted(moored.docker("images", "--format", "{{.Repository}}:{{.Tag}}", *arguments).splitlines())


def load(moored: Moored, archive: bytes) -> str:
    reply = moored.api.call("POST", "/images/load", body=archive, headers={"Content-Type": "application/x-tar"})
    assert reply.status == 200, reply
    return reply.body.decode()


def test_list_and_inspect_fit_the_specification(moored: Moored) -> None:
    (image,) = [each for each in moored.api.get("/images/json").json if "busybox:latest" in each["RepoTags"]]
    found = moored.api.get(f"/images/{image['Id']}/json").json
    assert found["Id"] == image["Id"]
    assert found["Config"]["Cmd"] == ["sh"]
    assert found["RootFS"]["Layers"][0].startswith("sha256:")
    assert found["GraphDriver"]["Name"] == "overlay2"
    assert moored.api.get("/images/busybox/history").json[0]["Id"] == image["Id"]
    assert moored.api.get("/images/nothing/json").status == 404
    assert moored.api.get("/images/nothing/json").json["message"] == "No such image: nothing:latest"
    # The specification has no 400 here; dockerd answers it all the same.
    assert moored.api.call("GET", "/images/json", query={"filters": {"what": ["x"]}}, check=False).status == 400
    shared = moored.api.get("/images/json", **{"shared-size": "1"}).json
    assert all(each["SharedSize"] >= 0 for each in shared)


def test_filters_choose_images(moored: Moored) -> None:
    for number, created in enumerate(("2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z", "2022-01-01T00:00:00Z")):
        load(
            moored,
            docker_archive(
                [layer_tar({f"f{number}": b"x"})], tags=[f"filter/i{number}:t"], config={"Labels": {"n": str(number)}},
                change_document=lambda document, created=created: document.update(created=created),  # type: ignore[misc]
            ),
        )  # fmt: skip
    every = ["filter/i0:t", "filter/i1:t", "filter/i2:t"]
    assert names(moored, "reference=filter/*") == every
    assert names(moored, "reference=filter/*:t", "label=n=1") == ["filter/i1:t"]
    assert names(moored, "label=n") == every
    assert names(moored, "before=filter/i1:t", "label=n") == ["filter/i0:t"]
    assert names(moored, "since=filter/i1:t", "label=n") == ["filter/i2:t"]
    assert names(moored, "until=2021-06-01T00:00:00Z", "label=n") == every[:2]
    assert names(moored, "dangling=true", "label=n") == []
    load(moored, docker_archive([layer_tar({"other": b"x"})], tags=["filter/i0:t"], config={"Labels": {"n": "9"}}))
    assert names(moored, "dangling=true", "label=n=0") == ["<none>:<none>"]
    out = moored.docker("image", "prune", "-f", "--filter", "label=n=0")
    assert "Deleted Images" in out
    assert names(moored, "dangling=true", "label=n=0") == []
    moored.docker("rmi", *every)


def test_a_removal_that_would_break_something_is_refused(moored: Moored) -> None:
    load(moored, docker_archive([busybox_layer(), layer_tar({"mine": b"x"})], tags=["used:1", "other/used:1"]))
    moored.docker("create", "--name", "user", "used:1", "sh")
    try:
        identity = moored.docker("images", "-q", "used:1")
        assert "image is referenced in multiple repositories" in moored.docker_run("rmi", identity).stderr
        moored.docker("rmi", "other/used:1")
        refused = moored.docker_run("rmi", "used:1").stderr
        assert "is using its referenced image" in refused
        assert "must be forced) - image is being used by stopped container" in moored.docker_run("rmi", identity).stderr
        moored.docker("start", "user", check=False)
    finally:
        moored.docker("rm", "-f", "user")
    moored.docker("rmi", "used:1")
    assert moored.docker("images", "-q", "used:1") == ""


def test_a_removed_image_leaves_the_containers_files_alone(moored: Moored) -> None:
    load(moored, docker_archive([busybox_layer(), layer_tar({"kept": b"kept"})], tags=["gone:1"]))
    moored.docker("create", "--name", "orphan", "--network", "none", "gone:1", "cat", "/kept")
    try:
        moored.docker("rmi", "-f", "gone:1")
        assert moored.docker("start", "-a", "orphan") == "kept"
    finally:
        moored.docker("rm", "-f", "orphan")


def test_import_makes_an_image_of_a_tar(moored: Moored, tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(busybox_layer())
    moored.docker(
        "import", "-m", "from tests", "-c", 'CMD ["cat", "/etc/group"]', "-c", "ENV A=b", str(archive), "im:1"
    )
    assert moored.docker("run", "--rm", "--network", "none", "im:1").startswith("root:x:0:")
    found = moored.api.get("/images/im:1/json").json
    assert found["Comment"] == "from tests"
    assert "A=b" in found["Config"]["Env"]
    refused = moored.docker_run("import", "-", "x:1", input="no tar at all")
    assert refused.returncode != 0
    assert moored.docker("images", "-q", "x:1") == ""
    assert "RUN is not a valid change command" in moored.docker_run("import", "-c", "RUN x", str(archive)).stderr


def test_commit_and_export_hold_what_a_container_wrote(moored: Moored, tmp_path: Path) -> None:
    moored.docker(
        "run", "--name", "writer", "--network", "none", "busybox", "sh", "-c", "echo new > /new; rm /etc/shadow"
    )
    try:
        assert moored.docker("diff", "writer").splitlines() == ["C /etc", "D /etc/shadow", "A /new"]
        moored.docker("commit", "-m", "note", "-a", "me", "-c", "CMD cat /new", "writer", "committed:1")
        assert moored.docker("run", "--rm", "--network", "none", "committed:1") == "new"
        assert (
            "No such file"
            in moored.docker_run("run", "--rm", "--network", "none", "committed:1", "cat", "/etc/shadow").stderr
        )
        history = moored.api.get("/images/committed:1/history").json
        assert history[0]["Comment"] == "note"
        moored.docker("export", "-o", str(tmp_path / "x.tar"), "writer")
        with tarfile.open(tmp_path / "x.tar") as tar:
            found = tar.getnames()
        assert "new" in found
        assert "bin/busybox" in found
        assert "etc/shadow" not in found
    finally:
        moored.docker("rm", "-f", "writer")
    moored.docker("rmi", "committed:1")


def test_events_and_disk_usage_tell_of_images(moored: Moored) -> None:
    begin = time.time()
    load(moored, docker_archive([layer_tar({"e": b"x" * 100_000})], tags=["event:1"]))
    moored.docker("tag", "event:1", "event:2")
    moored.docker("rmi", "event:1", "event:2")
    lines = moored.docker(
        "events",
        "--since",
        f"{begin:.3f}",
        "--until",
        f"{time.time() + 0.2:.3f}",
        "--filter",
        "type=image",
        "--format",
        "{{json .}}",
    )
    actions = [json.loads(line)["Action"] for line in lines.splitlines()]
    assert [each for each in actions if each != "create"] == ["load", "tag", "untag", "untag", "delete"]
    usage = moored.api.get("/system/df").json
    assert usage["LayersSize"] > 0
    assert all(each["SharedSize"] >= 0 and each["Containers"] >= 0 for each in usage["Images"])


def test_docker_py_handles_images(moored: Moored) -> None:
    with moored.client() as client:
        image = client.images.get("busybox")
        assert image.tag("py/tag", "v")
        assert "py/tag:v" in client.images.get("py/tag:v").tags
        saved = b"".join(image.save(named=True))
        (again,) = client.images.load(saved)
        assert again.id == image.id
        with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
            assert {"manifest.json", "index.json", "oci-layout"} <= set(tar.getnames())
        client.images.remove("py/tag:v")
        with pytest.raises(ImageNotFound):
            client.images.get("py/tag:v")
        with pytest.raises(APIError, match="must be lowercase"):
            client.images.pull("Uppercase")
        assert client.images.prune()["SpaceReclaimed"] >= 0


def test_several_images_are_saved_into_one_archive(moored: Moored, tmp_path: Path) -> None:
    load(moored, docker_archive([busybox_layer(), layer_tar({"second": b"2"})], tags=["second:1"]))
    archive = tmp_path / "both.tar"
    moored.docker("save", "-o", str(archive), "busybox", "second:1")
    moored.docker("rmi", "second:1")
    assert sorted(moored.docker("load", "-i", str(archive)).splitlines()) == [
        "Loaded image: busybox:latest",
        "Loaded image: second:1",
    ]
    moored.docker("rmi", "second:1")
    with tarfile.open(archive) as tar:
        assert len([name for name in tar.getnames() if name.startswith("blobs/sha256/") and len(name) > 20]) == 6


def test_an_empty_body_is_imported_as_an_empty_image_of_the_platform_asked_for(moored: Moored) -> None:
    def imported(platform: str) -> Reply:
        query = {"fromSrc": "-", "repo": "made-of-nothing", "platform": platform}
        return moored.api.call("POST", "/images/create", body=b"", query=query, check=False)

    assert imported("LINUX/sparc64").status == 200
    made = moored.api.get("/images/made-of-nothing/json").json
    assert (made["Os"], made["Architecture"]) == ("linux", "sparc64")
    for platform, text in (
        ("macos", "operating system is not supported"),
        ("nintendo64", '"nintendo64": unknown operating system or architecture: invalid argument'),
        ("/", '"" is an invalid component of "/"'),
    ):
        reply = imported(platform)
        assert reply.status == 400 and reply.message.startswith(text)
    moored.docker("rmi", "made-of-nothing")


def test_until_leaves_out_what_was_made_at_that_moment_and_archives_keep_the_images_time(moored: Moored) -> None:
    created = moored.api.get("/images/busybox/json").json["Created"]
    assert moored.api.get("/images/json", filters={"until": [created], "reference": ["busybox"]}).json == []
    archive = moored.api.call("GET", "/images/busybox/get", check=False).body
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        config = tar.getmember(json.loads(manifest.read())[0]["Config"])
    assert config.mtime == datetime.fromisoformat(created).timestamp()


def test_a_name_that_reads_as_a_digest_is_no_tag(moored: Moored) -> None:
    reply = moored.api.call("POST", "/images/busybox/tag", query={"repo": "sha256", "tag": "some"}, check=False)
    assert reply.status == 400 and "ambiguous tag using digest algorithm as name" in reply.message


def test_an_import_from_nowhere_says_what_could_not_be_looked_up(moored: Moored) -> None:
    refused = moored.docker_run("import", "https://nosuchdomain.invalid/bad")
    assert (
        'Get "https://nosuchdomain.invalid/bad": dial tcp: lookup nosuchdomain.invalid: no such host' in refused.stderr
    )
