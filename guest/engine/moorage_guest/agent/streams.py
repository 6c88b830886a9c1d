"""Lasting streams: answers that the agent writes to clients while daemons come and go.

A daemon gives the client's socket and, with every piece of the answer, the record from which another daemon can go on. A
small shared memory file counts what has been written, so that not even the agent's own death repeats anything.
"""

import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from moorage_guest.shim.connection import Connection, Refused, Request
from moorage_guest.shim.loop import GONE, HANGUP, WRITE, Loop
from moorage_guest.shim.wire import Message

#: Number of the last piece that was written whole, and bytes written of the next.
_PROGRESS = struct.Struct("=QQ")


class Stream:
    """One client. `pieces` wait to be written."""

    def __init__(self, key: int, sock: socket.socket, progress: int, resume: dict[str, Any]) -> None:
        sock.setblocking(False)
        self.key = key
        self.sock = sock
        self.progress = progress
        self.resume = resume
        self.done, self.part = _PROGRESS.unpack(os.pread(progress, _PROGRESS.size, 0))
        self.number = self.done
        self.pieces: deque[tuple[int, bytes]] = deque()
        self.closing = False

    def save(self) -> None:
        """Note how far the client has been written to."""
        os.pwrite(self.progress, _PROGRESS.pack(self.done, self.part), 0)


class Streams:
    """All lasting streams. `tell` sends an event to the daemon that is connected, if any."""

    def __init__(self, loop: Loop, tell: Callable[[dict[str, Any]], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._streams: dict[int, Stream] = {}

    @property
    def keys(self) -> list[int]:
        return list(self._streams)

    def open(self, request: Request) -> None:
        """Take a client over (`stream_open`)."""
        key = int(request.params["key"])
        if key in self._streams:  # handed back by a daemon that did not hear that an agent before us had taken it
            request.answer({})
            return
        sock = socket.socket(fileno=request.take_fd())
        stream = Stream(key, sock, request.take_fd(), dict(request.params["resume"]))
        self._streams[key] = stream
        self._watch(stream)
        request.answer({})

    def take(self, request: Request) -> None:
        """Give a stream to the next daemon (`stream_take`)."""
        stream = self._streams.get(int(request.params["key"]))
        if stream is None:
            raise Refused("gone", "this client has left")
        request.answer({"resume": stream.resume, "number": stream.number}, fds=[stream.sock.fileno(), stream.progress])

    def message(self, _connection: Connection, message: Message) -> bool:
        """Take a piece or the end of a stream; False when the message is something else."""
        name = message.body.get("method")
        if name not in ("stream_data", "stream_close"):
            return False
        stream = self._streams.get(int(message.body["key"]))
        if stream is None:
            return True
        if name == "stream_close":
            stream.closing = True
        else:
            number = int(message.body["number"])
            stream.resume = dict(message.body["resume"])
            stream.number = max(stream.number, number)
            if number <= stream.done:  # an agent before us has written it
                self._tell({"event": "stream_written", "key": stream.key, "number": number})
            else:
                stream.pieces.append((number, message.blob))
        self._flush(stream)
        return True

    def _flush(self, stream: Stream) -> None:
        while stream.pieces:
            number, data = stream.pieces[0]
            rest = memoryview(data)[stream.part :]
            if rest:
                try:
                    stream.part += stream.sock.send(rest, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    break
                except OSError:
                    self._drop(stream)
                    return
            if stream.part >= len(data):
                stream.pieces.popleft()
                stream.done, stream.part = number, 0
                self._tell({"event": "stream_written", "key": stream.key, "number": number})
            stream.save()
        if not stream.pieces and stream.closing:
            self._drop(stream)
        else:
            self._watch(stream)

    def _watch(self, stream: Stream) -> None:
        def ready(mask: int) -> None:
            if mask & (GONE | HANGUP):
                self._drop(stream)
            else:
                self._flush(stream)

        self._loop.watch(stream.sock.fileno(), HANGUP | (WRITE if stream.pieces else 0), ready)

    def _drop(self, stream: Stream) -> None:
        self._loop.unwatch(stream.sock.fileno())
        try:
            stream.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was faster
        stream.sock.close()
        os.close(stream.progress)
        self._streams.pop(stream.key, None)
        self._tell({"event": "stream_gone", "key": stream.key})
