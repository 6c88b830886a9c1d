"""Malformed requests made from the Engine API's specification, and a sender that takes any answer.

Strategies only: which of them are sent, and what must hold afterwards, is the tests' matter.
"""

import base64
import contextlib
import io
import json
import socket
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from tests.support.openapi import specification

#: Texts that are names of nothing, paths out of something, or hard to carry.
TEXTS: Sequence[str] = (
    "", " ", "\0", "a\0b", "\n", "\r\nX-Injected: 1", ".", "..", "/", "//", "../../../../etc/passwd", "/proc/self/root", "-", "--",
    "=", ":", ":::", ",", "@", "@sha256:", "sha256:" + "f" * 64, "sha256:abc", "f" * 64, "a" * 300, "a" * 5000, "ÄÖ", "💥", "\u202e",
    "\ufeff", "\x7f", "%", "%s%n", "%2f", "{}", "[]", "null", "true", "-1", "0", "1e3", "0x10", "1" * 30, "NaN", "٣", "host", "none",
    "default", "bridge", "container:", "container:no", "busybox", "BusyBox", "*", "(", "$(id)", "${A:-b}", "tcp", "80/tcp",
    "70000/tcp", "1.2.3.4", "::1", "300.1.1.1", "10.0.0.0/33", "02:42:ac:11:00:02", "local", "json-file", "rw,rw", "1h", "-5s",
    "2024-13-45T00:00:00Z", "9" * 400, "SIGKILL", "99", "\ud800",
)  # fmt: skip
NUMBERS: Sequence[Any] = (
    0, -1, 1, 2, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, -1e-300,
)  # fmt: skip
ODDITIES: Sequence[Any] = (None, True, False, [], {}, [None], [[]], {"": None}, [""], {"a": {"a": {}}}, [1, "1", None])

texts = st.sampled_from(TEXTS) | st.text(max_size=12)
numbers = st.sampled_from(NUMBERS)
anything: st.SearchStrategy[Any] = st.one_of(texts, numbers, st.sampled_from(ODDITIES))


def _rarely(draw: Callable[..., Any], one_in: int) -> bool:
    return bool(draw(st.integers(1, one_in)) == one_in)


@st.composite
def values(draw: Callable[..., Any], schema: Mapping[str, Any], depth: int = 0) -> Any:
    """A value that nearly fits a schema: here and there something else stands in its place."""
    if _rarely(draw, 6) or depth > 6:
        return draw(anything)
    if "$ref" in schema:
        return draw(values(specification()["definitions"][schema["$ref"].rpartition("/")[2]], depth))
    if "allOf" in schema:
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            value = draw(values(part, depth))
            merged.update(value if isinstance(value, dict) else {})
        return merged
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]) | texts)
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties", {})
        if properties:
            chosen = draw(st.lists(st.sampled_from(sorted(properties)), max_size=5, unique=True))
            return {name: draw(values(properties[name], depth + 1)) for name in chosen}
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            return {name: draw(values(more, depth + 1)) for name in draw(st.lists(texts, max_size=2, unique=True))}
        return draw(st.sampled_from([{}, {"a": "b"}, {"": ""}]))
    if kind == "array":
        return [draw(values(schema.get("items", {}), depth + 1)) for _ in range(draw(st.integers(0, 2)))]
    if kind == "boolean":
        return draw(st.booleans())
    if kind in ("integer", "number"):
        return draw(numbers)
    return draw(texts)


