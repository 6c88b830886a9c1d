"""docker buildx, docker build with it, bake and Compose build on the engine's own builder, as on dockerd's BuildKit."""

import base64
import json
import signal
import subprocess
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import buildx
from tests.support.dockerd import tools_root
from tests.support.fuzzing import tar_bytes
from tests.support.moored import Moored, wait_for

pytestmark = pytest.mark.root


def run(
    moored: Moored, *argv: str, folder: Path | None = None, timeout: float = 120
) -> "subprocess.CompletedProcess[str]":
    """Run docker as somebody who has buildx and has chosen nothing."""
    buildx.install(moored.docker_config)
    return subprocess.run(
        ["docker", *argv], env=environment(moored), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout, cwd=folder, check=False,
    )  # fmt: skip


def environment(moored: Moored) -> dict[str, str]:
    found = dict(moored.docker_environment())
    del found["DOCKER_BUILDKIT"]
    return found


def build(moored: Moored, folder: Path, *options: str) -> str:
    """Build and return what was said."""
    done = run(moored, "buildx", "build", "--progress=plain", *options, str(folder))
    assert done.returncode == 0, f"{done.stderr}\n{moored.log()}"
    return done.stderr


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_an_image_is_built_named_and_told_of(moored: Moored, tmp_path: Path) -> None:
    context = write(
        tmp_path / "context",
        {
            "Dockerfile": "FROM busybox AS base\nRUN echo made > /a\nFROM base\nCOPY x /x\nCMD cat /a /x\n",
            "x": "copied\n",
        },
    )
    told = ["--iidfile", str(tmp_path / "id"), "--metadata-file", str(tmp_path / "told")]
    build(moored, context, "-t", "first", "-t", "example.com/second:v1", *told)
    assert moored.docker("run", "--rm", "--net=none", "first") == "made\ncopied"
    image_id = moored.docker("image", "inspect", "-f", "{{.Id}}", "example.com/second:v1")
    assert (tmp_path / "id").read_text() == image_id
    metadata = json.loads((tmp_path / "told").read_text())
    assert metadata["containerimage.digest"] == metadata["containerimage.config.digest"] == image_id
    assert metadata["image.name"] == "docker.io/library/first,example.com/second:v1"
    again = build(moored, context, "-t", "first", "--iidfile", str(tmp_path / "again"))
    assert "CACHED" in again
    assert (tmp_path / "again").read_text() == image_id, "what is found in the cache makes the same image"


def test_docker_build_takes_this_builder_and_the_configuration_can_say_otherwise(
    fresh_moored: Moored, tmp_path: Path
) -> None:
    context = write(tmp_path, {"Dockerfile": "FROM busybox\nRUN true\n"})
    done = run(fresh_moored, "build", "--progress=plain", "-t", "made", str(context))
    assert done.returncode == 0, done
    assert "naming to docker.io/library/made" in done.stderr
    fresh_moored.config_file.write_text('{"features": {"buildkit": false}}')
    fresh_moored.signal(signal.SIGHUP)

    def asks_for_the_classic_builder() -> bool:
        ping = fresh_moored.api.call("GET", "/_ping")
        return {name.lower(): value for name, value in ping.headers.items()}["builder-version"] == "1"

    wait_for("the daemon to read its configuration", asks_for_the_classic_builder)


