"""netd: serves requests of the daemon on a socket; keeps sockets in containers and on the host whoever asks or does not.

Requests are JSON datagrams on a SOCK_SEQPACKET socket, ``{"id", "op", …}``, answered by ``{"id", "ok": true, …}`` or
``{"id", "error": text, "errno": number}``. With no client, no container and no port it ends after ten seconds.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moorage_guest.net.netd.held import HeldPort
from moorage_guest.net.netd.loop import READ, Loop, Timer
from moorage_guest.net.netd.names import Names, places_from
from moorage_guest.net.netd.resolver import Resolver

log = logging.getLogger(__name__)

PROTOCOL = 1

#: Largest request, bytes.
DATAGRAM = 1 << 17

#: Entries of one page of `list`.
PAGE = 256

#: Seconds with nothing to do after which the process ends.
IDLE = 10.0


class Netd:
    """All state of the process."""

    def __init__(self, path: Path) -> None:
        self._loop = Loop()
        self._names = Names()
        self._resolvers: dict[str, Resolver] = {}
        self._ports: dict[str, HeldPort] = {}
        self._clients: set[socket.socket] = set()
        self._path = path
        self._idle: Timer | None = None
        self._listener = _listen(path)
        self._inode = path.stat().st_ino
        self._loop.watch(self._listener, READ, self._accept)
        self._operations: dict[str, Callable[[dict[str, Any], list[int]], dict[str, Any]]] = {
            "hello": self._hello,
            "list": self._list,
            "name": self._name,
            "unname": self._unname,
            "sandbox": self._sandbox,
            "unsandbox": self._unsandbox,
            "hold": self._hold,
            "unhold": self._unhold,
            "shutdown": self._shutdown,
        }
        self._look_idle()

    def run(self) -> None:
        """Serve until told to stop or idle."""
        self._loop.run()
        for resolver in self._resolvers.values():
            resolver.close()
        for port in self._ports.values():
            port.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._listener.close()

    def stop(self) -> None:
        """End `run`."""
        self._loop.stop()

    def watch_signals(self, wake: socket.socket) -> None:
        """Look up from waiting when a signal has written to the socket."""

        def drain(ready: int) -> None:
            wake.recv(64)

        self._loop.watch(wake, READ, drain)

    # -- connections

    def _accept(self, ready: int) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DATAGRAM * 2)
        self._clients.add(client)
        self._loop.watch(client, READ, lambda ready: self._serve(client))

    def _serve(self, client: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors, _, _ = socket.recv_fds(client, DATAGRAM, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._clients.discard(client)
            self._loop.forget(client)
            self._look_idle()
            return
        number: Any = None
        try:
            request = json.loads(data)
            number = request.get("id")
            answer = {"ok": True, **self._operations[request["op"]](request, descriptors)}
        except OSError as error:
            answer = {"error": str(error), "errno": error.errno or 0}
        except Exception as error:
            log.exception("netd: request failed")
            answer = {"error": f"{type(error).__name__}: {error}", "errno": 0}
        finally:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        client.setblocking(True)
        client.settimeout(5)
        with contextlib.suppress(OSError):
            client.send(json.dumps({"id": number, **answer}, separators=(",", ":")).encode())
        client.setblocking(False)

    def _look_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self._loop.later(IDLE, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._idle = None
        if not (self._clients or self._resolvers or self._ports):
            self._loop.stop()

    # -- operations

    def _hello(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        return {"protocol": PROTOCOL, "pid": os.getpid()}

    def _list(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        kind, start = request["kind"], int(request["start"])
        if kind == "sandbox":
            keys = sorted(self._resolvers)
        elif kind == "port":
            keys = sorted(self._ports)
        else:
            keys = sorted(
                f"{network}/{endpoint}" for network, ends in self._names.networks.items() for endpoint in ends
            )
        return {"keys": keys[start : start + PAGE], "total": len(keys)}

    def _name(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        self._names.put(request["network"], request["endpoint"], request["names"], request["addresses"])
        return {}

    def _unname(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        self._names.drop(request["network"], request["endpoint"])
        return {}

    def _sandbox(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        key = request["sandbox"]
        resolver = self._resolvers.get(key)
        if descriptors:
            fresh = os.fstat(descriptors[0]).st_ino
            if resolver is not None and os.fstat(resolver.namespace).st_ino != fresh:
                resolver.close()
                del self._resolvers[key]
                resolver = None
            if resolver is None:
                resolver = Resolver(self._loop, self._names, descriptors[0])
                descriptors.pop(0)
                self._resolvers[key] = resolver
        if resolver is None:
            raise OSError(2, f"no resolver for {key}, and no namespace to make one in")
        resolver.places = places_from(request["places"])
        resolver.servers = [str(server) for server in request["servers"]]
        return {}

    def _unsandbox(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        resolver = self._resolvers.pop(request["sandbox"], None)
        if resolver is not None:
            resolver.close()
        return {}

    def _hold(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        key = request["key"]
        target = (str(request["target"]), int(request["target_port"]))
        carry = bool(request["carry"])
        held = self._ports.get(key)
        if held is not None:
            if held.target == target and held.carry == carry:
                return {}
            held.close()
            del self._ports[key]
        self._ports[key] = HeldPort(
            self._loop, request["proto"], request["host"], int(request["port"]), target, carry=carry
        )
        return {}

    def _unhold(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        held = self._ports.pop(request["key"], None)
        if held is not None:
            held.close()
        return {}

    def _shutdown(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        self._loop.stop()
        return {}


def _listen(path: Path) -> socket.socket:
    """Bind by renaming into place, so that the path always leads to a listening socket."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(temporary))
    finally:
        os.umask(before)
    listener.listen(16)
    listener.setblocking(False)
    temporary.rename(path)
    return listener


def main(path: str) -> int:
    """Serve on the socket at ``path`` until told to stop or idle; for a process of its own, also a fork."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    # Three descriptors a container and one or two a port: the usual 1024 would do for some 300 containers.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    netd = Netd(Path(path))
    signal.signal(signal.SIGTERM, lambda number, frame: netd.stop())
    # A signal has to wake the selector: Python retries an interrupted wait unless something is there to read.
    wake, end = socket.socketpair()
    wake.setblocking(False)
    end.setblocking(False)
    signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
    netd.watch_signals(wake)
    try:
        netd.run()
    finally:
        signal.set_wakeup_fd(-1)
        wake.close()
        end.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
