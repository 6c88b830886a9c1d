"""Plugins for tests: programs that answer what an engine asks its volume drivers and its authorization for."""

import base64
import http.server
import json
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

Answer = Mapping[str, Any] | None


class PluginError(Exception):
    """What the plugin answers with status 500 and these words."""


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    daemon_threads = True
    plugin: "Plugin"

    def server_bind(self) -> None:
        self.socket.bind(str(self.server_address))
        self.server_name, self.server_port = "plugin", 0


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, answer = 200, self.server.plugin.asked(self.path.strip("/"), json.loads(body or "{}"))
        except PluginError as error:
            status, answer = 500, {"Err": str(error)}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def address_string(self) -> str:
        return "engine"

    def log_message(self, format: str, *args: Any) -> None:
        return None


class Plugin:
    """A plugin behind a socket; use as a context manager. ``calls`` are the methods asked for, with what came with them."""

    ability = ""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.calls: list[tuple[str, dict[str, Any]]] = []
        #: What a method does instead of its own, by name.
        self.instead: dict[str, Callable[[dict[str, Any]], Answer]] = {}

    def asked(self, method: str, arguments: dict[str, Any]) -> Answer:
        self.calls.append((method, arguments))
        if method in self.instead:
            return self.instead[method](arguments)
        if method == "Plugin.Activate":
            return {"Implements": [self.ability]}
        return self.answer(method.partition(".")[2], arguments)

    def answer(self, method: str, arguments: dict[str, Any]) -> Answer:
        raise NotImplementedError

    def called(self, method: str) -> list[dict[str, Any]]:
        """Return what each call of a method came with."""
        return [arguments for name, arguments in list(self.calls) if name == f"{self.prefix}.{method}"]

    @property
    def prefix(self) -> str:
        return self.ability

    def __enter__(self) -> "Plugin":
        self._server = _Server(str(self._path), _Handler)  # type: ignore[arg-type]
        self._server.plugin = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink()


class VolumePlugin(Plugin):
    """A volume driver whose volumes are folders."""

    ability = "VolumeDriver"

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self._folder = folder
        self.volumes: dict[str, dict[str, str]] = {}

    def answer(self, method: str, arguments: dict[str, Any]) -> Answer:
        name = str(arguments.get("Name", ""))
        place = self._folder / name
        if method == "Create":
            self.volumes[name] = arguments.get("Opts") or {}
            return {}
        if method == "List":
            return {"Volumes": [{"Name": each} for each in self.volumes]}
        if method == "Capabilities":
            return {"Capabilities": {"Scope": "global"}}
        if name not in self.volumes:
            return {"Err": "no such volume"}
        if method == "Get":
            return {"Volume": {"Name": name, "Mountpoint": str(place), "Status": {"hello": {"is": "world"}}}}
        if method == "Mount":
            place.mkdir(parents=True, exist_ok=True)
            return {"Mountpoint": str(place)}
        if method == "Remove":
            del self.volumes[name]
        return {}


class AuthorizationPlugin(Plugin):
    """Leave for every request but those that `refuse` names a reason for."""

    ability = "authz"
    prefix = "AuthZPlugin"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.refuse: Callable[[str, dict[str, Any]], str] = lambda method, request: ""

    def answer(self, method: str, arguments: dict[str, Any]) -> Answer:
        reason = self.refuse(method, arguments)
        return {"Allow": not reason, "Msg": reason}


def body_of(request: Mapping[str, Any], which: str = "RequestBody") -> Any:
    """Return the JSON body that an authorization plugin was shown; None when it was shown none."""
    return json.loads(base64.b64decode(request[which])) if request.get(which) else None
