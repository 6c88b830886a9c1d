"""supervise.sock: what moored (and the zygote) ask of the agent. Who may ask is decided by the socket's mode."""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from moorage_guest.agent.netd import Netd
from moorage_guest.agent.shims import Shims
from moorage_guest.shim import wire
from moorage_guest.shim.connection import Connection, Refused, Request
from moorage_guest.shim.container import Spec
from moorage_guest.shim.loop import READ, Loop


def peer_pid(sock: socket.socket) -> int:
    """Return the process at the other end of a unix socket."""
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


class Service:
    """Accepts connections and answers. `extra` adds the methods of supervised mode."""

    def __init__(self, loop: Loop, exec_root: Path, shims: Shims, netd: Netd, log: Callable[[str], None]) -> None:
        self._loop = loop
        self._shims = shims
        self._netd = netd
        self._log = log
        self._connections: list[Connection] = []
        self.supervised = False
        self.on_hello: Callable[[Connection, Request], None] = self._plain_hello
        self.on_close: Callable[[Connection], None] = lambda _: None
        self.on_message: Callable[[Connection, wire.Message], bool] = lambda _connection, _message: False
        self._methods: dict[str, Callable[[Request], None]] = {
            "spawn_shim": self._spawn_shim, "shims": self._list, "bury": self._bury, "spawn_netd": self._spawn_netd,
            "ready": self._ready,
        }  # fmt: skip
        self._listener = wire.listen(exec_root / "supervise.sock")
        loop.watch(self._listener.fileno(), READ, self._accept)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def add(self, method: str, handler: Callable[[Request], None]) -> None:
        """Answer one more method."""
        self._methods[method] = handler

    def _accept(self, _ready: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self._connections.append(Connection(self._loop, sock, self._message, self._closed))

    def _closed(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self.on_close(connection)

    def _message(self, connection: Connection, message: wire.Message) -> None:
        name = message.body.get("method")
        try:
            if self.on_message(connection, message):
                return
            request = Request(connection, message)
            try:
                if name == "hello":
                    self.on_hello(connection, request)
                    return
                method = self._methods.get(str(name))
                if method is None:
                    raise Refused("unknown", f"this agent does not know the request {name!r}")
                method(request)
            except Refused as error:
                request.refuse(error.code, str(error))
            except (ValueError, KeyError, TypeError, OSError) as error:
                request.refuse("failed", f"{name}: {error}")
        finally:
            wire.close_all(message.fds)

    def _plain_hello(self, _connection: Connection, request: Request) -> None:
        request.answer({"supervised": self.supervised, "pid": os.getpid(), "streams": []})

    def _ready(self, request: Request) -> None:
        request.answer({})

    def _spawn_shim(self, request: Request) -> None:
        params = request.params
        spec = Spec(
            str(params["container_id"]), bool(params["tty"]), bool(params["open_stdin"]), bool(params["stdin_once"]),
            str(params["runtime"]), [str(item) for item in params["runtime_args"]],
            {str(key): str(value) for key, value in params["labels"].items()},
            int(params.get("spill_bytes", 0)), str(params.get("spill_folder", "")),
        )  # fmt: skip
        request.answer({"pid": self._shims.spawn(spec)})

    def _list(self, request: Request) -> None:
        request.answer({"running": self._shims.running, "dead": self._shims.dead})

    def _bury(self, request: Request) -> None:
        self._shims.bury(str(request.params["container_id"]), request.answer)

    def _spawn_netd(self, request: Request) -> None:
        def done(path: Path | None, why: str) -> None:
            if path is None:
                request.refuse("netd", why)
            else:
                request.answer({"path": str(path)})

        self._netd.ensure(done)
