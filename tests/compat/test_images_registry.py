"""The docker CLI with a registry that wants a login: login, push, pull, and what is said when it is missing."""

import json
from pathlib import Path

import pytest

from tests.support.moored import Moored
from tests.support.registry import PASSWORD, USER, basic_auth, registry

pytestmark = pytest.mark.root


def test_the_cli_logs_in_pushes_and_pulls(moored: Moored, tmp_path: Path) -> None:
    auth = basic_auth(tmp_path / "auth")
    with registry(tmp_path / "registry", auth, sandbox_command=moored.sandbox.command()) as closed:
        name = f"{closed.host}/private/bb:1"
        moored.docker("tag", "busybox", name)
        assert "no basic auth credentials" in moored.docker_run("push", name).stderr
        refused = moored.docker_run("login", "-u", USER, "--password-stdin", closed.host, input="wrong")
        assert "failed with status: 401 Unauthorized" in refused.stderr
        moored.docker("login", "-u", USER, "--password-stdin", closed.host, input=PASSWORD)
        assert "digest: sha256:" in moored.docker("push", name)
        digest = json.loads(moored.docker("image", "inspect", name))[0]["RepoDigests"][0]
        moored.docker("rmi", name, check=False)
        assert "Downloaded newer image" in moored.docker("pull", name) or moored.docker("images", "-q", name)
        assert "up to date" in moored.docker("pull", digest)
        (tmp_path / "Dockerfile").write_text(f"FROM {name}\nRUN true\n")
        moored.docker("rmi", "-f", name)
        assert "Successfully built" in moored.docker("build", "--pull", str(tmp_path))
        moored.docker("logout", closed.host)
        moored.docker("rmi", "-f", name, check=False)
        assert "pull access denied" in moored.docker_run("pull", f"{closed.host}/private/other:1").stderr


def test_a_registry_that_is_not_there_and_a_name_that_cannot_be_are_told_apart(moored: Moored) -> None:
    refused = moored.docker_run("pull", "127.0.0.1:1/none:1")
    assert "connection refused" in refused.stderr
    # The specification has no 400 here; dockerd answers it all the same.
    query = {"fromImage": "not/There:x"}
    assert moored.api.call("POST", "/images/create", query=query, check=False).status == 400
    assert list((moored.data_root / "tmp" / "images").iterdir()) == []


def test_without_a_tag_every_tag_is_pulled_and_a_login_that_is_none_counts_as_none(
    moored: Moored, tmp_path: Path
) -> None:
    with registry(tmp_path / "registry", sandbox_command=moored.sandbox.command()) as open_to_all:
        names = [f"{open_to_all.host}/whole/repository:{tag}" for tag in ("one", "two")]
        for name in names:
            moored.docker("tag", "busybox", name)
            moored.docker("push", name)
            moored.docker("rmi", name)
        query = {"fromImage": f"{open_to_all.host}/whole/repository"}
        moored.api.call("POST", "/images/create", query=query, headers={"X-Registry-Auth": "{}"})
        assert moored.docker("images", "-q", f"{open_to_all.host}/whole/repository").count("\n") == 1
        moored.docker("rmi", *names)
