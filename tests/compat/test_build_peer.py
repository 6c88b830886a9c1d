"""The same Dockerfiles built here and by dockerd's classic builder: output, errors, configuration, history and files are equal."""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.dockerd import Dockerd
from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox, running_moored

pytestmark = pytest.mark.root

FILES = {
    "a.txt": "a\n", "b.txt": "b\n", "d/x": "x\n", "d/y/z": "z\n", "d/.hid": "h\n", "e/1.go": "1", "e/2.go": "2",
    "e/3.txt": "3", "with space": "s", ".dockerignore": "secret\n*.log\n!keep.log\n", "secret": "s", "keep.log": "k",
    "other.log": "o",
}  # fmt: skip

#: Images that are built: the lines after FROM busybox.
BUILT = {
    "env": r'ENV A=1 B="x y" C=$A D=${A:-d} E=${Q:-d} F=${A:+s} H=\$A I="\"q\"" J=\'$A\' K=a\ b' "\nENV OLD some value with  spaces\nRUN env | grep -v HOSTNAME | sort > /env",
    "label": "LABEL a=b \"c d\"=\"e f\" g='h $i' multi=\"l1\\\n l2\"\nLABEL x y z",
    "commands": 'ENTRYPOINT b\nCMD a\nSHELL ["/bin/ash","-ec"]\nRUN echo $0 > /sh\nCMD c d',
    "a command that goes with its entrypoint": 'ENTRYPOINT ["x"]\nCMD\nEXPOSE 80 443/tcp 53/udp 8000-8002 80:81',
    "folders": "WORKDIR a\nWORKDIR b/../c\nWORKDIR /x/y/\nENV W=z\nWORKDIR $W\nRUN pwd > /pwd",
    "users": "USER daemon:33\nRUN id > /tmp/id; touch /tmp/f\nUSER ${U:-www-data}\nRUN id > /tmp/id2\nUSER a b",
    "volumes": 'VOLUME /a "/b" d\nVOLUME ["/e","/f g"]\nRUN echo x > /a/x\nCOPY a.txt /e/',
    "signal and maintainer": "ARG S=9\nSTOPSIGNAL $S\nMAINTAINER Some One <a@b>",
    "arguments": 'ARG A=1\nARG B\nARG C="q r"\nARG D=${A}x\nRUN echo "$A $B $C $D" > /o\nENV A=env\nRUN echo $A > /o2',
    "copies": 'WORKDIR /w\nCOPY a.txt b.txt /t/\nCOPY d /dd\nCOPY d/ ../up/\nCOPY a.txt rel\nCOPY a.txt .\nCOPY e/*.go /go/\nCOPY ["with space","/sp/"]\nCOPY . /all/',
    "copies through links and to owners": "RUN ln -s /real /lnk && mkdir /real\nCOPY a.txt /lnk/\nCOPY --chown=33:33 d /o\nCOPY --chown=daemon a.txt /o2\nCOPY --chown=5 a.txt /new/o4",
    "changes of files": "RUN rm /etc/passwd && mkdir /n && chmod 1777 /n && mkfifo /f && ln -s x /l && echo a > /a && ln /a /b\nRUN rm -r /n && echo n > /n; chmod 600 /b",
    "continued lines": "RUN echo a && \\\n   # comment\n   echo b > /b\nRUN echo \"x\\\ny\" > /y\nenv c=3",
    "a name in quotes": 'MAINTAINER "Some One <$a@b>"\nCMD []',
    "health checks": "HEALTHCHECK --interval=90s --timeout=1500ms --retries=3 CMD [\"a\", \"b \\\"c\\\"\"]\nHEALTHCHECK --start-period=2h CMD x y\nHEALTHCHECK NONE",
    "links at the end": "RUN echo 1 > /real && ln -s real /l && ln -s /nowhere/at /m && mkdir /nowhere /d1 && ln -s d1 /d2\nCOPY a.txt /l\nCOPY a.txt /m\nCOPY a.txt /d2\nCOPY d /d2",
    "flags without effect": "COPY --link a.txt /x\nADD --link=false b.txt /y",
    "empty lines in a command": "RUN echo a \\\n\n && echo b\nENV A=1 \\\n\n\n  B=2",
    "triggers": "ONBUILD ENV Q=1\nFROM s0\nRUN echo $Q > /q",
    "stages": "RUN echo 1 > /1\nFROM s0 as two\nRUN echo 2 > /2\nFROM busybox\nCOPY --from=two /1 /2 /r/\nCOPY --from=0 /1 /r0\nCOPY --from=busybox /etc/passwd /pw",
}  # fmt: skip

