"""`moorage docker`: the user's docker CLI against the machine's engine."""

from __future__ import annotations

import os
import shutil

import typer

from moorage_host.backend_process import listens
from moorage_host.client import Client
from moorage_host.errors import ErrorCode, HostError
from moorage_host.paths import user_paths

# They would make the CLI talk to another engine, or to this one as if it were remote.
FOREIGN = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")


def docker(context: typer.Context) -> None:
    """Run the docker CLI, with whatever arguments follow, against this engine."""
    program = shutil.which("docker")
    if program is None:
        raise HostError(
            "the docker command line is not installed",
            hint="install it (Debian: docker-cli, or docker.io before Debian 13; macOS: brew install docker); the engine itself is not needed",
            code=ErrorCode.NOT_FOUND,
        )
    socket = user_paths().docker_socket
    if not listens(socket):
        _wait_for_engine()
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    os.execve(program, [program, "--host", f"unix://{socket}", *context.args], environment)


def _wait_for_engine() -> None:
    """Until a machine that is on its way, or that a dead backend left running, has its engine back."""
    for status in Client().watch_settled():
        if status.state == "ready":
            return
        if status.state not in ("starting", "booted"):
            raise HostError("the engine is not running", hint="moorage start", code=ErrorCode.UNAVAILABLE)
