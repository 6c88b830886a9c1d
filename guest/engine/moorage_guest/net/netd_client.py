"""Asks netd for names, resolvers and held ports; starts it when there is none and tells it everything again.

Synchronous: for the network thread. Each request has a deadline.
"""

import itertools
import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_PROTOCOL = 1
_DATAGRAM = 1 << 18
_PATIENCE = 15.0

#: Seconds between attempts to have a netd.
_PAUSES = (0.05, 0.2, 0.5)


class NetdRefused(OSError):
    """netd could not do it; ``errno`` is the kernel's reason where there is one."""


class NetdClient:
    """One connection, made when it is needed."""

    def __init__(self, start: Callable[[], Path]) -> None:
        self._start = start
        self._socket: socket.socket | None = None
        self._numbers = itertools.count(1)
        self.pid = 0
        self.path: Path | None = None
        self.on_new: Callable[[], None] | None = None
        """Called after a netd that knows nothing of us was connected, to tell it everything."""

    def connect(self) -> None:
        """Make sure there is a connection; a netd that has died is started again and filled by `on_new`."""
        if self._socket is not None:
            return
        for pause in _PAUSES:
            try:
                hello = self._greet()
                break
            except Exception as error:
                # It may have ended, killed or idle, just when it was asked, or the agent is not back yet.
                log.warning("netd cannot be reached (%s): trying again", error)
                time.sleep(pause)
        else:
            try:
                hello = self._greet()
            except Exception as error:
                raise NetdRefused(
                    0, f"the process that holds ports and answers names cannot be started: {error}"
                ) from error
        if hello.get("protocol") != _PROTOCOL:
            self.close()
            raise NetdRefused(0, f"netd speaks protocol {hello.get('protocol')}, this daemon speaks {_PROTOCOL}")
        fresh = self.pid != hello["pid"]
        self.pid = int(hello["pid"])
        if fresh and self.on_new is not None:
            self.on_new()

    def _greet(self) -> dict[str, Any]:
        """Connect and return what netd says of itself; not connected when that fails."""
        self._socket = self._open()
        try:
            return self._ask("hello", (), {})
        except BaseException:
            self.close()
            raise

    def _open(self) -> socket.socket:
        path = self.path = self._start()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(_PATIENCE)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _DATAGRAM)
            connection.connect(str(path))
        except BaseException:
            connection.close()
            raise
        return connection

    def request(self, op: str, descriptors: Sequence[int] = (), **params: Any) -> dict[str, Any]:
        """Ask once; when netd turns out to be gone, start it anew and ask again."""
        self.connect()
        try:
            return self._ask(op, descriptors, params)
        except (ConnectionError, BrokenPipeError, EOFError) as error:
            log.warning("netd is gone (%s): starting it again", error or type(error).__name__)
            self.close()
            self.connect()
            return self._ask(op, descriptors, params)

    def keys(self, kind: str) -> set[str]:
        """Return what netd has: "sandbox", "port" or "name" (network/endpoint)."""
        found: set[str] = set()
        total = 1
        start = 0
        while start < total:
            page = self.request("list", kind=kind, start=start)
            total = int(page["total"])
            found.update(page["keys"])
            start += max(1, len(page["keys"]))
        return found

    def close(self) -> None:
        """End the connection; netd goes on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self.pid = 0

    def _ask(self, op: str, descriptors: Sequence[int], params: dict[str, Any]) -> dict[str, Any]:
        connection = self._socket
        if connection is None:
            raise EOFError("not connected")
        number = next(self._numbers)
        data = json.dumps({"id": number, "op": op, **params}, separators=(",", ":")).encode()
        if descriptors:
            socket.send_fds(connection, [data], list(descriptors))
        else:
            connection.send(data)
        while True:
            reply = connection.recv(_DATAGRAM)
            if not reply:
                raise EOFError("closed the connection")
            answer: dict[str, Any] = json.loads(reply)
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise NetdRefused(int(answer.get("errno", 0)), str(answer["error"]))
        return answer
