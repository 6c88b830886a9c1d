"""Debian's docker-registry on loopback: plain, with basic auth, or with a token server of the test's own."""

import base64
import contextlib
import datetime
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from tests.support.moored import wait_for

#: Asks an address from inside of other namespaces.
_ASK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5).close()"

USER, PASSWORD = "sailor", "pässword:1"


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Registry:
    """A running registry."""

    port: int
    folder: Path
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


def _config(folder: Path, port: int, auth: dict[str, Any], data: Path) -> Path:
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of the tests"},
    }
    if auth:
        config["auth"] = auth
    path = folder / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


@contextlib.contextmanager
def registry(
    folder: Path,
    auth: dict[str, Any] | None = None,
    *,
    sandbox_command: list[str] | None = None,
    data: Path | None = None,
) -> Iterator[Registry]:
    """Run a registry with its files in ``folder``, gone at the end; images elsewhere if ``data`` says so.

    ``sandbox_command`` is what a command is put behind to run in other namespaces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _attempt in range(5):
        port = free_port()
        log = folder / "registry.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*(sandbox_command or []), "docker-registry", "serve", str(_config(folder, port, auth or {}, data or folder / "data"))],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

        def answers(port: int = port, process: "subprocess.Popen[bytes]" = process) -> bool:
            if process.poll() is not None:
                return True
            if sandbox_command:
                ask = [*sandbox_command, sys.executable, "-c", _ASK, f"http://127.0.0.1:{port}/"]
                return subprocess.run(ask, capture_output=True, timeout=30, check=False).returncode == 0
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    return True
            except OSError:
                return False

        wait_for("docker-registry to answer", answers)
        if process.poll() is None:
            break
    else:
        raise AssertionError(f"docker-registry does not start: {log.read_text()}")
    try:
        yield Registry(port, folder, process, log)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder)


def basic_auth(folder: Path) -> dict[str, Any]:
    """Return the registry's auth section for USER and PASSWORD."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "htpasswd"
    secret = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, b"2a")).decode()
    path.write_text(f"{USER}:{secret}\n")
    return {"htpasswd": {"realm": "tests", "path": str(path)}}


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class TokenServer:
    """Gives tokens to USER, and to anybody for pulling ``public/*``. ``asked`` are the scopes asked for."""

    folder: Path
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._der = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        bundle = self.folder / "bundle.pem"
        bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                status, body = server.answer(self.headers.get("Authorization", ""), query)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return None

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.auth = {
            "token": {
                "realm": f"http://127.0.0.1:{self._http.server_address[1]}/token",
                "service": "tests",
                "issuer": "tests",
                "rootcertbundle": str(bundle),
            }
        }

    def answer(self, authorization: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        """Return status and body for a request."""
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if authorization and authorization != expected:
            return 401, b'{"details": "incorrect username or password"}'
        access = []
        for scope in " ".join(query.get("scope", [])).split():
            self.asked.append(scope)
            kind, name, actions = scope.split(":")
            allowed = actions.split(",") if authorization else ["pull"] if name.startswith("public/") else []
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": "tests", "sub": USER if authorization else "", "aud": "tests", "exp": now + 300, "nbf": now - 10,
            "iat": now - 10, "jti": str(now), "access": access,
        }  # fmt: skip
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._der]}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return 200, json.dumps({"token": f"{signed}.{_base64(signature)}", "expires_in": 300}).encode()

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(60)


def auth_header(username: str = USER, password: str = PASSWORD) -> str:
    """Return X-Registry-Auth for a login."""
    value = json.dumps({"username": username, "password": password}).encode()
    return base64.urlsafe_b64encode(value).decode()
