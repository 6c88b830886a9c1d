"""What Testcontainers does with an engine, step by step, through docker-py: a reaper that holds the engine's socket and a TCP
session, containers with ports of the engine's choice, waiting by log and by port, files in and out, reuse, and the end."""

import io
import json
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

REAPER_IMAGE = "testcontainers/ryuk:0.0"

#: Stands in for the reaper: the same image name, port, log line and conversation, and it removes by label filters over the socket.
REAPER = r"""
import http.client, json, socket, urllib.parse

class Engine(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")

def ask(method, path):
    engine = Engine("docker")
    engine.request(method, path)
    answer = engine.getresponse()
    data = answer.read()
    assert answer.status < 400, (method, path, data)
    return json.loads(data) if data else None

server = socket.create_server(("0.0.0.0", 8080))
print("Started!", flush=True)
client, _ = server.accept()
lines = client.makefile("r")
labels = []
for line in lines:
    labels += urllib.parse.parse_qs(line.strip())["label"]
    client.sendall(b"ACK\n")
found = urllib.parse.quote(json.dumps({"label": labels}))
for each in ask("GET", f"/containers/json?all=1&filters={found}"):
    ask("DELETE", f"/containers/{each['Id']}?force=1&v=1")
for each in ask("GET", f"/networks?filters={found}"):
    ask("DELETE", f"/networks/{each['Id']}")
for each in ask("GET", f"/volumes?filters={found}")["Volumes"]:
    ask("DELETE", f"/volumes/{each['Name']}?force=1")
print("Removed", flush=True)
"""

#: The service under test says when it is ready, a moment after it has begun.
SERVICE = "echo booting; cat /etc/service.conf; echo ready to accept connections; exec nc -ll -p 6379 -e echo PONG"


@pytest.fixture(scope="module")
def engine() -> Iterator[Moored]:
    """A supervised daemon, so that the socket that the reaper holds stays the same whatever happens to moored."""
    with running_moored(supervised=True) as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        moored.docker("tag", "busybox", REAPER_IMAGE)
        yield moored


@pytest.fixture
def client(engine: Moored) -> Iterator[docker.DockerClient]:
    with engine.client() as found:
        yield found


def port_of(container: Container, port: str) -> str:
    """Return the port on the host that the engine chose."""
    container.reload()
    bindings = container.attrs["NetworkSettings"]["Ports"][port]
    assert bindings, container.attrs["NetworkSettings"]
    return str(bindings[0]["HostPort"])


def wait_for_line(engine: Moored, container: Container, text: str) -> None:
    """Wait by log: follow it from its beginning until a line holds the text."""
    follower = engine.docker_popen("logs", "-f", str(container.id), stderr=subprocess.DEVNULL)
    assert follower.stdout is not None
    try:
        seen = b""
        for line in follower.stdout:
            seen += line
            if text.encode() in line:
                return
        raise AssertionError(f"the container ended without {text!r}: {seen!r}")
    finally:
        follower.kill()
        follower.communicate()


def python_in_a_container() -> dict[str, dict[str, str]]:
    """Return the read-only binds that give a container this machine's Python."""
    folders = {"/usr", "/lib", "/lib64", str(Path(sys.base_prefix).resolve())}
    return {each: {"bind": each, "mode": "ro"} for each in folders if Path(each).is_dir()}


