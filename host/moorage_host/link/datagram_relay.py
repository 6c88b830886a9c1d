"""Runs in the guest, standard library alone: carries datagrams between the host, on standard streams, and UDP ports there.

`datagrams.py` sends this file's text to the guest's Python. It ends when the host closes its side.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct

HEADER = struct.Struct("!IBH")  # flow, kind, length of what follows
DATA, OPEN, CLOSE = 0, 1, 2
MOST = 65535
AT_ONCE = 32  # datagrams of one flow before others have their turn


class Frames:
    """Frames out of a stream that comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames that are whole with these bytes: flow, kind, payload."""
        self._rest += data
        found = []
        at = 0
        while len(self._rest) - at >= HEADER.size:
            flow, kind, length = HEADER.unpack_from(self._rest, at)
            end = at + HEADER.size + length
            if len(self._rest) < end:
                break
            found.append((flow, kind, self._rest[at + HEADER.size : end]))
            at = end
        self._rest = self._rest[at:]
        return found


def frame(flow: int, kind: int, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(flow, kind, len(payload)) + payload


class Relay:
    """One socket for each flow, connected to the port that the flow was opened for."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._frames = Frames()
        self._flows: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(source, selectors.EVENT_READ)

    def run(self) -> None:
        """Carry until the host has said its last."""
        while True:
            for key, _events in self._selector.select():
                if key.data is not None:
                    self._answer(key.data)
                elif data := os.read(self._source, 1 << 16):
                    for flow, kind, payload in self._frames.take(data):
                        self._ask(flow, kind, payload)
                else:
                    return

    def _ask(self, flow: int, kind: int, payload: bytes) -> None:
        if kind == OPEN:
            host, port = payload.decode("ascii").split()
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            made.setblocking(False)
            self._flows[flow] = made
            self._selector.register(made, selectors.EVENT_READ, flow)
            with contextlib.suppress(OSError):
                made.connect((host, int(port)))
        elif flow in self._flows and kind == DATA:
            with contextlib.suppress(OSError):  # nobody is there, or it has no room: a datagram may get lost
                self._flows[flow].send(payload)
        elif flow in self._flows:
            gone = self._flows.pop(flow)
            self._selector.unregister(gone)
            gone.close()

    def _answer(self, flow: int) -> None:
        for _turn in range(AT_ONCE):
            if flow not in self._flows:
                return
            try:
                payload = self._flows[flow].recv(MOST)
            except OSError:
                return
            rest = memoryview(frame(flow, DATA, payload))
            while rest:
                rest = rest[os.write(self._sink, rest) :]


if __name__ == "__main__":
    Relay(0, 1).run()