def test_a_secret_is_seen_by_its_command_alone(moored: Moored, tmp_path: Path) -> None:
    secret = "swordfish-7f3a9c"
    (tmp_path / "secret").write_text(secret)
    context = write(
        tmp_path / "context",
        {
            "Dockerfile": "FROM busybox\nRUN --mount=type=secret,id=s wc -c < /run/secrets/s > /size\nRUN ! test -s /run/secrets/s\n"
        },
    )
    build(moored, context, "-t", "secretive", "--secret", f"id=s,src={tmp_path / 'secret'}")
    assert moored.docker("run", "--rm", "--net=none", "secretive", "cat", "/size").strip() == str(len(secret))
    found = subprocess.run(
        ["grep", "-rlaF", secret, str(moored.data_root), str(moored.exec_root), str(moored.log_file)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.stdout == ""


def test_results_go_to_the_client_as_files_and_as_an_archive(moored: Moored, tmp_path: Path) -> None:
    context = write(
        tmp_path / "context",
        {
            "Dockerfile": "FROM busybox AS made\nRUN mkdir -p /o/d && echo 1 > /o/d/f && chmod 640 /o/d/f && ln -s d/f /o/l\n"
            "FROM scratch\nCOPY --from=made /o /\nCOPY x /\n",
            "x": "x" * 3_000_000,
        },
    )
    build(moored, context, "-o", f"type=local,dest={tmp_path / 'out'}", "-o", f"type=tar,dest={tmp_path / 'out.tar'}")
    assert (tmp_path / "out/d/f").read_text() == "1\n"
    assert (tmp_path / "out/d/f").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out/l").readlink() == Path("d/f")
    assert (tmp_path / "out/x").stat().st_size == 3_000_000
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert {member.name.rstrip("/") for member in archive} - {"", "."} == {"d", "d/f", "l", "x"}
    assert moored.docker("images", "-q", "--filter", "dangling=true") == "", "no image was wanted"


def test_what_fails_is_shown_with_its_line(moored: Moored, tmp_path: Path) -> None:
    context = write(tmp_path, {"Dockerfile": "FROM busybox\nRUN true\nRUN echo trouble >&2; exit 3\n"})
    done = run(moored, "buildx", "build", "--progress=plain", str(context))
    assert done.returncode == 1
    assert "   3 | >>> RUN echo trouble >&2; exit 3" in done.stderr, done.stderr
    last = 'ERROR: failed to solve: process "/bin/sh -c echo trouble >&2; exit 3" did not complete successfully: exit code: 3'
    assert done.stderr.rstrip().splitlines()[-1] == last
    assert moored.docker("ps", "-aq") == ""


def test_a_build_ends_with_its_client(moored: Moored, tmp_path: Path) -> None:
    context = write(tmp_path, {"Dockerfile": "FROM busybox\nRUN echo begun; sleep 1017\n"})
    buildx.install(moored.docker_config)

    def runs() -> bool:
        return moored.sandbox.run("pgrep", "-fx", "sleep 1017", check=False).returncode == 0

    process = subprocess.Popen(
        ["docker", "buildx", "build", str(context)], env=environment(moored), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("the command to run", runs)
        assert moored.docker("ps", "-aq") == "", "what a build runs in is no container of the user's"
    finally:
        process.kill()
        process.wait(60)
    wait_for("the command to end", lambda: not runs())


def test_bake_builds_targets_on_each_other(moored: Moored, tmp_path: Path) -> None:
    bake = {
        "group": {"default": {"targets": ["app", "tool"]}},
        "target": {
            "base": {"dockerfile-inline": "FROM busybox\nENV A=1\nRUN echo base > /base\n"},
            "app": {
                "contexts": {"base": "target:base"},
                "dockerfile-inline": "FROM base\nCOPY --from=base /base /copy\nCMD cat /base /copy; echo $A\n",
                "tags": ["app"],
            },
            "tool": {
                "contexts": {"src": "./src"},
                "dockerfile-inline": "FROM busybox\nCOPY --from=src f /f\n",
                "tags": ["tool"],
            },
        },
    }
    write(tmp_path, {"docker-bake.json": json.dumps(bake), "src/f": "from another folder\n"})
    done = run(moored, "buildx", "bake", "--progress=plain", folder=tmp_path)
    assert done.returncode == 0, f"{done.stderr}\n{moored.log()}"
    assert moored.docker("run", "--rm", "--net=none", "app") == "base\nbase\n1"
    assert moored.docker("run", "--rm", "--net=none", "tool", "cat", "/f") == "from another folder"


def test_compose_builds_and_runs_services(moored: Moored, tmp_path: Path) -> None:
    services = {
        "one": {
            "build": {"context": ".", "args": {"WHO": "compose"}, "target": "last", "secrets": ["s"]},
            "network_mode": "none",
        },
        "two": {"build": {"context": ".", "dockerfile_inline": "FROM busybox\nCMD echo two\n"}, "network_mode": "none"},
    }
    application = {"name": "kit", "services": services, "secrets": {"s": {"file": "./s"}}}
    dockerfile = "FROM busybox AS first\nARG WHO\nRUN --mount=type=secret,id=s echo $WHO $(cat /run/secrets/s | wc -c) > /who\nFROM first AS last\nCMD cat /who\n"
    write(tmp_path, {"compose.yaml": json.dumps(application), "Dockerfile": dockerfile, "s": "1234567"})
    plugin = tools_root() / "usr/libexec/docker/cli-plugins/docker-compose"
    buildx.install(moored.docker_config)
    for argv in (["build"], ["run", "--rm", "one"]):
        done = subprocess.run(
            [plugin, "--progress", "plain", *argv], cwd=tmp_path, env={**environment(moored), "DOCKER_BUILDKIT": "1"},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}\n{moored.log()}"
    assert done.stdout.strip() == "compose 7"


def test_the_cache_is_told_of_and_pruned_alike_by_all_who_ask(moored: Moored, tmp_path: Path) -> None:
    context = write(
        tmp_path,
        {
            "Dockerfile": "FROM busybox\nRUN --mount=type=cache,target=/c head -c 700000 /dev/zero > /big; echo 1 > /c/f\n"
        },
    )
    build(moored, context, "-t", "big")
    moored.docker("rmi", "big")
    known = moored.api.get("/system/df").json["BuildCache"]
    assert {entry["Type"] for entry in known} >= {"regular", "exec.cachemount"}
    done = run(moored, "buildx", "du", "--verbose")
    assert done.returncode == 0, done
    told = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("ID:")}
    assert told == {entry["ID"] for entry in known}
    done = run(moored, "buildx", "prune", "-f", "--filter", "type=exec.cachemount")
    assert done.returncode == 0, done
    left = moored.api.get("/system/df").json["BuildCache"]
    assert {entry["Type"] for entry in left} == {"regular"}
    assert any(entry["Size"] == 700_000 for entry in left)
    done = run(moored, "buildx", "prune", "-f")
    assert not any(entry["Size"] == 700_000 for entry in moored.api.get("/system/df").json["BuildCache"]), done


def test_the_cache_shrinks_to_what_is_to_be_kept(fresh_moored: Moored, tmp_path: Path) -> None:
    steps = "".join(f"RUN head -c {size} /dev/zero > /f{size}\n" for size in (300_000, 200_000, 100_000))
    build(fresh_moored, write(tmp_path, {"Dockerfile": f"FROM busybox\n{steps}"}), "-t", "steps")
    fresh_moored.docker("rmi", "steps")

    def pruned(**query: str) -> tuple[int, int]:
        """What was freed, and what is left."""
        freed = fresh_moored.api.call("POST", "/build/prune", query=query).json["SpaceReclaimed"]
        return freed, sum(entry["Size"] for entry in fresh_moored.api.get("/system/df").json["BuildCache"])

    assert pruned(**{"keep-storage": "600000"}) == (0, 600_000)
    assert pruned(**{"reserved-space": "500000"}) == (100_000, 500_000), "what others are built on goes last"
    assert pruned(**{"max-used-space": "400000", "reserved-space": "300000"}) == (200_000, 300_000)
    assert pruned(filters='{"type": ["exec.cachemount"]}') == (0, 300_000)
    assert pruned() == (300_000, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--allow", "security.insecure"],
            "granting entitlement security.insecure is not allowed by build daemon configuration",
        ),
        (["--target", "nope"], 'target stage "nope" could not be found'),
        (["-f", "missing"], "failed to read dockerfile: open missing: no such file or directory"),
        (["--platform", "linux/amd64,linux/arm64"], "Multi-platform build is not supported for the docker driver"),
        (["--cache-to", "type=local,dest=c"], "Cache export is not supported for the docker driver"),
        (["-o", "type=oci,dest=o.tar"], "OCI exporter is not supported for the docker driver"),
    ],
)
def test_what_cannot_be_done_is_refused_in_dockerds_words(
    moored: Moored, tmp_path: Path, options: list[str], words: str
) -> None:
    context = write(tmp_path, {"Dockerfile": "FROM busybox\n"})
    done = run(moored, "buildx", "build", "--progress=plain", *options, str(context), folder=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr


def test_clients_of_before_build_without_grpc(moored: Moored) -> None:
    context = tar_bytes({"Dockerfile": b"FROM busybox\nARG A\nCOPY x /x\nRUN echo $A >> /x; echo said\n", "x": b"1\n"})
    query = {
        "version": "2",
        "t": "before",
        "buildargs": json.dumps({"A": "2"}),
        "labels": json.dumps({"l": "m"}),
        "buildid": "b1",
    }
    reply = moored.api.call("POST", "/build", query=query, body=context, headers={"Content-Type": "application/x-tar"})
    messages = [json.loads(line) for line in reply.body.splitlines()]
    assert "error" not in messages[-1], messages[-1]
    told = b"".join(base64.b64decode(each["aux"]) for each in messages if each["id"] == "moby.buildkit.trace")
    assert b"RUN echo" in told
    assert b"said\n" in told
    (image,) = (each["aux"]["ID"] for each in messages if each["id"] == "moby.image.id")
    assert moored.docker("image", "inspect", "-f", "{{.Id}} {{.Config.Labels.l}}", "before") == f"{image} m"
    assert moored.docker("run", "--rm", "--net=none", "before", "cat", "/x") == "1\n2"


def test_a_build_is_ended_by_its_id(moored: Moored) -> None:
    def runs() -> bool:
        return moored.sandbox.run("pgrep", "-fx", "sleep 1018", check=False).returncode == 0

    context = tar_bytes({"Dockerfile": b"FROM busybox\nRUN sleep 1018\n"})
    with ThreadPoolExecutor() as pool:
        query = {"version": "2", "buildid": "endless"}
        building = pool.submit(moored.api.call, "POST", "/build", query=query, body=context, timeout=120)
        wait_for("the command to run", runs)
        assert moored.api.call("POST", "/build/cancel", query={"id": "endless"}, check=False).status == 200
        last = json.loads(building.result(60).body.splitlines()[-1])
    assert "context canceled" in last["error"]
    wait_for("the command to end", lambda: not runs())


def test_a_daemon_killed_in_the_middle_of_a_build_leaves_nothing_of_it(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    before = moored.api.get("/system/df").json["LayersSize"]
    dockerfile = "FROM busybox\nCOPY big /big\nRUN --mount=type=secret,id=s --mount=type=cache,target=/c sleep 1019\n"
    context = write(tmp_path / "context", {"Dockerfile": dockerfile, "big": "x" * 1_000_000})
    (tmp_path / "secret").write_text("word")
    buildx.install(moored.docker_config)

    def runs() -> bool:
        return moored.sandbox.run("pgrep", "-fx", "sleep 1019", check=False).returncode == 0

    process = subprocess.Popen(
        ["docker", "buildx", "build", "--secret", f"id=s,src={tmp_path / 'secret'}", str(context)],
        env=environment(moored), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("the command to run", runs)
        moored.kill()
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait(60)
    moored.start()
    wait_for("the command to end", lambda: not runs())
    wait_for("the container to go", lambda: not list((moored.data_root / "containers").iterdir()))
    wait_for("what was removed to be gone", lambda: not list((moored.data_root / "tmp" / "images").iterdir()))
    mounts = moored.sandbox.run("cat", "/proc/self/mountinfo").stdout
    assert not [line for line in mounts.splitlines() if "tmpfs" in line and str(moored.data_root) in line]
    done = run(moored, "buildx", "prune", "-af")
    assert done.returncode == 0, done
    assert moored.api.get("/system/df").json["LayersSize"] == before


def test_targets_and_parameters_are_told_without_a_build(moored: Moored, tmp_path: Path) -> None:
    dockerfile = (
        "# VERSION is what is built\nARG VERSION=1\nARG UNUSED\n\n# base has the tools\nFROM busybox:${VERSION:+latest} AS base\n"
        "ARG VERSION\n# FLAG changes things\nARG FLAG=x\nRUN --mount=type=secret,id=tok,required=true --mount=type=ssh true\nFROM base\n"
    )
    context = write(tmp_path, {"Dockerfile": dockerfile})
    buildx.install(moored.docker_config)

    images = moored.docker("images", "-aq")

    def ask(what: str) -> str:
        done = subprocess.run(
            ["docker", "buildx", "build", "--progress=plain", f"--print={what}", str(context)], stdin=subprocess.DEVNULL,
            env={**environment(moored), "BUILDX_EXPERIMENTAL": "1"}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr}\n{moored.log()}"
        return done.stdout

    assert [line.rstrip() for line in ask("targets").splitlines() if line.strip()] == [
        "TARGET    DESCRIPTION", "base      has the tools", "(default)",
    ]  # fmt: skip
    outline = json.loads(ask("outline,format=json"))
    assert [(each["name"], each.get("value"), each.get("description")) for each in outline["args"]] == [
        ("VERSION", "1", "is what is built"), ("FLAG", "x", "changes things"),
    ]  # fmt: skip
    assert [(each["name"], each.get("required")) for each in outline["secrets"]] == [("tok", True)]
    assert [each["name"] for each in outline["ssh"]] == ["default"]
    assert "outline" in ask("subrequests.describe")
    assert moored.docker("images", "-aq") == images
