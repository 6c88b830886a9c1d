"""The same builds by docker buildx here and on dockerd's BuildKit: what is said, what fails and how, and the images are equal."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compat.test_build_peer import FILES, Docker, layers
from tests.support import buildx
from tests.support.dockerd import Dockerd
from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox, running_moored

pytestmark = pytest.mark.root

#: Dockerfiles that are built.
BUILT = {
    "stages of which one is not needed": "FROM busybox AS one\nRUN echo 1 > /1\nFROM busybox AS unused\nRUN false\nFROM one\nCOPY --from=one /1 /2\n",
    "a here-document": "FROM busybox\nRUN <<EOF\necho a > /a\necho b > /b\nEOF\nCOPY <<one <<two /d/\n1\none\n2\ntwo\n",
    "mounts": "FROM scratch AS from\nCOPY a.txt /f\nFROM busybox\nRUN --mount=type=bind,from=from,target=/m cat /m/f > /g\n"
    "RUN --mount=type=tmpfs,target=/t touch /t/x\nRUN --mount=type=cache,target=/c echo c > /c/x\n"
    "RUN --mount=type=secret,id=none test ! -e /run/secrets/none\nRUN ls / > /left\n",
    "copies": "FROM busybox\nWORKDIR /w\nCOPY --chmod=600 --chown=33:44 a.txt /t/\nCOPY --link d /dd/\nCOPY e/*.go ./go/\nADD b.txt /added\n",
    "settings": 'FROM busybox\nARG A=1\nENV B=${A:-x} C=y\nLABEL l="$B"\nUSER daemon\nEXPOSE 80\nVOLUME /v\nSTOPSIGNAL 9\nENTRYPOINT ["a"]\nCMD b c\n'
    "HEALTHCHECK --interval=3s CMD true\nONBUILD RUN x\nSHELL [\"/bin/ash\", \"-c\"]\n",
    "platforms that are asked for": "FROM busybox\nARG TARGETPLATFORM\nARG BUILDARCH\nRUN echo $TARGETPLATFORM $BUILDARCH > /p\n",
    "a line that goes on": "FROM busybox\nRUN echo a \\\n  # between\n  && echo b > /b\n",
    "no network": "FROM busybox\nRUN --network=none ip link > /dev/null\n",
    "arguments and the environment": "ARG V=busybox\nARG X=1\nFROM ${V}:latest AS a\nARG X\nARG Y=$X\nENV Z=$Y\nARG Z=no\nRUN echo $X $Y $Z > /o\n"
    "FROM a\nRUN echo $X $Y > /p\nARG X\nRUN echo $X > /q\n",
    "here-documents of every kind": "FROM busybox\nARG A=1\nRUN <<E\n#!/bin/ash\necho $0 $A > /s\nE\nRUN <<-A cat > /x && <<'B' cat > /y\n\ta $A\n\tA\nb $A\nB\n"
    "COPY <<\"one\" <<-two /d/\nq $A\none\n\t\\$A \"$A\" '$A' \\\\ \\n\n\ttwo\nCOPY --chmod=755 --chown=5:6 <<EOF /bin/prog\n#!/bin/sh\nEOF\nADD <<EOF /added\nx\nEOF\n",
    "files alone": "FROM scratch\nCOPY a.txt d /x/\nENV A=b\nWORKDIR /q\n",
    "nothing but a base": "FROM busybox\n",
    "links to copy onto": "FROM busybox\nRUN mkdir /real && ln /etc/passwd /hard\nCOPY d /real\nADD --link a.txt /z\nCOPY --link --chown=daemon a.txt /zz\n",
    "modes and owners": "FROM busybox\nCOPY --chmod=0644 d /a\nCOPY --chmod=4755 a.txt /b\nCOPY --chown=daemon:33 --chmod=700 d /c\nCOPY --chown=33 a.txt /n/m/\n"
    "COPY --chown=nobody-knows a.txt /r\n",
    "users and their folders": "FROM busybox\nUSER daemon\nWORKDIR /made\nRUN id > /tmp/id\nUSER 33:44\nRUN id > /tmp/id2\nCOPY a.txt /u\nWORKDIR rel\nWORKDIR /x/y/\n",
    "variables of every form": "FROM busybox\nARG F=a.txt\nENV P=/x/y.tar.gz E=\n"
    "ENV A=${P#*/} B=${P##*/} C=${P%.*} D=${P%%.*} F1=${E:-d} G=${E-d} H=${E:+x} I=${P/x/q} J=${P//./_}\nCOPY $F ${P%%.*}/$F\n"
    "LABEL a=\"$P\" b='$P'\nEXPOSE ${E:-99}\nRUN env | grep -v -E 'PWD|SHLVL' | sort > /env\n",
    "many steps": "FROM busybox\nWORKDIR /w\nCOPY a.txt b.txt /t/\nCOPY d /dd\nCOPY d/ ../up/\nCOPY a.txt rel\nCOPY a.txt .\nCOPY e/*.go /go/\n"
    'COPY ["with space","/sp/"]\nCOPY . /all/\nCMD\nENTRYPOINT x y\n',
    "empty lines in a command": "FROM busybox\nRUN echo a \\\n\n && echo b\nENV A=1 \\\n\n\n  B=2\n",
}  # fmt: skip

#: Dockerfiles that are not.
REFUSED = {
    "a failing command": "FROM busybox\nRUN echo fine\nRUN echo err >&2; exit 3\n",
    "a failing command of several lines": "FROM busybox\nRUN true && \\\n  false\nRUN true\n",
    "a failing here-document": "FROM busybox\nRUN <<EOF\nset -e\nfalse\nEOF\n",
    "an instruction that nobody knows": "FROM busybox\nWHATEVER x\n",
    "an unknown flag": "FROM busybox\nCOPY --whatever=1 a.txt /\n",
    "a copy of nothing": "FROM busybox\nCOPY nope /\n",
    "a copy of what is ignored": "FROM busybox\nCOPY secret /x\n",
    "a secret that has to be": "FROM busybox\nRUN --mount=type=secret,id=x,required=true true\n",
    "nothing": "# only a comment\n",
    "no stage": "RUN x\n",
    "a port that is none": "FROM busybox\nEXPOSE 99999\n",
    "a mount of a kind that is none": "FROM busybox\nRUN --mount=type=foo true\n",
    "a mount with what it has not": "FROM busybox\nRUN --mount=type=tmpfs,target=/a,uid=3 true\n",
    "a mount over everything": "FROM busybox\nRUN --mount=type=cache true\n",
    "a cache that is shared strangely": "FROM busybox\nRUN --mount=type=cache,target=/a,sharing=x true\n",
    "a mount from a variable": "FROM busybox\nARG A=b\nRUN --mount=type=bind,target=/a,from=$A true\n",
    "a mount of nothing": "FROM busybox\nRUN --mount=type=bind,target=/a,source=nope true\n",
    "a strange network": "FROM busybox\nRUN --network=foo true\n",
    "a here-document without end": "FROM busybox\nRUN <<E\nfoo\n",
    "a copy from a later stage": "FROM busybox AS a\nCOPY --from=b x /\nFROM a AS b\nRUN true\n",
    "a copy from itself": "FROM busybox AS a\nCOPY --from=a /etc/passwd /\n",
    "a copy from a stage that is not there": "FROM busybox\nCOPY --from=7 x /\n",
    "a base without a name": "ARG x\nFROM $x\n",
    "a checksum that is none": "FROM busybox\nADD --checksum=sha256:12 http://127.0.0.1:1/x /x\n",
    "half a variable": "FROM busybox\nENV A\n",
    "a variable that has to be": "FROM busybox\nENV A=${B:?oops}\n",
}


@pytest.fixture(scope="module")
def builders() -> Iterator[tuple[Moored, Dockerd]]:
    with running_moored() as ours, Sandbox() as sandbox:
        peer = Dockerd(sandbox)
        try:
            peer.start()
            for docker in (ours.docker, peer.docker):
                docker("load", "-i", str(busybox_archive()))
            buildx.install(ours.docker_config)
            buildx.install(peer.base / "docker-config")
            yield ours, peer
        finally:
            peer.close()


def outcome(docker_run: Docker, folder: Path) -> dict[str, Any]:
    done = docker_run("buildx", "build", "--no-cache", "--progress=plain", "-t", "compared", str(folder), timeout=120)
    passing = ("CACHED", "...")  # what an earlier case has left, and turns that are taken
    lines = [line for line in buildx.lines(done.stderr) if line not in passing]
    said: dict[str, Any] = {"status": done.returncode, "said": lines}
    if done.returncode != 0:
        return said
    image = json.loads(docker_run("image", "inspect", "compared").stdout)[0]
    config = {key: value for key, value in image["Config"].items() if value not in (None, "", [], {}, False)}
    said["config"] = config
    rows = docker_run("history", "--no-trunc", "--format", "{{json .}}", "compared").stdout.splitlines()
    said["history"] = [(row["CreatedBy"], row["Size"], row["Comment"]) for row in map(json.loads, rows)][:-1]
    archive = folder.parent / "compared.tar"
    assert docker_run("save", "-o", str(archive), "compared").returncode == 0
    # What a container has mounted in /etc leaves that folder's time changed in dockerd.
    said["layers"] = [{name: each for name, each in layer.items() if name != "etc"} for layer in layers(archive)]
    docker_run("rmi", "-f", "compared")
    return said


def compare(builders: tuple[Moored, Dockerd], tmp_path: Path, dockerfile: str) -> None:
    folder = tmp_path / "context"
    for name, text in {**FILES, "Dockerfile": dockerfile}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    ours, peer = builders
    assert outcome(ours.docker_run, folder) == outcome(peer.docker_run, folder)


@pytest.mark.parametrize("what", BUILT)
def test_builds_say_and_make_the_same(builders: tuple[Moored, Dockerd], tmp_path: Path, what: str) -> None:
    compare(builders, tmp_path, BUILT[what])


@pytest.mark.parametrize("what", REFUSED)
def test_what_fails_is_worded_alike(builders: tuple[Moored, Dockerd], tmp_path: Path, what: str) -> None:
    compare(builders, tmp_path, REFUSED[what])
