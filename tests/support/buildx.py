"""Debian's buildx plugin, unpacked but not installed, and a stand-in for the image of BuildKit that it works with."""

import re
from pathlib import Path

from tests.support.packages import unpacked

IMAGE = "moby/buildkit:buildx-stable-1"

SUITE = "trixie"

_BUILDKITD = """#!/bin/sh
echo "$@" > /var/lib/buildkit/arguments
exec sleep 100000
"""

#: Speaks as much HTTP/2 as one call of gRPC needs. Every call is answered alike, with what a list of workers looks like.
_BUILDCTL = """#!/bin/sh
[ "$1" = dial-stdio ] || exit 0
cat /answers/hello
dd bs=1 count=60 of=/answers/asked 2>/dev/null
cat /answers/workers
exec cat > /dev/null
"""


def plugin() -> Path:
    """Return the plugin's file; Debian's package is unpacked on first use (about 80 MB)."""
    name = "usr/libexec/docker/cli-plugins/docker-buildx"
    return unpacked("buildx-root", SUITE, "docker-buildx", name) / name


def write_context(folder: Path) -> None:
    """Write a build context for `IMAGE`: a buildkitd that only waits and a buildctl that gives prepared answers."""
    platform = _field(1, b"amd64") + _field(2, b"linux")
    worker = _field(1, b"stand-in") + _field(3, platform)
    go_away = b"\0\0\0\1" + bytes(4)  # stream 1 was the last: the next call makes a connection of its own
    files: dict[str, str | bytes] = {
        "bin/buildkitd": _BUILDKITD,
        "bin/buildctl": _BUILDCTL,
        "answers/hello": _frame(4, 0, 0) + _frame(4, 1, 0),
        "answers/workers": _answer(1, _field(1, worker)) + _frame(7, 0, 0, go_away),
        "Dockerfile": "FROM busybox\nCOPY --chmod=755 bin /usr/bin/\nCOPY answers /answers\n"
        'RUN mkdir -p /var/lib/buildkit /etc/buildkit\nENTRYPOINT ["buildkitd"]\n',
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _field(number: int, value: bytes) -> bytes:
    """A field of protobuf with a length; short values only."""
    return bytes([number << 3 | 2, len(value)]) + value


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _header(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _answer(stream: int, message: bytes) -> bytes:
    """A successful answer of gRPC: headers, one message, trailers."""
    status_200 = b"\x88"
    head = status_200 + _header(b"content-type", b"application/grpc")
    data = b"\0" + len(message).to_bytes(4, "big") + message
    return _frame(1, 4, stream, head) + _frame(0, 0, stream, data) + _frame(1, 5, stream, _header(b"grpc-status", b"0"))


def install(config: Path) -> None:
    """Make the plugin one of the CLI whose configuration is in a folder."""
    plugins = config / "cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    if not (plugins / "docker-buildx").exists():
        (plugins / "docker-buildx").symlink_to(plugin())


def lines(output: str) -> list[str]:
    """Return what buildx says with --progress=plain, without what no two builds have in common: times, sizes, digests, numbers
    of steps and the order of steps that run side by side.
    """
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        number, _, text = line.partition(" ") if re.match(r"#\d+ ", line) else ("", "", line)
        if not text or number == "#0":
            continue
        text = re.sub(r"\bsha256:[0-9a-f]{64}", "sha256:ID", text)
        text = re.sub(r"\b\d+(\.\d+)?(kB|MB|B)\b( / \d+(\.\d+)?(kB|MB|B))?", "SIZE", text)
        text = re.sub(r" ?\b\d+\.\d+s\b", "", text)
        text = re.sub(r"(transferring \w+:) SIZE", r"\1", text)
        text = re.sub(r"(checksum of ref) .*?: ", r"\1 ID: ", text)
        text = re.sub(r" \(did you mean .*\)", "", text)  # of two that are as near either is said
        text = re.sub(r"^(> )?\d+\.\d+ ", r"\1", text)
        step = found.setdefault(number, [])
        if number and (text == "..." or text == next(iter(step), "")):  # steps that run side by side are shown in turns
            continue
        if not re.match(
            r"(sha256:ID SIZE|transferring \w+:$|(exporting layers|writing image \S+|naming to \S+)$|copying files SIZE$|DONE$)",
            text,
        ):
            step.append(text)
    steps = [step for number, step in found.items() if number]
    return [line for step in sorted(steps) for line in step] + found.get("", [])