#: Dockerfiles that are refused, whole.
REFUSED = {
    "a failed expansion": "FROM busybox\nENV A=${B:?oops}",
    "half a pair": "FROM busybox\nRUN true\nENV A=1 B",
    "no name": "FROM busybox\nRUN true\nLABEL =1",
    "a shell without JSON": "FROM busybox\nRUN true\nSHELL /bin/sh -c",
    "no health": "FROM busybox\nRUN true\nHEALTHCHECK --interval=x CMD a",
    "negative health": "FROM busybox\nHEALTHCHECK --retries=-1 CMD a",
    "a trigger of triggers": "FROM busybox\nONBUILD ONBUILD RUN x",
    "a copy to nowhere": "FROM busybox\nRUN true\nCOPY a.txt",
    "a copy of nothing": "FROM busybox\nCOPY nope /",
    "a copy of two to one": "FROM busybox\nCOPY a.txt b.txt /x",
    "a copy of what is ignored": "FROM busybox\nCOPY secret /x",
    "a copy from outside": "FROM busybox\nCOPY ../a /",
    "a copy to nobody": "FROM busybox\nCOPY --chown=nouser a.txt /",
    "a copy from the stage itself": "FROM busybox\nCOPY --from=0 foo bar",
    "a copy from a later stage": "FROM busybox\nCOPY --from=5 /x /y",
    "a copy of nothing from a stage": "FROM busybox AS s\nFROM scratch\nCOPY --from=s /nope /x",
    "a failing command": "FROM busybox\nRUN echo err >&2; exit 3",
    "a volume over a file": "FROM busybox\nRUN echo x > /f\nVOLUME /f",
    "a folder over a file": "FROM busybox\nRUN echo x > /f\nWORKDIR /f",
    "a mount": "FROM busybox\nRUN --mount=type=cache,target=/x true",
    "a network": "FROM busybox\nRUN --network=none true",
    "a flag of another instruction": "FROM busybox\nRUN --from=1 true",
    "a flag of later times": "FROM busybox\nCOPY --parents a.txt /x",
    "a flag that nearly is one": "FROM busybox\nCOPY --foo=1 a.txt /",
    "an instruction that nearly is one": "FROM busybox\nCOPPY a.txt /",
    "nobody who maintains": "FROM busybox\nMAINTAINER",
    "no port": "FROM busybox\nEXPOSE 99999",
    "no protocol": "FROM busybox\nEXPOSE 80/foo",
    "no signal": "FROM busybox\nSTOPSIGNAL FOO",
    "no user": "FROM busybox\nUSER",
    "no instruction": "FROM busybox\nRUN true\n\nWHATEVER x",
    "no stage": "RUN x",
    "a stage twice": "FROM busybox AS x\nFROM busybox AS X",
    "a stage's strange name": "FROM busybox AS 1x",
    "two words after from": "FROM busybox foo",
    "nothing": "# only a comment",
    "two escapes": "# escape=`\n# escape=`\nFROM busybox",
}

Docker = Callable[..., Any]


@pytest.fixture(scope="module")
def builders() -> Iterator[tuple[Moored, Dockerd]]:
    with running_moored() as ours, Sandbox() as sandbox:
        peer = Dockerd(sandbox)
        try:
            peer.start()
            for docker in (ours.docker, peer.docker):
                docker("load", "-i", str(busybox_archive()))
            yield ours, peer
        finally:
            peer.close()


def plain(text: str) -> list[str]:
    """What is said, without ids and without the containers that only dockerd makes for steps that run nothing."""
    text = re.sub(r"[0-9a-f]{64}|\b[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"/var/tmp/\S+/merged/", "/", text)
    passing = ("Sending build context", " ---> Running in", " ---> Removed intermediate", "DEPRECATED:")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(passing)]
    return [
        line for line in lines if not line.lstrip().startswith(("BuildKit is currently disabled", "environment-var"))
    ]


def layers(archive: Path) -> list[dict[str, Any]]:
    """What is in every layer but the base's; times are told when they are a file's own."""
    found = []
    with tarfile.open(archive) as outer:

        def read(name: str) -> Any:
            file = outer.extractfile(name)
            assert file is not None
            return file

        for name in json.load(read("manifest.json"))[0]["Layers"][1:]:
            with tarfile.open(fileobj=read(name)) as layer:
                entries = {}
                for each in layer:
                    file = layer.extractfile(each) if each.isfile() else None
                    content = hashlib.sha256(file.read()).hexdigest() if file is not None else each.linkname
                    own = each.isfile() and each.mtime < 1_100_000_000
                    entries[each.name.rstrip("/")] = (
                        each.type, oct(each.mode), each.uid, each.gid, content, int(each.mtime) if own else "now",
                    )  # fmt: skip
                found.append(entries)
    return found


def outcome(docker_run: Docker, folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    done = docker_run("build", "--no-cache", "-t", "compared", *arguments, str(folder))
    said: dict[str, Any] = {"status": done.returncode, "output": plain(done.stdout), "errors": plain(done.stderr)}
    if done.returncode != 0:
        return said
    image = json.loads(docker_run("image", "inspect", "compared").stdout)[0]
    config = {key: value for key, value in image["Config"].items() if value not in (None, "", [], {}, False)}
    said["config"] = {key: value for key, value in config.items() if key not in ("Image", "Hostname")}
    said["author"] = image["Author"]
    rows = docker_run("history", "--no-trunc", "--format", "{{json .}}", "compared").stdout.splitlines()
    said["history"] = [(plain(row["CreatedBy"]), row["Size"]) for row in map(json.loads, rows)][:-1]
    archive = folder.parent / "compared.tar"
    assert docker_run("save", "-o", str(archive), "compared").returncode == 0
    said["layers"] = layers(archive)
    docker_run("rmi", "-f", "compared")
    return said


def compare(builders: tuple[Moored, Dockerd], tmp_path: Path, dockerfile: str, *arguments: str) -> None:
    folder = tmp_path / "context"
    for name, text in {**FILES, "Dockerfile": dockerfile + "\n"}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    ours, peer = builders
    assert outcome(ours.docker_run, folder, arguments) == outcome(peer.docker_run, folder, arguments)


@pytest.mark.parametrize("what", BUILT)
def test_images_come_out_alike(builders: tuple[Moored, Dockerd], tmp_path: Path, what: str) -> None:
    compare(builders, tmp_path, f"FROM busybox AS s0\n{BUILT[what]}", "--build-arg", "B=bee", "--label", "z=1")


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_worded_alike(builders: tuple[Moored, Dockerd], tmp_path: Path, what: str) -> None:
    compare(builders, tmp_path, REFUSED[what])
