"""Git repositories on loopback, inside of a daemon's own network: smart http by git's own http-backend, and git's daemon."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.moored import Sandbox, wait_for
from tests.support.registry import free_port

_SERVER = """
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given = {"REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query, "GIT_HTTP_EXPORT_ALL": "1",
                 "GIT_PROJECT_ROOT": sys.argv[2], "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                 "CONTENT_LENGTH": str(len(body)), "REMOTE_ADDR": "127.0.0.1",
                 "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                 "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env={**os.environ, **given})
        head, _, rest = done.stdout.partition(b"\\r\\n\\r\\n")
        fields = [line.split(": ", 1) for line in head.decode().split("\\r\\n")]
        self.send_response(int(dict(fields).get("Status", "200").split()[0]))
        for name, value in fields:
            if name != "Status":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest)
    do_POST = do_HEAD = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

_CONNECT = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()"


def git(folder: Path, *words: str) -> str:
    """Run git in a folder, as nobody in particular and without anybody's settings."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"git {' '.join(words)} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout.strip()


def commit(folder: Path, files: Mapping[str, str], branch: str = "master") -> str:
    """Add files (a text, or ``-> target`` for a link) to a branch of a repository, made when there is none; returns the commit."""
    if not (folder / ".git").exists():
        folder.mkdir(parents=True, exist_ok=True)
        git(folder, "init", "-q", "-b", branch)
    elif git(folder, "branch", "--show-current") != branch:
        git(folder, "checkout", "-q", "-b", branch)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "c")
    return git(folder, "rev-parse", "HEAD")


@dataclass(frozen=True)
class GitServer:
    """Where the repositories are served."""

    http: str
    git: str


@contextlib.contextmanager
def served(folder: Path, sandbox: Sandbox | None) -> Iterator[GitServer]:
    """Serve every repository ``NAME.git`` of a folder in a sandbox, or on this machine itself."""

    def inside(*argv: str) -> list[str]:
        return sandbox.command(*argv) if sandbox is not None else list(argv)

    ports = free_port(), free_port()
    environment = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    daemon = [
        "git",
        "daemon",
        "--export-all",
        f"--base-path={folder}",
        "--listen=127.0.0.1",
        f"--port={ports[1]}",
        "--reuseaddr",
    ]
    with (folder.parent / "git.log").open("wb") as log, contextlib.ExitStack() as stack:
        for argv in ([sys.executable, "-c", _SERVER, str(ports[0]), str(folder)], daemon):
            process = subprocess.Popen(inside(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
        for port in ports:

            def answers(port: int = port) -> bool:
                argv = inside(sys.executable, "-c", _CONNECT, str(port))
                return subprocess.run(argv, capture_output=True, timeout=60).returncode == 0

            wait_for("a git server to answer", answers)
        yield GitServer(f"http://127.0.0.1:{ports[0]}", f"git://127.0.0.1:{ports[1]}")
