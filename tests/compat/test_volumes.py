"""Volumes through the docker CLI, docker-py and the checked API, against a running daemon."""

import json
import uuid

import pytest

from tests.support.moored import Moored

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> str:
    return f"v{uuid.uuid4().hex[:10]}"


def test_named_volume_keeps_what_one_container_writes_for_the_next(moored: Moored, name: str) -> None:
    moored.docker("run", "--rm", "-v", f"{name}:/data", "busybox", "sh", "-c", "echo kept > /data/file")
    assert moored.docker("run", "--rm", "-v", f"{name}:/data:ro", "busybox", "cat", "/data/file") == "kept"
    done = moored.docker_run("run", "--rm", "-v", f"{name}:/data:ro", "busybox", "touch", "/data/new")
    assert "Read-only file system" in done.stderr
    assert name in moored.docker("volume", "ls", "-q").splitlines()
    moored.docker("volume", "rm", name)
    assert f"get {name}: no such volume" in moored.docker_run("volume", "inspect", name).stderr


def test_empty_volume_is_filled_from_the_image(moored: Moored, name: str) -> None:
    moored.docker("run", "--rm", "-v", f"{name}:/bin", "busybox", "true")
    listed = moored.docker("run", "--rm", "-v", f"{name}:/data", "busybox", "ls", "/data")
    assert "busybox" in listed.split()
    moored.docker("volume", "rm", name)


def test_volume_in_use_is_not_removed_and_anonymous_ones_go_with_their_container(moored: Moored, name: str) -> None:
    moored.docker("create", "--name", name, "-v", f"{name}:/data", "-v", "/anonymous", "busybox", "true")
    mounts = json.loads(moored.docker("inspect", "-f", "{{json .Mounts}}", name))
    anonymous = next(mount["Name"] for mount in mounts if mount["Destination"] == "/anonymous")
    done = moored.docker_run("volume", "rm", name)
    assert done.returncode == 1 and f"remove {name}: volume is in use - [" in done.stderr
    moored.docker("rm", "-v", name)
    left = moored.docker("volume", "ls", "-q").splitlines()
    assert name in left and anonymous not in left
    moored.docker("volume", "rm", name)


def test_tmpfs_volume_with_options(moored: Moored, name: str) -> None:
    moored.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=2m", name)
    size = moored.docker("run", "--rm", "-v", f"{name}:/data", "busybox", "df", "-m", "/data").splitlines()[-1].split()
    assert size[0] == "tmpfs" and size[1] == "2"
    assert not [line for line in moored.sandbox.run("cat", "/proc/mounts").stdout.splitlines() if name in line]
    moored.docker("volume", "rm", name)


def test_prune_takes_unused_anonymous_volumes(moored: Moored, name: str) -> None:
    moored.docker("volume", "create", name)
    anonymous = moored.docker("volume", "create")
    text = moored.docker("volume", "prune", "-f")
    assert anonymous in text and name not in text
    assert name in moored.docker("volume", "prune", "-af")


def test_api_answers_have_their_shape(moored: Moored, name: str) -> None:
    api = moored.api
    body = {"Name": name, "Labels": {"a": "b"}}
    assert api.call("POST", "/volumes/create", body=body).status == 201
    assert api.call("POST", "/volumes/create", body=body).status == 201
    assert api.call("GET", f"/volumes/{name}").status == 200
    assert api.call("GET", "/volumes").status == 200
    assert api.call("POST", "/volumes/create", body={"Name": "x"}, check=False).status == 400
    assert api.call("POST", "/volumes/create", body={"Name": name + "2", "Driver": "nope"}, check=False).status == 404
    assert api.call("PUT", f"/volumes/{name}", body={"Spec": {}}, check=False).status == 503
    assert api.call("DELETE", f"/volumes/{name}").status == 204
    assert api.call("DELETE", f"/volumes/{name}").status == 404
    assert api.call("DELETE", f"/volumes/{name}?force=1").status == 204
    assert api.call("POST", "/volumes/prune").status == 200


def test_docker_py_creates_lists_and_removes(moored: Moored, name: str) -> None:
    with moored.client() as client:
        volume = client.volumes.create(name, driver="local", labels={"k": "v"})
        assert volume.attrs["Labels"] == {"k": "v"}
        assert [v.name for v in client.volumes.list(filters={"label": "k=v"})] == [name]
        volume.remove()
