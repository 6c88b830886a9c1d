"""Builds with the docker CLI, docker-py and Compose: the whole Dockerfile language of the classic builder."""

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from docker.errors import BuildError

from tests.support.dockerd import tools_root
from tests.support.moored import Moored, wait_for
from tests.support.openapi import Api

pytestmark = pytest.mark.root

Files = Mapping[str, str | bytes]


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def build(moored: Moored, folder: Path, *arguments: str, tag: str = "made") -> str:
    return moored.docker("build", "-t", tag, *arguments, str(folder))


def run(moored: Moored, *argv: str, image: str = "made") -> str:
    return moored.docker("run", "--rm", "--network", "none", image, *argv)


def inspect(moored: Moored, image: str = "made") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(moored.docker("image", "inspect", image))[0]
    return found


def test_every_instruction_leaves_its_mark(moored: Moored, tmp_path: Path) -> None:
    dockerfile = """
    ARG BASE=busybox
    FROM $BASE
    LABEL one=1 "two words"="a b"
    ARG WHO=nobody
    ARG UNSET
    ENV GREETING="hello $WHO" HOME=/home
    WORKDIR /srv/deep
    RUN echo "$GREETING ${UNSET:-unset}" > said && id -u > uid
    COPY --chown=33:www-data --chmod=640 a.txt b.txt ./
    COPY tree /tree
    ADD archive.tar.gz /unpacked/
    ADD one.* /glob/
    VOLUME /data
    EXPOSE 80 53/udp
    USER www-data
    SHELL ["/bin/sh", "-ec"]
    RUN id -u > /tmp/uid
    HEALTHCHECK --interval=7s CMD true
    STOPSIGNAL SIGINT
    ENTRYPOINT ["/bin/echo"]
    CMD ["default"]
    ONBUILD RUN echo triggered > /tmp/triggered
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("inner/file")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"tar\n"))
    files: dict[str, str | bytes] = {
        "Dockerfile": dockerfile, "a.txt": "a", "b.txt": "b", "tree/x/y": "y", "one.1": "1", "one.2": "2",
        "archive.tar.gz": packed.getvalue(),
    }  # fmt: skip
    out = build(moored, write(tmp_path, files), "--build-arg", "WHO=world", "--build-arg", "NEVER=1")
    assert "One or more build-args [NEVER] were not consumed" in out
    config = inspect(moored)["Config"]
    assert config["Labels"] == {"one": "1", "two words": "a b"}
    assert config["WorkingDir"] == "/srv/deep"
    assert "GREETING=hello world" in config["Env"]
    assert config["User"] == "www-data"
    assert config["Entrypoint"] == ["/bin/echo"]
    assert config["Healthcheck"]["Interval"] == 7_000_000_000
    assert set(config["ExposedPorts"]) == {"80/tcp", "53/udp"}
    assert run(moored) == "default"
    script = (
        "cat /srv/deep/said /srv/deep/uid /tmp/uid /unpacked/inner/file /tree/x/y; echo; ls /glob;"
        "stat -c '%a %u %g' /srv/deep/a.txt /tree/x"
    )
    shown = moored.docker("run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", "made", "-c", script)
    assert shown.split() == ["hello", "world", "unset", "0", "33", "tar", "y", "one.1", "one.2", "640", "33", "33", "755", "0", "0"]  # fmt: skip
    child = write(tmp_path / "child", {"Dockerfile": "FROM made\n"})
    assert "# Executing 1 build trigger" in build(moored, child, tag="child")
    assert (
        moored.docker("run", "--rm", "--network", "none", "--entrypoint", "cat", "child", "/tmp/triggered")
        == "triggered"
    )


def test_stages_copy_from_each_other_and_the_target_can_be_chosen(moored: Moored, tmp_path: Path) -> None:
    dockerfile = """FROM busybox AS first
