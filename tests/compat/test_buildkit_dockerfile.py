"""What commands of a Dockerfile find when buildx builds it here: mounts of every kind, other stages, options of the build."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.compat.test_buildkit import build, environment, run, write
from tests.support import buildx
from tests.support.gitserver import commit, served
from tests.support.moored import Moored, wait_for
from tests.support.registry import PASSWORD, USER, basic_auth, registry

pytestmark = pytest.mark.root

#: Says that it is there and waits for the other, for as long as a slow machine may take.
MEET = "touch /meet/{mine} && for _ in $(seq 600); do [ -e /meet/{other} ] && exit 0; sleep 0.1; done; exit 9"


def folder(tmp_path: Path, name: str, dockerfile: str, **files: str) -> Path:
    return write(tmp_path / name, {"Dockerfile": dockerfile, **files})


def test_stages_are_built_side_by_side(moored: Moored, tmp_path: Path) -> None:
    stages = [
        f"FROM busybox AS {mine}\nRUN --mount=type=cache,id=sides,target=/meet {MEET.format(mine=mine, other=other)}\n"
        for mine, other in (("one", "two"), ("two", "one"))
    ]
    last = "FROM scratch\nCOPY --from=one /bin/true /\nCOPY --from=two /bin/false /\n"
    build(moored, folder(tmp_path, "sides", "".join([*stages, last])))


def test_a_cache_is_kept_for_later_builds_until_it_is_pruned(moored: Moored, tmp_path: Path) -> None:
    write_it = "FROM busybox\nRUN --mount=type=cache,target=/kept,uid=7,mode=0711 stat -c %a:%u /kept; echo mine > /kept/file\n"
    read_it = "FROM busybox\nRUN --mount=type=cache,id=/kept,target=/elsewhere cat /elsewhere/file || echo nothing\n"
    assert " 711:7\n" in build(moored, folder(tmp_path, "one", write_it))
    assert " mine\n" in build(moored, folder(tmp_path, "two", read_it))
    kept = [each for each in moored.api.get("/system/df").json["BuildCache"] if each["Type"] == "exec.cachemount"]
    assert any(each["Size"] == 5 and "/kept" in each["Description"] for each in kept), kept
    moored.docker("builder", "prune", "--all", "--force")
    assert " nothing\n" in build(moored, folder(tmp_path, "three", read_it))


def test_a_cache_is_lent_to_one_at_a_time_or_to_each_its_own(moored: Moored, tmp_path: Path) -> None:
    alone = "mkdir /c/lock && sleep 1 && rmdir /c/lock"
    locked = "FROM busybox AS l{mine}\nRUN --mount=type=cache,id=l,target=/c,sharing=locked {alone} # {mine}\n"
    own = (
        "FROM busybox AS {mine}\nRUN --mount=type=cache,id=p,target=/c,sharing=private --mount=type=cache,id=lent,target=/meet "
        "touch /c/{mine} && ( {meet} ) && test $(ls /c | wc -l) = 1\n"
    )
    stages = ""
    for mine, other in (("a", "b"), ("b", "a")):
        stages += locked.format(mine=mine, alone=alone)
        stages += own.format(mine=mine, meet=MEET.format(mine=mine, other=other))
    copies = "".join(f"COPY --from={name} /etc/passwd /{name}\n" for name in ("a", "b", "la", "lb"))
    build(moored, folder(tmp_path, "lent", f"{stages}FROM scratch\n{copies}"))


def test_what_is_mounted_leaves_nothing_behind(moored: Moored, tmp_path: Path) -> None:
    text = (
        "FROM busybox AS other\nRUN mkdir /o && echo theirs > /o/f && ln -s /o /link\n"
        "FROM busybox\n"
        "RUN --mount=type=bind,target=/ctx,rw cat /ctx/a && echo changed > /ctx/a\n"
        "RUN --mount=type=bind,source=a,target=/deep/in/a cat /deep/in/a && ! touch /deep/in/a\n"
        "RUN --mount=type=bind,from=other,source=/link,target=/o cat /o/f && ! touch /o/new\n"
        "RUN --mount=type=bind,from=other,target=/o,rw touch /o/new\n"
        "RUN --mount=type=bind,from=other,source=/link/f,target=/one cat /one\n"
        "RUN --mount=type=tmpfs,target=/t,size=1m ! dd if=/dev/zero of=/t/x bs=1M count=2\n"
        "RUN --mount=type=cache,target=/root/.cache,from=other,source=/o cat /root/.cache/f && touch /root/here\n"
        "RUN <<END\n#!/bin/sh\necho ran as $0\nEND\n"
        "RUN --network=none ! ip link show eth0\n"
        "RUN ! ls /ctx /deep /o /t /dev/pipes /root/.cache 2>/dev/null && ls /root/here\n"
    )
    said = build(moored, folder(tmp_path, "left", text, a="content\n"), "-t", "left")
    assert said.count(" content\n") == 2
    assert said.count(" theirs\n") == 3
    assert " ran as /dev/pipes/END\n" in said
    assert not re.search(r"private-|bound-|read-", moored.sandbox.run("cat", "/proc/mounts").stdout)


def test_a_secret_may_be_a_variable_of_the_command(moored: Moored, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("whisper")
    text = (
        "FROM busybox\nENV TOKEN=public\n"
        "RUN --mount=type=secret,id=s,env=TOKEN,required=true test ${#TOKEN} = 7 && test $TOKEN != public0 && ! ls /run/secrets\n"
        "RUN --mount=type=secret,id=s,target=/etc/own,mode=0440,uid=3,gid=4 stat -c %a:%u:%g /etc/own\nRUN echo $TOKEN\n"
    )
    said = build(
        moored, folder(tmp_path, "secret-variable", text), "--secret", f"id=s,src={tmp_path / 'secret'}", "-t", "told"
    )
    assert " 440:3:4\n" in said
    assert " public\n" in said
    done = subprocess.run(
        ["grep", "-rlaF", "whisper", str(moored.data_root)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "", "nothing on disk tells"


def test_options_of_the_build_reach_its_commands(moored: Moored, tmp_path: Path) -> None:
    text = "FROM busybox\nARG HTTP_PROXY\nRUN cat /etc/hosts; ulimit -n; df -k /dev/shm | tail -1; hostname; ! ip link show eth0\n"
    options = ["--add-host", "peer:10.9.8.7", "--ulimit", "nofile=123:456", "--shm-size", "5m", "--network", "none"]
    said = build(moored, folder(tmp_path, "options", text), *options)
    assert re.search(r"10\.9\.8\.7\s+peer", said)
    assert " 123\n" in said
    assert re.search(r"shm\s+5120\s", said)
    assert " buildkitsandbox\n" in said


def test_a_daemon_that_is_killed_takes_secrets_and_mounts_of_its_builds_along(
    fresh_moored: Moored, tmp_path: Path
) -> None:
    moored = fresh_moored
    (tmp_path / "secret").write_text("whisper")
    text = (
        "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=bind,target=/c,rw --mount=type=cache,target=/k "
        "echo begun && sleep 1000\n"
    )
    context = folder(tmp_path, "killed", text)
    buildx.install(moored.docker_config)
    command = [
        "docker",
        "buildx",
        "build",
        "--progress=plain",
        "--secret",
        f"id=s,src={tmp_path / 'secret'}",
        str(context),
    ]
    with ThreadPoolExecutor(1) as pool:
        client = subprocess.Popen(
            command,
            env=environment(moored),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert client.stdout is not None
        for line in client.stdout:
            if line.endswith(" begun\n"):
                break
        assert "/private-" in moored.sandbox.run("cat", "/proc/mounts").stdout
        assert moored.docker("ps", "-aq") == "", "the command's container is in no list"
        moored.kill()
        assert pool.submit(client.wait, 60).result() != 0
        client.stdout.close()
    moored.start()
    wait_for("the container's layer to go", lambda: not list((moored.data_root / "mounts").iterdir()))
    assert not re.search(r"private-|bound-", moored.sandbox.run("cat", "/proc/mounts").stdout)
    wait_for("what was removed to be gone", lambda: not list((moored.data_root / "tmp" / "images").iterdir()))
    assert (
        run(
            moored,
            "buildx",
            "build",
            str(folder(tmp_path, "after", "FROM busybox\nRUN --mount=type=cache,target=/k ls /k\n")),
        ).returncode
        == 0
    )


def test_an_image_is_a_cache_for_another_engine(moored: Moored, tmp_path: Path) -> None:
    text = "FROM busybox AS made\nRUN echo $RANDOM > /made\nFROM made\nCOPY --link a /new/a\nRUN cat /made > /again\n"
    context = folder(tmp_path, "cached", text, a="content")
    build(moored, context, "-t", "cache:1", "--cache-to", "type=inline")
    image = moored.docker("image", "inspect", "-f", "{{.Id}}", "cache:1")
    moored.docker("save", "-o", str(tmp_path / "image.tar"), "cache:1")
    moored.docker("rmi", "cache:1")
    moored.docker("builder", "prune", "--all", "--force")
    moored.docker("load", "-i", str(tmp_path / "image.tar"))
    said = build(
        moored,
        context,
        "-t",
        "built:1",
        "--cache-from",
        "cache:1",
        "--cache-from",
        "not.there.invalid/cache",
        "--cache-to",
        "type=inline",
    )
    assert said.count(" CACHED\n") >= 3, said
    assert moored.docker("image", "inspect", "-f", "{{.Id}}", "built:1") == image
    assert moored.api.get("/system/df").json["BuildCache"] == [], "an image's word on its layers is no other build's"
    assert " CACHED\n" in build(moored, context, "--cache-from", "cache:1")


def test_a_base_is_looked_up_each_time_and_is_no_image_of_the_engine(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    with registry(tmp_path / "registry", basic_auth(tmp_path), sandbox_command=moored.sandbox.command()) as closed:
        base = f"{closed.host}/base:1"
        moored.docker("login", "-u", USER, "-p", PASSWORD, closed.host)

        def push(text: str) -> None:
            classic = folder(tmp_path, text, f"FROM busybox\nRUN echo {text} > /which\n")
            moored.docker("build", "-t", base, str(classic))
            moored.docker("push", base)
            moored.docker("rmi", base)

        push("first")
        before = moored.docker("images", "-aq")
        context = folder(tmp_path, "on-it", f"FROM {base}\nRUN cat /which\n")
        assert " first\n" in build(moored, context, "--output", f"type=tar,dest={tmp_path / 'out.tar'}")
        assert moored.docker("images", "-aq") == before
        assert " CACHED\n" in build(moored, context, "--output", f"type=tar,dest={tmp_path / 'out.tar'}")
        moored.kill()
        moored.start()
        assert " CACHED\n" in build(moored, context, "--output", f"type=tar,dest={tmp_path / 'out.tar'}")
        push("second")
        assert " second\n" in build(moored, context, "--output", f"type=tar,dest={tmp_path / 'out.tar'}")
        assert f"pulled from {base}" in str(moored.api.get("/system/df").json["BuildCache"])
        moored.docker("builder", "prune", "--all", "--force")
        assert moored.api.get("/system/df").json["BuildCache"] == []
        moored.docker("logout", closed.host)
        done = run(moored, "buildx", "build", str(context))
        assert done.returncode != 0
        assert f"{base}: failed to resolve source metadata for {base}: " in done.stderr


def test_a_repository_is_a_context_and_a_source(moored: Moored, tmp_path: Path) -> None:
    repositories = tmp_path / "repositories"
    dockerfile = "FROM busybox\nCOPY . /c/\nRUN ls -A /c; cat /c/file\n"
    commit(
        repositories / "main.git",
        {"Dockerfile": dockerfile, "file": "one\n", "dir/Dockerfile": dockerfile, "dir/file": "below\n"},
    )
    commit(repositories / "main.git", {"file": "two\n"}, branch="side")
    with served(repositories, moored.sandbox) as server:
        address = f"{server.http}/main.git"
        said = run(moored, "buildx", "build", "--progress=plain", f"{address}#side").stderr
        assert " two\n" in said, said
        assert " .git\n" not in said
        kept = ("--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1")
        assert " .git\n" in run(moored, "buildx", "build", "--progress=plain", *kept, f"{address}#side").stderr
        assert " below\n" in run(moored, "buildx", "build", "--progress=plain", f"{address}#master:dir").stderr
        text = f"FROM busybox\nADD {address}#side /g\nADD --keep-git-dir=true {address}#master /k\nRUN ls -A /g; ls -A /k; cat /g/file /k/file\n"
        said = build(moored, folder(tmp_path, "adding", text))
        assert said.count(" .git\n") == 1
        assert " two\n" in said
        assert " one\n" in said


def test_builds_side_by_side_and_clients_that_die_leave_nothing(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    text = (
        "FROM busybox AS a\nCOPY d /d\nRUN --mount=type=cache,target=/c,sharing=locked echo 1 > /c/1\n"
        "FROM busybox AS b\nWORKDIR /w\nCOPY --link d /dd\nRUN --mount=type=cache,target=/p,sharing=private echo hi > /hi\n"
        "FROM a\nCOPY --from=b /hi /hi\nRUN --mount=type=bind,from=b,target=/b ls /b/dd\n"
    )
    context = folder(tmp_path, "busy", text, **{"d/f": "file"})
    buildx.install(moored.docker_config)
    before = moored.api.get("/system/df").json["LayersSize"]

    def whole(number: int) -> None:
        build(moored, context, "-t", f"busy{number}", *(["--no-cache"] if number % 2 else []))

    def dying(number: int) -> None:
        command = ["docker", "buildx", "build", "--no-cache", "--progress=plain", str(context)]
        with subprocess.Popen(
            command, env=environment(moored), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as client:
            assert client.stderr is not None
            for line in client.stderr:
                if re.match(rf"#{4 + 2 * number} ", line):
                    break
            client.kill()

    with ThreadPoolExecutor(6) as pool:
        for done in [
            *(pool.submit(whole, number) for number in range(4)),
            *(pool.submit(dying, number) for number in range(3)),
        ]:
            done.result()
    moored.docker("rmi", *(f"busy{number}" for number in range(4)))
    moored.docker("image", "prune", "--force")

    def pruned() -> bool:
        moored.docker("builder", "prune", "--all", "--force")
        return bool(moored.api.get("/system/df").json["LayersSize"] == before)

    wait_for("builds of dead clients to end and everything to be pruned", pruned)
    places = [moored.data_root / each for each in ("tmp/images", "buildcache", "mounts", "containers")]
    wait_for("everything to be removed", lambda: not [path for place in places for path in place.iterdir()])
    assert str(moored.data_root) not in moored.sandbox.run("cat", "/proc/mounts").stdout
