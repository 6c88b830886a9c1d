"""Builds that get something from elsewhere: files and contexts by address, cache from another image; and what prunes it."""

import gzip
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.httpfolder import served
from tests.support.images import layer_tar
from tests.support.moored import Moored

pytestmark = pytest.mark.root


@pytest.fixture
def web(moored: Moored, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server and the folder that it serves."""
    folder = tmp_path / "web"
    folder.mkdir()
    with served(folder, moored.sandbox) as address:
        yield f"http://{address}", folder


def build(moored: Moored, folder: Path, text: str, *arguments: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(text)
    return moored.docker("build", "-t", "made", *arguments, str(folder))


def run(moored: Moored, *argv: str) -> str:
    return moored.docker("run", "--rm", "--network", "none", "made", *argv)


def remote(moored: Moored, address: str, **more: str) -> str:
    """Build a context that the daemon fetches itself; returns what the client is shown."""
    return moored.api.call("POST", "/build", query={"remote": address, "t": "made", **more}).body.decode()


def test_add_fetches_addresses_and_leaves_their_archives_packed(
    moored: Moored, web: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = web
    (folder / "one.txt").write_text("one\n")
    packed = gzip.compress(layer_tar({"inside": b"x"}))
    (folder / "packed.tar.gz").write_bytes(packed)
    text = f"""FROM busybox
ENV BASE={address}
ADD $BASE/one.txt /a/
ADD --chown=33:33 {address}/one.txt /b
ADD {address}/one.txt {address}/packed.tar.gz /c/
"""
    build(moored, tmp_path / "context", text)
    assert run(moored, "cat", "/a/one.txt", "/b", "/c/one.txt").split() == ["one", "one", "one"]
    assert run(moored, "stat", "-c", "%a %u", "/a/one.txt", "/b").split() == ["600", "0", "600", "33"]
    assert int(run(moored, "stat", "-c", "%s", "/c/packed.tar.gz")) == len(packed)
    assert build(moored, tmp_path / "context", text).count("Using cache") == 4
    (folder / "one.txt").write_text("two\n")
    build(moored, tmp_path / "context", text)
    assert run(moored, "cat", "/a/one.txt") == "two"


def test_addresses_and_files_of_one_add_make_one_layer(moored: Moored, web: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = web
    (folder / "fetched").write_text("f\n")
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "local").write_text("l\n")
    (tmp_path / "context" / "local").chmod(0o644)
    text = f"FROM busybox\nADD local {address}/fetched /c/\n"
    before = len(json.loads(moored.docker("image", "inspect", "busybox"))[0]["RootFS"]["Layers"])
    build(moored, tmp_path / "context", text)
    assert run(moored, "sh", "-c", "cd /c && cat fetched local && stat -c %a fetched local").split() == [
        "f",
        "l",
        "600",
        "644",
    ]
    image = json.loads(moored.docker("image", "inspect", "made"))[0]
    assert len(image["RootFS"]["Layers"]) == before + 1
    assert build(moored, tmp_path / "context", text).count("Using cache") == 1


def test_an_address_that_gives_nothing_ends_the_build(moored: Moored, web: tuple[str, Path], tmp_path: Path) -> None:
    address, _folder = web
    (tmp_path / "Dockerfile").write_text(f"FROM busybox\nADD {address}/none /\n")
    done = moored.docker_run("build", str(tmp_path))
    assert done.returncode != 0
    assert f"failed to GET {address}/none with status 404" in done.stderr
    (tmp_path / "Dockerfile").write_text("FROM busybox\nADD http://127.0.0.1:1/none /\n")
    assert "127.0.0.1:1" in moored.docker_run("build", str(tmp_path)).stderr
    assert list((moored.data_root / "tmp" / "images").iterdir()) == []


def test_a_context_or_a_dockerfile_alone_is_fetched_by_the_daemon(moored: Moored, web: tuple[str, Path]) -> None:
    address, folder = web
    context = layer_tar({"Dockerfile": b"FROM busybox\nCOPY file /from-tar\n", "file": b"tar\n"})
    (folder / "context.tar.gz").write_bytes(gzip.compress(context))
    (folder / "Plain").write_text("FROM busybox\nRUN echo alone > /from-text\n")
    assert "Successfully tagged made:latest" in remote(moored, f"{address}/context.tar.gz")
    assert run(moored, "cat", "/from-tar") == "tar"
    assert "Successfully tagged made:latest" in remote(moored, f"{address}/Plain", networkmode="none")
    assert run(moored, "cat", "/from-text") == "alone"
    with moored.client() as client:
        client.images.build(path=f"{address}/context.tar.gz", tag="made", rm=True)
    assert run(moored, "cat", "/from-tar") == "tar"


def test_a_context_that_cannot_be_fetched_says_why(moored: Moored, web: tuple[str, Path]) -> None:
    address, _folder = web
    for where, message in (
        (f"{address}/none.tar", "with status 404"),
        ("ftp://host.invalid/x", "remoteURL (ftp://host.invalid/x) could not be recognized as URL"),
    ):
        reply = moored.api.call("POST", "/build", query={"remote": where}, check=False)
        assert reply.status == 400
        assert message in reply.json["message"]


def test_cache_comes_from_a_named_image_alone(moored: Moored, tmp_path: Path) -> None:
    text = "FROM busybox\nRUN head -c 20 /dev/urandom | md5sum > /random\nLABEL step=two\n"
    build(moored, tmp_path, text, "--no-cache", "--network", "none")
    first = run(moored, "cat", "/random")
    moored.docker("save", "-o", str(tmp_path / "saved.tar"), "made")
    moored.docker("rmi", "-f", "made")
    moored.docker("builder", "prune", "-af")
    moored.docker("load", "-i", str(tmp_path / "saved.tar"))
    moored.docker("tag", "made", "earlier")
    assert "Using cache" not in build(moored, tmp_path, text, "--network", "none")
    assert run(moored, "cat", "/random") != first
    out = build(moored, tmp_path, text, "--cache-from", "nosuch", "--cache-from", "earlier", "--network", "none")
    assert out.count("Using cache") == 2
    assert run(moored, "cat", "/random") == first
    changed = text.replace("step=two", "step=other")
    out = build(moored, tmp_path, changed, "--cache-from", "earlier", "--network", "none")
    assert out.count("Using cache") == 1
    assert run(moored, "cat", "/random") == first


def test_the_cache_is_pruned_by_filter(moored: Moored, tmp_path: Path) -> None:
    build(
        moored, tmp_path, "FROM busybox\nRUN echo one > /one\nRUN echo two > /two\nLABEL last=1\n", "--network", "none"
    )
    moored.docker("rmi", "--no-prune", "made")

    def steps() -> dict[str, str]:
        cache = moored.api.get("/system/df").json["BuildCache"]
        return {each["Description"]: each["ID"] for each in cache if "echo" in each["Description"]}

    def prune(**wanted: list[str]) -> list[str]:
        reply = moored.api.call("POST", "/build/prune", query={"filters": json.dumps(wanted)})
        return reply.json["CachesDeleted"] or []

    assert len(steps()) == 2
    newest = steps()["/bin/sh -c echo two > /two"]
    assert prune(until=["24h"]) == []
    assert prune(shared=["1"]) == []
    assert prune(inuse=["true"]) == []
    assert prune(id=["nosuch"]) == []
    assert prune(type=["source.local"]) == []
    assert len(steps()) == 2
    assert prune(id=[newest[:12]]) != []
    assert list(steps()) == ["/bin/sh -c echo one > /one"]
    assert prune(description=["echo one"], private=["1"]) != []
    assert steps() == {}
    refused = moored.api.call("POST", "/build/prune", query={"filters": '{"what":["x"]}'}, check=False)
    assert refused.status == 400
    assert "invalid filter 'what'" in refused.json["message"]


def test_the_index_of_a_registry_is_searched(moored: Moored, web: tuple[str, Path]) -> None:
    address, folder = web
    host = address.removeprefix("http://")
    results = [
        {"name": "sea/boat", "description": "floats", "star_count": 7, "is_official": True, "is_automated": False},
        {
            "name": "sea/ship",
            "description": "also floats",
            "star_count": 2,
            "is_official": False,
            "is_automated": False,
        },
    ]
    (folder / "v1").mkdir()
    (folder / "v1" / "search").write_text(json.dumps({"results": results, "num_results": 2, "query": "boat"}))
    found = moored.api.call("GET", "/images/search", query={"term": f"{host}/boat"}).json
    assert [each["name"] for each in found] == ["sea/boat", "sea/ship"]
    assert moored.docker("search", "--format", "{{.Name}} {{.StarCount}}", f"{host}/boat") == "sea/boat 7\nsea/ship 2"
    assert moored.docker("search", "--filter", "is-official=true", "--format", "{{.Name}}", f"{host}/x") == "sea/boat"
    assert moored.docker("search", "--filter", "stars=3", "--format", "{{.Name}}", f"{host}/x") == "sea/boat"
    assert moored.docker("search", "--limit", "1", "--format", "{{.Name}}", f"{host}/x") == "sea/boat"
    assert "q=boat" in (folder.parent / "http.log").read_text()
    for wrong in ("stars=a", "is-automated=a", "is-official=a"):
        assert f"invalid filter '{wrong}'" in moored.docker_run("search", "--filter", wrong, f"{host}/x").stderr
    assert "[1, 100]" in moored.docker_run("search", "--limit", "101", f"{host}/x").stderr
    assert "127.0.0.1:1" in moored.docker_run("search", "127.0.0.1:1/x").stderr
    (folder / "v1" / "search").unlink()
    assert "Unexpected status code 404" in moored.docker_run("search", f"{host}/x").stderr


def test_what_is_mounted_on_stays_in_the_image_as_a_plain_folder(moored: Moored, tmp_path: Path) -> None:
    mounts = ["-v", "/volume/deep", "-v", f"{tmp_path}:/bound", "--tmpfs", "/temporary", "-v", "/volume/deep/inner"]
    moored.docker("run", "--name", "mounting", "--network", "none", *mounts, "busybox", "true")
    moored.docker("export", "-o", str(tmp_path / "root.tar"), "mounting")
    moored.docker("rm", "-fv", "mounting")
    with tarfile.open(tmp_path / "root.tar") as tar:
        modes = {name: tar.getmember(name).mode for name in ("volume", "volume/deep", "bound", "temporary")}
        assert "volume/deep/inner" not in tar.getnames()
    assert modes == dict.fromkeys(modes, 0o755)