RUN echo one > /one
FROM first AS second
RUN echo two > /two
FROM scratch
COPY --from=second /one /two /files/
COPY --from=0 /one /again
COPY --from=busybox /bin/busybox /bin/busybox
CMD ["/bin/busybox", "cat", "/files/one", "/files/two", "/again"]
"""
    write(tmp_path, {"Dockerfile": dockerfile})
    build(moored, tmp_path)
    assert run(moored).split() == ["one", "two", "one"]
    assert len(inspect(moored)["RootFS"]["Layers"]) == 3
    build(moored, tmp_path, "--target", "First", tag="first")
    assert run(moored, "cat", "/one", image="first") == "one"
    assert "No such file" in moored.docker_run("run", "--rm", "--network", "none", "first", "cat", "/two").stderr


def test_the_cache_holds_until_something_changes(moored: Moored, tmp_path: Path) -> None:
    files = {
        "Dockerfile": "FROM busybox\nARG X=1\nRUN date +%N%s > /when; echo $X\nCOPY f /f\nRUN date > /then\n",
        "f": "1",
    }
    write(tmp_path, files)
    build(moored, tmp_path)
    first = inspect(moored)["Id"]
    again = build(moored, tmp_path)
    assert again.count("Using cache") == 4
    assert inspect(moored)["Id"] == first
    (tmp_path / "f").touch()
    assert build(moored, tmp_path).count("Using cache") == 4
    (tmp_path / "f").write_text("2")
    assert build(moored, tmp_path).count("Using cache") == 2
    (tmp_path / "f").chmod(0o755)
    assert build(moored, tmp_path).count("Using cache") == 2
    assert build(moored, tmp_path, "--build-arg", "X=2").count("Using cache") == 1
    assert build(moored, tmp_path, "--no-cache").count("Using cache") == 0


def test_a_command_that_fails_ends_the_build_with_its_code(moored: Moored, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo before; exit 7\n"})
    done = moored.docker_run("build", "--force-rm", str(tmp_path))
    assert done.returncode == 7
    assert "before" in done.stdout
    assert "The command '/bin/sh -c echo before; exit 7' returned a non-zero code: 7" in done.stderr
    assert moored.docker("ps", "-aq") == ""
    moored.docker_run("build", str(tmp_path))
    left = moored.docker("ps", "-aq", "--filter", "status=exited", "--filter", "exited=7")
    moored.docker("rm", *left.split())


@pytest.mark.parametrize(
    ("dockerfile", "message"),
    [
        ("FROM busybox\nCOPY nothing /x\n", "file not found in build context or excluded by .dockerignore"),
        ("FROM busybox\nCOPY ../x /x\n", "forbidden path outside the build context"),
        ("FROM busybox\nCOPY ignored /x\n", "file not found in build context or excluded by .dockerignore"),
        ("FROM busybox\nCOPY a b /x\n", "the destination must be a directory and end with a /"),
        (
            "FROM busybox\nCOPY --chown=nobodyknows a /x\n",
            "can't find uid for user nobodyknows: no such user: nobodyknows",
        ),
        ("FROM busybox\nCOPY --from=9 a /x\n", "invalid from flag value 9"),
        ("FROM scratch\nRUN x\n", "Please provide a source image"),
        ("FROM scratch\n", "No image was generated"),
        ("FROM busybox\nRUN --mount=type=cache,target=/x true\n", "requires BuildKit"),
        ("FROM 127.0.0.1:1/nothing\n", "connect"),
    ],
)
def test_what_cannot_be_built_says_why(moored: Moored, tmp_path: Path, dockerfile: str, message: str) -> None:
    write(tmp_path, {"Dockerfile": dockerfile, "a": "a", "b": "b", "ignored": "i", ".dockerignore": "ignored\n"})
    done = moored.docker_run("build", str(tmp_path))
    assert done.returncode != 0
    assert message.lower() in (done.stderr + done.stdout).lower()


def test_contexts_come_from_standard_input_too(moored: Moored, tmp_path: Path) -> None:
    moored.docker("build", "-t", "stdin", "-", input="FROM busybox\nRUN echo piped > /p\n")
    assert run(moored, "cat", "/p", image="stdin") == "piped"
    (tmp_path / "file").write_text("of the context")
    moored.docker("build", "-t", "stdin", "-f", "-", str(tmp_path), input="FROM busybox\nCOPY file /p\n")
    assert run(moored, "cat", "/p", image="stdin") == "of the context"
    write(tmp_path, {"sub/other.Dockerfile": "FROM busybox\nCOPY sub/f /f\n", "sub/f": "there"})
    build(
        moored,
        tmp_path,
        "-f",
        str(tmp_path / "sub/other.Dockerfile"),
        "--label",
        "k=v $x",
        "--iidfile",
        str(tmp_path / "iid"),
    )
    assert run(moored, "cat", "/f") == "there"
    assert inspect(moored)["Config"]["Labels"] == {"k": "v $x"}
    assert (tmp_path / "iid").read_text() == inspect(moored)["Id"]


def test_limits_and_networks_reach_the_containers(moored: Moored, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN ls /sys/class/net; cat /etc/hosts\n"})
    out = build(moored, tmp_path, "--network", "none", "--no-cache")
    assert "eth0" not in out
    out = build(moored, tmp_path, "--no-cache", "--add-host", "somewhere:192.0.2.7", "--memory", "64m")
    assert "192.0.2.7\tsomewhere" in out


def test_squash_outputs_and_unknown_builders_are_refused_in_words(moored: Moored, tmp_path: Path) -> None:
    for query, message in (
        ({"squash": "1"}, "experimental"),
        ({"version": "3"}, "invalid version"),
        ({"outputs": "[{}]"}, "buildx"),
    ):
        reply = moored.api.call("POST", "/build", query=query, body=b"", headers={"Content-Type": "application/x-tar"})
        assert reply.status == 400
        assert message in reply.json["message"]


def test_docker_py_builds_and_sees_failures(moored: Moored, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nARG A\nRUN test $A = 1\n"})
    with moored.client() as client:
        image, lines = client.images.build(path=str(tmp_path), tag="py", buildargs={"A": "1"}, rm=True)
        assert "py:latest" in image.tags
        assert any("Successfully built" in str(line.get("stream")) for line in lines if isinstance(line, dict))
        with pytest.raises(BuildError, match="non-zero code"):
            client.images.build(path=str(tmp_path), buildargs={"A": "2"}, forcerm=True)


def test_an_interrupted_build_leaves_no_container(moored: Moored, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo begun; sleep 1000\n"})
    process = moored.docker_popen("build", "--no-cache", str(tmp_path))
    try:
        wait_for("the step to run", lambda: moored.docker("ps", "-q"))
        process.terminate()
    finally:
        process.communicate(timeout=60)
    wait_for("the container to go", lambda: moored.docker("ps", "-aq") == "")


def test_the_cache_is_pruned(moored: Moored, tmp_path: Path) -> None:
    write(tmp_path, {"Dockerfile": "FROM busybox\nRUN head -c 1000000 /dev/zero > /big\nLABEL a=b\n"})
    build(moored, tmp_path, tag="big")
    moored.docker("rmi", "--no-prune", "big")
    cache = moored.api.get("/system/df").json["BuildCache"]
    assert any(each["Size"] == 1_000_000 and not each["Shared"] for each in cache)
    moored.docker("builder", "prune", "-f")
    assert not any(each["Size"] == 1_000_000 for each in moored.api.get("/system/df").json["BuildCache"])
    moored.docker("image", "prune", "-f")
    assert moored.docker("images", "-q", "--filter", "dangling=true") == ""


def test_compose_builds(moored: Moored, tmp_path: Path) -> None:
    service = {"build": {"context": ".", "args": {"WHO": "compose"}, "target": "last"}, "network_mode": "none"}
    write(tmp_path, {"compose.yaml": json.dumps({"name": "built", "services": {"one": service}})})
    dockerfile = "FROM busybox AS first\nARG WHO\nRUN echo $WHO > /who\nFROM first AS last\nCMD cat /who\n"
    write(tmp_path, {"Dockerfile": dockerfile})
    plugin = Path(tools_root(), "usr/libexec/docker/cli-plugins/docker-compose")
    for argv in (["build"], ["run", "--rm", "one"]):
        done = subprocess.run(
            [plugin, *argv],
            cwd=tmp_path,
            env=dict(moored.docker_environment()),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}\n{moored.log()}"
    assert done.stdout.strip() == "compose"


def test_a_daemon_killed_in_the_middle_of_a_build_leaves_nothing_of_it(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    before = moored.api.get("/system/df").json["LayersSize"]
    write(
        tmp_path, {"Dockerfile": "FROM busybox\nCOPY big /big\nRUN echo begun; sleep 1000\n", "big": b"x" * 1_000_000}
    )
    process = moored.docker_popen("build", str(tmp_path))
    try:
        wait_for("the step to run", lambda: moored.docker("ps", "-q"))
        moored.kill()
    finally:
        process.communicate(timeout=60)
    moored.start()
    wait_for("the step's container to go", lambda: moored.docker("ps", "-aq") == "")
    assert list((moored.data_root / "tmp" / "images").iterdir()) == []
    moored.docker("builder", "prune", "-f")
    assert moored.api.get("/system/df").json["LayersSize"] == before


def test_an_empty_command_runs_what_the_image_runs(moored: Moored) -> None:
    moored.docker("build", "-q", "-t", "nothing-run", "-", input="FROM busybox\nRUN []\n")
    moored.docker("rmi", "nothing-run")


def test_older_clients_can_tell_an_empty_command_from_none(moored: Moored) -> None:
    for text, command in (("ENTRYPOINT a\nCMD []", []), ("ENTRYPOINT a", None)):
        moored.docker("build", "-t", "made", "-", input=f"FROM busybox\n{text}\n")
        old = Api(moored.socket, version="1.45").get("/images/made/json").json["Config"]
        assert old["Cmd"] == command
