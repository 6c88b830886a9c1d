"""Client of the guest's agent: JSON lines over a tunnelled unix socket (docs/architecture.md, "agent.sock methods")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

from moorage_contract.postponed import postponed

from moorage_host.errors import ErrorCode, HostError

with postponed("paramiko"):
    import paramiko

SOCKET = "/run/moorage/agent.sock"
_CODES = {code.value: code for code in ErrorCode}


HELD = "held"


class Held(HostError):
    """The guest waits for its release (docs/architecture.md, "A saved start")."""


class Tunnel(Protocol):
    """What the agent's client needs of a link."""

    def unix_socket(self, path: str, *, timeout: float = 10) -> paramiko.Channel: ...


def call(tunnel: Tunnel, method: str, params: dict[str, Any] | None = None, *, timeout: float = 30) -> dict[str, Any]:
    """One question, one answer; blocks up to `timeout` seconds. Raises HostError with the agent's words, or when it does not answer."""
    channel = tunnel.unix_socket(SOCKET)
    try:
        channel.settimeout(timeout)
        channel.sendall(_line(method, params))
        for answer in _lines(channel, method):
            return _result(answer, method)
    finally:
        channel.close()
    raise HostError(
        f"the guest's agent ended the connection before it answered {method}",
        hint="see `moorage logs --what agent`",
        code=ErrorCode.UNAVAILABLE,
    )


def watch(tunnel: Tunnel, *, idle: float = 60) -> Iterator[dict[str, Any]]:
    """The agent's status, now and on every change, until the connection ends or nothing came for `idle` seconds."""
    channel = tunnel.unix_socket(SOCKET)
    try:
        channel.settimeout(idle)
        channel.sendall(_line("watch", None))
        for line in _lines(channel, "watch"):
            result = _result(line, "watch")
            if "event" in line:
                yield result
    finally:
        channel.close()


def _line(method: str, params: dict[str, Any] | None) -> bytes:
    return json.dumps({"id": 1, "method": method, "params": params or {}}).encode() + b"\n"


def _lines(channel: paramiko.Channel, method: str) -> Iterator[dict[str, Any]]:
    buffer = b""
    while True:
        try:
            data = channel.recv(65536)
        except TimeoutError as error:
            raise HostError(
                f"the guest's agent did not answer {method} in time",
                hint="see `moorage console`",
                code=ErrorCode.TIMEOUT,
            ) from error
        except (OSError, EOFError) as error:
            raise HostError(
                f"the connection to the guest's agent broke during {method}: {error}", code=ErrorCode.UNAVAILABLE
            ) from error
        if not data:
            return
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            try:
                answer = json.loads(line)
            except ValueError as error:
                raise HostError(f"the guest's agent answered {method} with something that is not JSON") from error
            if isinstance(answer, dict):
                yield answer


def _result(answer: dict[str, Any], method: str) -> dict[str, Any]:
    error = answer.get("error")
    if isinstance(error, dict):
        if error.get("code") == HELD:
            raise Held(str(error.get("message", "the guest is held")), code=ErrorCode.UNAVAILABLE)
        code = _CODES.get(str(error.get("code", "")), ErrorCode.FAILED)
        raise HostError(str(error.get("message", f"{method} failed")), code=code)
    result = answer.get("result")
    return result if isinstance(result, dict) else {}
