"""A registry of a few lines that serves whatever it is told to, however wrong: no honest registry would take it."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.images import digest, image_config

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class HandmadeRegistry:
    """Serves ``documents`` by tag and digest, and ``blobs`` by digest, of every repository. ``asked`` counts the paths."""

    def __init__(self) -> None:
        self.documents: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.gate = threading.Event()
        """Blobs wait for it."""
        self.begun = threading.Event()
        """A blob was asked for."""
        self.gate.set()
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                served.asked[self.path] += 1
                kind, name = self.path.split("/")[-2:]
                media, body = "application/json", b"{}"
                if kind == "blobs":
                    served.begun.set()
                    served.gate.wait(60)
                    media, found = "application/octet-stream", served.blobs.get(name)
                elif kind == "manifests":
                    media, found = served.documents.get(name, ("", None))
                else:
                    found = body
                self.send_response(200 if found is not None else 404)
                body = found if found is not None else b""
                self.send_header("Content-Type", media)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return None

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                return None  # a client that has seen enough closes its connection

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._http.server_address[1]}"

    def blob(self, data: bytes) -> str:
        """Serve a blob and return its digest."""
        self.blobs[digest(data)] = data
        return digest(data)

    def document(self, kind: str, value: dict[str, Any], tag: str = "") -> dict[str, Any]:
        """Serve a manifest or an index, also under a tag, and return its descriptor."""
        data = json.dumps({"schemaVersion": 2, "mediaType": kind, **value}).encode()
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for each in (name, tag):
            self.documents[each] = (kind, data)
        return {"mediaType": kind, "digest": name, "size": len(data)}

    def image(
        self,
        layers: Sequence[bytes],
        tag: str = "",
        *,
        packed: Sequence[bytes] | None = None,
        suffix: str = "",
        **sizes: int,
    ) -> dict[str, Any]:
        """Serve an image of plain layers, or of their ``packed`` form; returns its descriptor.

        ``suffix`` ends the layers' media type; ``size`` is what the manifest claims of the first layer.
        """
        config = json.dumps(image_config(layers)).encode()
        descriptors = [
            {"mediaType": LAYER + suffix, "digest": self.blob(each), "size": len(each)} for each in packed or layers
        ]
        if "size" in sizes:
            descriptors[0]["size"] = sizes["size"]
        kind = "application/vnd.oci.image.config.v1+json"
        described = {"mediaType": kind, "digest": self.blob(config), "size": len(config)}
        return self.document(MANIFEST, {"config": described, "layers": descriptors}, tag)

    def close(self) -> None:
        """Stop serving."""
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(60)
