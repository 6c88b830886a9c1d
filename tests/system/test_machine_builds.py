"""What builds need of the machine's image: git, which fetches contexts inside of the machine."""

from pathlib import Path

from docker import DockerClient

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
