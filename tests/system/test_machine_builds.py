"""What builds need of the machine's image: git, which fetches contexts inside of the machine, and h2, by which BuildKit's clients build."""

import os
import subprocess
from pathlib import Path

from docker import DockerClient

from tests.support import buildx
from tests.support.gitserver import commit, git, served
from tests.support.vm import Vm

#: The host, as the machine sees it.
HOST = "10.0.2.2"


def test_a_context_is_fetched_with_its_submodules_inside_the_machine(engine_ready: Vm, tmp_path: Path) -> None:
    inner = commit(tmp_path / "repositories/sub.git", {"inner": "inner\n"})
    main = tmp_path / "repositories/main.git"
    commit(main, {"dir/Dockerfile": "FROM busybox\nCOPY . /c/\n", "dir/file": "file\n"})
    (main / ".gitmodules").write_text('[submodule "sub"]\n\tpath = dir/sub\n\turl = ../sub.git\n')
    git(main, "update-index", "--add", "--cacheinfo", f"160000,{inner},dir/sub")
    git(main, "add", ".gitmodules")
    git(main, "commit", "-q", "-m", "with a submodule")
    with served(tmp_path / "repositories", None) as server:
        for number, address in enumerate((server.http, server.git)):
            image = f"made:{number}"
            context = f"{address.replace('127.0.0.1', HOST)}/main.git#master:dir"
            client = DockerClient(base_url=f"unix://{engine_ready.paths.docker_socket}", timeout=240)
            try:
                client.images.build(path=context, tag=image, rm=True)
            finally:
                client.close()
            said = engine_ready.docker("run", "--rm", "--network", "none", image, "cat", "/c/file", "/c/sub/inner")
            assert said.split() == ["file", "inner"]
            engine_ready.docker("rmi", image)


def test_buildx_builds_inside_the_machine(engine_ready: Vm, tmp_path: Path) -> None:
    buildx.install(tmp_path / "config")
    environment = {
        **os.environ, "DOCKER_CONFIG": str(tmp_path / "config"), "DOCKER_HOST": f"unix://{engine_ready.paths.docker_socket}"
    }  # fmt: skip
    environment.pop("DOCKER_BUILDKIT", None)
    context = tmp_path / "context"
    context.mkdir()
    (context / "large").write_bytes(os.urandom(3 << 20))
    (context / "Dockerfile").write_text(
        "FROM busybox AS made\nCOPY large /\nRUN --mount=type=cache,target=/cache --mount=type=secret,id=word "
        "cat /run/secrets/word | rev > /said\nFROM scratch\nCOPY --from=made /said /large /\n"
    )
    (tmp_path / "word").write_text("drow")
    done = subprocess.run(
        ["docker", "buildx", "build", "--progress=plain", "--secret", f"id=word,src={tmp_path / 'word'}",
         "--output", str(tmp_path / "out"), str(context)],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "said").read_text().strip() == "word"
    assert (tmp_path / "out" / "large").read_bytes() == (context / "large").read_bytes()