def tar_bytes(entries: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar archive of files and of whatever a TarInfo says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in entries.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def _special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("x")
    info.type, info.linkname, info.devmajor, info.devminor = kind, link, 1, 3
    return info


_FILE = tar_bytes({"file": b"content"})
_BUILD = tar_bytes({"Dockerfile": b"FROM busybox\nRUN true\nCOPY . /x\n", "a": b"a"})
ARCHIVES: Sequence[bytes] = (
    b"", b"\0" * 1024, _FILE, _FILE[:600], _FILE[:100], b"\x1f\x8b\x08" + b"\0" * 40, b"\x28\xb5\x2f\xfd" + b"x" * 40, b"BZh91", b"x" * 3000,
    _FILE[:124] + b"7" * 11 + _FILE[135:], _FILE[:124] + b"\xff" * 12 + _FILE[136:], _BUILD,
    tar_bytes({"../../../../escape": b"x", "/absolute": b"y"}),
    tar_bytes({"link": _special(tarfile.SYMTYPE, "/etc"), "link/passwd": b"x"}),
    tar_bytes({"hard": _special(tarfile.LNKTYPE, "../../etc/passwd"), "dev": _special(tarfile.CHRTYPE)}),
    tar_bytes({"fifo": _special(tarfile.FIFOTYPE), "fifo/x": b"x", "a": b"x", "a/b": b"x"}),
    tar_bytes({"Dockerfile": b"FROM busybox\nFROM\nCOPY --from=9 a b\n"}),
    tar_bytes({"Dockerfile": b"\xff\xfe\0F\0R\0O\0M"}), tar_bytes({"Dockerfile": b"FROM scratch\nADD ../.. /\nENV a=$(b ${c:-${d}\nEXPOSE 99999\n"}),
    tar_bytes({"Dockerfile": b"FROM busybox\nHEALTHCHECK --interval=x CMD a\n"}), tar_bytes({"Dockerfile": b"FROM busybox\nUSER \0\nWORKDIR \0\nRUN true\n"}),
    tar_bytes({"manifest.json": b'[{"Config":"../x","Layers":[null],"RepoTags":[1]}]'}), tar_bytes({"manifest.json": b"[[]]"}),
    tar_bytes({"manifest.json": b'[{"Config":"c","Layers":["l"]}]', "c": b"{}", "l": b"x"}),
    tar_bytes({"manifest.json": b'[{"Config":"c","Layers":[]}]', "c": b'{"rootfs":{"type":"layers","diff_ids":[7]},"config":[]}'}),
    tar_bytes({"index.json": b'{"manifests":[{"digest":"sha256:../../x","size":-1}]}', "oci-layout": b"{}"}),
)  # fmt: skip

#: Bodies that are no JSON, or more of it than anybody needs.
BROKEN_JSON: Sequence[bytes] = (
    b"", b" ", b"{", b"}", b"null", b"[]", b'"text"', b"{}{}", b'{"a":}', b'{"Image":"\xff\xfe"}', b"\xef\xbb\xbf{}", b'{"Image":NaN}',
    b'{"StopTimeout":1e999}', b'{"Memory":-Infinity}', b'{"Image":"\\ud800"}', b'{"Image":"a\\u0000b"}', b'{"\\ud800":"\\udfff"}',
    b'{"Labels":' + b'{"a":' * 3000 + b"1" + b"}" * 3001, b"[" * 100_000, b'{"Cmd":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"StopTimeout":' + b"9" * 6000 + b"}", b'{"Image":"busybox","image":1,"IMAGE":[]}',
)  # fmt: skip
_CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "",
    "application/x-tar",
    "multipart/form-data",
    "💥",
)


