"""Connections of API clients that the agent holds open, so that a daemon's death does not close them under a request.

A daemon gives each connection together with a small shared memory file, in which it keeps the request that is being worked
on. The agent reads neither: it only keeps both for the next daemon.
"""

import os
import socket
from typing import NamedTuple

from moorage_guest.shim.connection import Refused, Request
from moorage_guest.shim.loop import Loop
from moorage_guest.shim.wire import Message


class _Client(NamedTuple):
    """Descriptors; a socket object would cost each connection three system calls more."""

    sock: int
    memory: int


class HeldClients:
    """All connections held. One whose client has left, or that a daemon has shut down, is let go by itself."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._clients: dict[int, _Client] = {}

    @property
    def keys(self) -> list[int]:
        return list(self._clients)

    def message(self, message: Message) -> bool:
        """Take a connection to hold, or let one go that has become somebody else's; False for anything else."""
        match message.body.get("method"):
            case "client_hold":
                self._hold(int(message.body["key"]), message.fds)
            case "client_release":
                self.let_go(int(message.body["key"]))
            case _:
                return False
        return True

    def take(self, request: Request) -> None:
        """Give a connection to the next daemon (`client_take`); it goes on being held."""
        client = self._clients.get(int(request.params["key"]))
        if client is None:
            raise Refused("gone", "this client has left")
        request.answer({}, fds=[client.sock, client.memory])

    def close_all(self) -> None:
        """End all connections: no daemon will come."""
        for key in self.keys:
            with socket.socket(fileno=os.dup(self._clients[key].sock)) as client:
                try:
                    client.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the client was faster
            self.let_go(key)

    def _hold(self, key: int, fds: list[int]) -> None:
        if key in self._clients or len(fds) != 2:  # the latter when this process has no descriptors left
            return
        client = _Client(fds.pop(0), fds.pop(0))
        self._clients[key] = client
        # Nothing is asked for: that both directions are shut is reported always.
        self._loop.watch(client.sock, 0, lambda _mask: self.let_go(key))

    def let_go(self, key: int) -> None:
        """No longer hold a connection, without shutting it. Idempotent."""
        client = self._clients.pop(key, None)
        if client is not None:
            self._loop.unwatch(client.sock)
            os.close(client.sock)
            os.close(client.memory)