class Session:
    """A test run: its labels, its reaper, and the TCP session that tells the reaper that it is still there."""

    def __init__(self, engine: Moored, client: docker.DockerClient) -> None:
        self.labels = {"org.testcontainers": "true", "org.testcontainers.session-id": secrets.token_hex(8)}
        python = Path(sys.base_prefix).resolve() / "bin" / f"python3.{sys.version_info.minor}"
        socket = {str(engine.socket): {"bind": "/var/run/docker.sock", "mode": "rw"}}
        self.reaper = client.containers.run(
            REAPER_IMAGE, [str(python), "-c", REAPER], detach=True, name=f"testcontainers-ryuk-{secrets.token_hex(4)}",
            ports={"8080/tcp": None}, privileged=True, volumes={**socket, **python_in_a_container()},
        )  # fmt: skip
        wait_for_line(engine, self.reaper, "Started!")
        port = port_of(self.reaper, "8080/tcp")
        self.connection = subprocess.Popen(
            engine.sandbox.command("busybox", "nc", "127.0.0.1", port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.connection.stdin is not None and self.connection.stdout is not None
        self.connection.stdin.write("&".join(f"label={key}={value}" for key, value in self.labels.items()).encode())
        self.connection.stdin.write(b"\n")
        self.connection.stdin.flush()
        assert self.connection.stdout.readline() == b"ACK\n"

    def hang_up(self) -> None:
        """End the TCP session, as the end of the test run does."""
        self.connection.kill()
        self.connection.communicate()


def tar_of(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def service(engine: Moored, client: docker.DockerClient, labels: dict[str, str], **more: Any) -> Container:
    """Create the service, put its configuration into it, start it, and wait by log."""
    container = client.containers.create(
        "busybox", ["sh", "-c", SERVICE], labels=labels, ports={"6379/tcp": None}, **more
    )
    assert container.put_archive("/", tar_of("etc/service.conf", b"configured\n"))
    container.start()
    wait_for_line(engine, container, "ready to accept connections")
    return container


def answer(engine: Moored, port: str) -> str:
    """Wait by port, from outside: connect until somebody answers."""
    argv = ("busybox", "nc", "-w", "5", "127.0.0.1", port)
    return str(wait_for("the service", lambda: engine.sandbox.run(*argv, check=False, stdin=subprocess.DEVNULL).stdout))


def test_a_test_run_from_its_first_container_to_the_reapers_last_word(
    engine: Moored, client: docker.DockerClient
) -> None:
    session = Session(engine, client)
    try:
        network = client.networks.create(f"tc-{secrets.token_hex(4)}", labels=session.labels, check_duplicate=True)
        volume = client.volumes.create(labels=session.labels)
        assert volume.name is not None
        one = service(
            engine, client, session.labels, network=network.name, volumes={volume.name: {"bind": "/v", "mode": "rw"}}
        )
        two = service(engine, client, session.labels)
        ports = {port_of(one, "6379/tcp"), port_of(two, "6379/tcp"), port_of(session.reaper, "8080/tcp")}
        assert len(ports) == 3 and "0" not in ports
        for container in (one, two):
            assert answer(engine, port_of(container, "6379/tcp")) == "PONG\n"
        assert one.logs().startswith(b"booting\nconfigured\n")
        inside = one.exec_run(["sh", "-c", "cat /proc/net/tcp* | awk '{print $2}' | grep -i :18eb"])
        assert inside.exit_code == 0, "waiting by port, from inside, found nothing"

        done = one.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True)
        assert done.exit_code == 3 and done.output == (b"out\n", b"err\n")  # type: ignore[comparison-overlap]  # demux
        stream, stat = one.get_archive("/etc/service.conf")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
            member = tar.extractfile("service.conf")
            assert member is not None and member.read() == b"configured\n" and stat and stat["size"] == 11

        engine.kill()  # the reaper's socket is the same for the next daemon
        wait_for("another daemon", engine.answers)
        assert answer(engine, port_of(one, "6379/tcp")) == "PONG\n"
        session.hang_up()
        session.reaper.wait(timeout=DEADLINE)
        assert session.reaper.logs().endswith(b"Removed\n"), session.reaper.logs()
        found: dict[str, str | list[str] | bool] = {
            "label": [f"{key}={value}" for key, value in session.labels.items()]
        }
        assert client.containers.list(all=True, filters=found) == []
        assert client.networks.list(filters=found) == []
        assert client.volumes.list(filters=found) == []
    finally:
        session.hang_up()
        session.reaper.remove(force=True)


def test_a_reusable_container_is_found_by_its_hash_in_the_next_run(engine: Moored, client: docker.DockerClient) -> None:
    labels = {"org.testcontainers": "true", "org.testcontainers.hash": secrets.token_hex(20)}
    filters: dict[str, str | list[str] | bool] = {
        "label": [f"org.testcontainers.hash={labels['org.testcontainers.hash']}"],
        "status": ["running"],
    }
    assert client.containers.list(filters=filters) == []
    made = service(engine, client, labels)
    port = port_of(made, "6379/tcp")
    session = Session(engine, client)
    session.hang_up()
    session.reaper.wait(timeout=DEADLINE)
    session.reaper.remove()
    with engine.client() as next_run:
        (found,) = next_run.containers.list(filters=filters)
        assert found.id == made.id and port_of(found, "6379/tcp") == port
        assert answer(engine, port) == "PONG\n"
        assert json.loads(engine.docker("inspect", made.short_id))[0]["Config"]["Labels"] == labels
        found.remove(force=True, v=True)