@dataclass(frozen=True)
class Case:
    """One request as it goes over the wire. ``leave``: hang up without reading; ``half``: only a part of the body is sent."""

    method: str
    operation: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    framing: str = "length"
    leave: bool = False

    def wire(self) -> bytes:
        """The bytes to send."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        body = self.body
        if body is None:
            tail = b""
        elif self.framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
            tail = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]) if part) + b"0\r\n\r\n"
        elif self.framing == "bad-chunk":
            lines.append("Transfer-Encoding: chunked")
            tail = b"zz\r\n" + body
        elif self.framing == "huge-chunk":
            lines.append("Transfer-Encoding: chunked")
            tail = b"%x\r\n" % 2**70 + body
        elif self.framing == "cut-chunk":
            lines.append("Transfer-Encoding: chunked")
            tail = b"%x\r\n" % (len(body) + 10) + body
        elif self.framing == "short":
            lines.append(f"Content-Length: {len(body) + 10}")
            tail = body
        elif self.framing == "both":
            lines += [f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"]
            tail = body
        elif self.framing == "bad-length":
            lines.append("Content-Length: -5")
            tail = body
        else:
            lines.append(f"Content-Length: {len(body)}")
            tail = body
        return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + tail


@dataclass(frozen=True)
class Names:
    """What there is to be found in the engine, so that not everything ends with 404."""

    containers: Sequence[str]
    images: Sequence[str]
    networks: Sequence[str]
    volumes: Sequence[str]
    execs: Sequence[str]

    def of(self, path: str) -> Sequence[str]:
        """Names that fit the parameter of a path."""
        first = path.split("/")[1]
        return {
            "containers": self.containers, "images": self.images, "distribution": self.images, "networks": self.networks,
            "volumes": self.volumes, "exec": self.execs,
        }.get(first, ("some",))  # fmt: skip


_FILTER_NAMES = (
    "label", "label!", "id", "name", "status", "until", "dangling", "reference", "before", "since", "ancestor", "exited", "health",
    "network", "volume", "publish", "expose", "driver", "type", "event", "container", "image", "scope", "is-task", "all", "nonsense",
)  # fmt: skip


@st.composite
def _filters(draw: Callable[..., Any]) -> str:
    if _rarely(draw, 4):
        return str(draw(texts))
    chosen = draw(st.lists(st.sampled_from(_FILTER_NAMES), max_size=3, unique=True))
    lists = st.lists(texts, max_size=2) | anything | st.dictionaries(texts, st.booleans(), max_size=2)
    return json.dumps({name: draw(lists) for name in chosen})


def _in_address(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


@st.composite
def cases(draw: Callable[..., Any], method: str, path: str, operation: Mapping[str, Any], names: Names) -> Case:
    """A request to an operation, wrong in some way more often than not."""
    known, query, headers = names.of(path), [], []
    parameters = operation.get("parameters", [])
    target, body, kind = path, None, ""
    for parameter in parameters:
        where, name = parameter["in"], parameter["name"]
        if where == "path":
            text = draw(st.sampled_from(known)) if not _rarely(draw, 3) else draw(texts)
            target = target.replace(f"{{{name}}}", _in_address(text))
        elif where == "query":
            if _rarely(draw, 3) and not parameter.get("required"):
                continue
            for _ in range(2 if _rarely(draw, 20) else 1):
                query.append((name, draw(_query_value(name, parameter, names))))
        elif where == "header" and name.startswith("X-Registry"):
            plain = json.dumps(draw(anything)).encode()
            headers.append((name, draw(st.sampled_from(["", "!", "e30=", base64.urlsafe_b64encode(plain).decode()]))))
        elif where == "body":
            schema = parameter.get("schema", {})
            if schema.get("format") == "binary" or "tar" in name.lower() or name == "inputStream":
                body, kind = draw(st.sampled_from(ARCHIVES)), "application/x-tar"
            elif _rarely(draw, 4):
                body, kind = draw(st.sampled_from(BROKEN_JSON)), "application/json"
            else:
                value = draw(values(schema))
                if isinstance(value, dict) and path == "/containers/create" and not _rarely(draw, 4):
                    value["Image"] = "busybox"
                if isinstance(value, dict) and path.endswith("connect") and not _rarely(draw, 4):
                    value["Container"] = draw(st.sampled_from(names.containers))
                body, kind = json.dumps(value).encode(), "application/json"
    if kind and not _rarely(draw, 25):
        headers.append(("Content-Type", draw(st.sampled_from(_CONTENT_TYPES)) if _rarely(draw, 12) else kind))
    if path.endswith(("attach", "/start", "/ws", "/session", "/grpc")) and not _rarely(draw, 3):
        headers += [("Connection", "Upgrade"), ("Upgrade", draw(st.sampled_from(["tcp", "websocket", "h2c", "💥"])))]
    if query:
        target += "?" + "&".join(f"{_in_address(name)}={_in_address(value)}" for name, value in query)
    version = draw(st.sampled_from(["/v1.51", "", "/v1.24", "/v1.41"])) if not _rarely(draw, 20) else draw(_versions)
    framing = "length"
    if _rarely(draw, 8):
        body = body if body is not None else draw(st.sampled_from(BROKEN_JSON[:8]))
        framing = draw(
            st.sampled_from(["chunked", "bad-chunk", "huge-chunk", "cut-chunk", "short", "both", "bad-length"])
        )
    return Case(method, f"{method} {path}", version + target, tuple(headers), body, framing, leave=_rarely(draw, 15))


_versions = st.sampled_from(
    ["/v1.99", "/v1.0", "/v0.0", "/v99999999999999999999.1", "/v1", "/v1.51/v1.51", "/v-1.5", "//v1.51"]
)


@st.composite
def _query_value(draw: Callable[..., Any], name: str, parameter: Mapping[str, Any], names: Names) -> str:
    if _rarely(draw, 5):
        return str(draw(texts))
    if name == "filters":
        return str(draw(_filters()))
    if name == "container":
        return str(draw(st.sampled_from(names.containers)))
    if name == "path":
        return str(
            draw(
                st.sampled_from(["/", "/etc", "/bin/busybox", "/dev/null", "/proc/1/mem", "/etc/../..", "tmp/."])
                | texts
            )
        )
    kind = parameter.get("type")
    if kind == "boolean":
        return str(draw(st.sampled_from(["0", "1", "true", "no", "2", ""])))
    if kind == "integer":
        return str(draw(numbers))
    return str(draw(texts))


# -- sending ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came back: status 0 when the connection was closed without a word, -1 when nothing came in time."""

    status: int
    body: bytes
    seconds: float


def send(path: Path, case: Case, deadline: float) -> Answer | None:
    """Send a request; read its answer's head within the deadline and a short piece of the rest. None for one that leaves."""
    begin = time.monotonic()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(deadline)
        client.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(case.wire())
            if case.framing in ("short", "cut-chunk", "huge-chunk", "both"):
                client.shutdown(socket.SHUT_WR)
        if case.leave:
            return None
        received = b""
        try:
            while b"\r\n\r\n" not in received:
                data = client.recv(65536)
                if not data:
                    break
                received += data
        except TimeoutError:
            return Answer(-1, received, time.monotonic() - begin)
        except ConnectionResetError:
            pass
        head, _, body = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.") else 0
        if status >= 400:
            with contextlib.suppress(OSError):
                client.settimeout(2)
                while (wanted := _length(head)) is not None and len(body) < wanted and (data := client.recv(65536)):
                    body += data
        return Answer(status, body, time.monotonic() - begin)


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return None
