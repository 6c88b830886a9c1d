"""A client of the Engine API that checks every reply against the specification's shape.

Blocking; one connection a call. A status or a body that the specification does not have fails the test.
"""

import http.client
import json
import re
import socket
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jsonschema

API_VERSION = "1.51"


class ContractError(AssertionError):
    """A reply is not what the specification says."""


@cache
def specification() -> dict[str, Any]:
    """Load the extract of the specification."""
    return json.loads(Path(__file__).with_name("engine_api.json").read_text())  # type: ignore[no-any-return]


@cache
def _operations() -> list[tuple[str, re.Pattern[str], str, dict[str, Any]]]:
    found = []
    for path, item in specification()["paths"].items():
        pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", lambda m: ".+" if m[1] == "name" else "[^/]+", re.escape(path)))
        for method, operation in item.items():
            if method in ("get", "put", "post", "delete", "head"):
                found.append((method.upper(), pattern, path, operation))
    found.sort(key=lambda entry: entry[2].count("{"))
    return found


def operation(method: str, path: str) -> tuple[str, dict[str, Any]]:
    """Return the specification's path and operation for a request."""
    for verb, pattern, name, found in _operations():
        if verb == method and pattern.fullmatch(path):
            return name, found
    raise ContractError(f"{method} {path} is no operation of the API")


def _relaxed(schema: Any) -> Any:
    """Turn Swagger 2.0 into JSON schema: nullable where it says so, and where a property is not required."""
    if isinstance(schema, list):
        return [_relaxed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        key: _relaxed(part)
        for key, part in schema.items()
        if key not in ("format", "default", "properties", "x-nullable")
    }
    if "properties" in schema:
        required = set(schema.get("required", []))
        result["properties"] = {
            name: _relaxed(part)
            if name in required and not _nullable(part)
            else {"anyOf": [{"type": "null"}, _relaxed(part)]}
            for name, part in schema["properties"].items()
        }
    if _nullable(schema):
        return {"anyOf": [{"type": "null"}, result]}
    return result


def _nullable(schema: Any) -> bool:
    return isinstance(schema, dict) and bool(schema.get("x-nullable"))


@cache
def _definitions() -> dict[str, Any]:
    return {name: _relaxed(schema) for name, schema in specification()["definitions"].items()}


def check_body(method: str, path: str, status: int, body: Any) -> None:
    """Raise ContractError unless the body fits the operation's schema for that status."""
    name, found = operation(method, path)
    responses = found["responses"]
    if str(status) not in responses:
        raise ContractError(f"{method} {name} answered {status}, the API knows {sorted(responses)}: {body!r}")
    schema = responses[str(status)].get("schema")
    if schema is None or body is None:
        return
    document = {**_relaxed(schema), "definitions": _definitions()}
    try:
        jsonschema.Draft4Validator(document).validate(body)
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path)
        raise ContractError(f"{method} {name} answered {status}: at '{where}': {error.message[:400]}") from None


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float = 60) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Reply:
    """Status, headers and body of an answer; `json` parses it."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    @property
    def message(self) -> str:
        """Text of an error."""
        return str(self.json["message"])


class Api:
    """``api.get("/containers/json", all=1)``; every reply is checked."""

    def __init__(self, path: Path, version: str = API_VERSION) -> None:
        self.path = path
        self.version = version

    def get(self, path: str, **query: Any) -> Reply:
        """GET, with query parameters."""
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any = None, **query: Any) -> Reply:
        """POST a JSON document, bytes or nothing."""
        return self.call("POST", path, body=body, query=query)

    def put(self, path: str, body: bytes, **query: Any) -> Reply:
        """PUT bytes."""
        return self.call("PUT", path, body=body, query=query)

    def delete(self, path: str, **query: Any) -> Reply:
        """DELETE."""
        return self.call("DELETE", path, query=query)

    def head(self, path: str, **query: Any) -> Reply:
        """HEAD."""
        return self.call("HEAD", path, query=query)

    def call(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None, check: bool = True, timeout: float = 60,
    ) -> Reply:  # fmt: skip
        """Send one request and read the whole answer."""
        encoded = {
            key: json.dumps(value)
            if isinstance(value, dict | list)
            else str(int(value))
            if isinstance(value, bool)
            else value
            for key, value in (query or {}).items()
        }
        target = f"/v{self.version}{path}" + (f"?{urlencode(encoded)}" if encoded else "")
        head = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            head.setdefault("Content-Type", "application/json")
        connection = UnixConnection(self.path, timeout)
        try:
            connection.request(method, target, body=body, headers=head)
            answer = connection.getresponse()
            reply = Reply(answer.status, dict(answer.headers.items()), answer.read())
        finally:
            connection.close()
        if check:
            is_json = reply.headers.get("Content-Type", "").startswith("application/json") and method != "HEAD"
            lines = reply.body.count(b"\n") > 1
            check_body(method, path, reply.status, reply.json if is_json and reply.body and not lines else None)
        return reply

    def lines(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, timeout: float = 60
    ) -> Generator[Any, None, None]:
        """Yield the JSON objects of a streamed answer as they come; close the iterator to hang up."""
        encoded = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in (query or {}).items()}
        connection = UnixConnection(self.path, timeout)
        try:
            connection.request(method, f"/v{self.version}{path}" + (f"?{urlencode(encoded)}" if encoded else ""))
            answer = connection.getresponse()
            if answer.status >= 400:
                raise ContractError(f"{method} {path} answered {answer.status}: {answer.read()!r}")
            while line := answer.readline():
                if line.strip():
                    yield json.loads(line)
        finally:
            connection.close()
