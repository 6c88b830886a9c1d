"""Datagrams between moored, agent, shim and netd: one JSON object, optional bytes, optional file descriptors.

A datagram is the JSON text, and when bytes go with it a NUL and those bytes (JSON never contains a NUL). Whoever
sends or receives decides about blocking; nothing is retried here.
"""

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

#: Version of what shim and moored say to each other. A daemon that does not know a shim's lists its container as unmanaged.
PROTOCOL = 1

#: Bytes that travel beside the JSON of one datagram at most.
MAX_BLOB = 64 * 1024

#: Longest datagram, JSON included.
MAX_DATAGRAM = 256 * 1024

#: The kernel passes at most 253 descriptors in one message; nobody here needs more than this.
MAX_FDS = 16

_SUN_PATH = 107

_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode

_CONTROL_SPACE = socket.CMSG_SPACE(MAX_FDS * 4)

#: Plain numbers: an enumeration's `&` is Python code, which takes memory in every shim.
_TRUNCATED = int(socket.MSG_TRUNC)


class Message(NamedTuple):
    """One datagram. Whoever takes `fds` closes them.

    A named tuple, as all records of agent and shim: importing `dataclasses` would cost every shim a quarter of a megabyte.
    """

    body: dict[str, Any]
    blob: bytes
    fds: list[int]


def pack(body: dict[str, Any], blob: bytes = b"") -> bytes:
    """Return the bytes of a datagram; ValueError when it is longer than one may be."""
    text = _encode(body).encode()
    data = text + b"\0" + blob if blob else text
    if len(data) > MAX_DATAGRAM:
        raise ValueError(f"message of {len(data)} bytes; at most {MAX_DATAGRAM} fit")
    return data


def unpack(data: bytes, fds: list[int] | None = None) -> Message:
    """Read a datagram; ValueError when it is none of ours (its descriptors are closed then)."""
    text, _, blob = data.partition(b"\0")
    try:
        decoded = text.decode()
        body, end = _decode(decoded)
        if end != len(decoded) or not isinstance(body, dict):
            raise ValueError("not a JSON object")
    except ValueError:
        close_all(fds or [])
        raise
    return Message(body, blob, fds or [])


def send(sock: socket.socket, data: bytes, fds: Iterable[int] = ()) -> None:
    """Send one datagram; BlockingIOError when a non-blocking socket's queue is full (nothing was sent then)."""
    numbers = list(fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))] if numbers else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, buffer: memoryview | None = None) -> Message | None:
    """Receive one datagram, or None at the end of the connection. Descriptors come close-on-exec.

    ``buffer`` has MAX_DATAGRAM bytes and is written to; without one, memory for as many is taken.
    """
    if buffer is None:
        data, ancillary, flags, _ = sock.recvmsg(MAX_DATAGRAM, _CONTROL_SPACE, socket.MSG_CMSG_CLOEXEC)
    else:
        count, ancillary, flags, _ = sock.recvmsg_into([buffer], _CONTROL_SPACE, socket.MSG_CMSG_CLOEXEC)
        data = bytes(buffer[:count])
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += _numbers(content)
    if not data:
        close_all(fds)
        return None
    if flags & _TRUNCATED:
        close_all(fds)
        raise ValueError("message longer than one may be")
    return unpack(data, fds)


def _numbers(content: bytes) -> list[int]:
    numbers = array.array("i")
    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return list(numbers)


def accept(listener: socket.socket) -> socket.socket:
    """Accept a seqpacket connection. What socket.accept adds is to ask enumerations about numbers: 50 KB of each shim's memory."""
    descriptor, _ = listener._accept()  # type: ignore[attr-defined]
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, descriptor)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; those closed already are passed over."""
    for number in fds:
        try:
            os.close(number)
        except OSError:
            pass


def connect(path: Path) -> socket.socket:
    """Return a non-blocking seqpacket connection to a socket whose path may be longer than 107 bytes."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        with short_path(path) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    return sock


def listen(path: Path, kind: int = socket.SOCK_SEQPACKET, backlog: int = 128) -> socket.socket:
    """Bind a non-blocking listening socket with mode 0600, replacing what is there; the path may be long."""
    sock = socket.socket(socket.AF_UNIX, kind)
    mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        sock.setblocking(False)
        with short_path(path) as short:
            sock.bind(short)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a path of the same file that fits into sun_path: itself, or one through a descriptor of its folder."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
