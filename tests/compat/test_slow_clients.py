"""Clients that never read, and such that vanish: nobody waits for them, and what they cost is bounded and given back."""

import contextlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.fuzzing import tar_bytes
from tests.support.images import busybox_archive
from tests.support.leaks import Holdings, holdings, leaked
from tests.support.moored import DEADLINE, Moored, running_moored, wait_for

pytestmark = pytest.mark.root

MEGABYTES = 30
#: What all of the engine's processes may grow by, MiB, while a dozen of clients do not read hundreds of megabytes.
GROWTH = 48

WRITER = f"dd if=/dev/zero bs=1M count={MEGABYTES} 2>/dev/null | tr '\\0' a | fold -w 99"


@pytest.fixture(scope="module", params=["alone", "supervised"])
def engine(request: pytest.FixtureRequest) -> Iterator[Moored]:
    """A daemon; under its agent, which carries lasting streams then, and without."""
    with running_moored(supervised=request.param == "supervised") as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        daemon.docker("run", "-d", "--name", "lives", "busybox", "sleep", "100000")
        daemon.docker("exec", "lives", "sh", "-c", f"dd if=/dev/urandom of=/big bs=1M count={MEGABYTES} 2>/dev/null")
        daemon.docker("commit", "lives", "heavy", timeout=180)
        yield daemon


def connect(daemon: Moored, method: str, path: str, body: bytes = b"") -> socket.socket:
    """Send a request and read no more than the beginning of its answer's head."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect(str(daemon.socket))
    upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n" if method == "POST" else ""
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    client.sendall(f"{method} /v1.51{path} HTTP/1.1\r\nHost: x\r\n{upgrade}{kind}\r\n".encode() + body)
    assert client.recv(12).split()[1] in (b"200", b"101"), path
    return client


def memory(daemon: Moored) -> int:
    """Return the memory of all of the engine's processes, MiB."""
    script = "for p in /proc/[0-9]*; do grep -qa moorage_guest $p/cmdline && grep VmRSS $p/status; done 2>/dev/null"
    text = daemon.sandbox.run("sh", "-c", script, check=False).stdout
    return sum(int(number) for number in re.findall(r"VmRSS:\s+(\d+)", text)) // 1024


def mute_clients(daemon: Moored, writer: str) -> Iterator[socket.socket]:
    """Open clients of everything that streams; none is ever read from."""
    yield connect(daemon, "GET", f"/containers/{writer}/logs?stdout=1&stderr=1&follow=1")
    yield connect(daemon, "POST", f"/containers/{writer}/attach?stream=1&stdout=1&stderr=1")
    yield connect(daemon, "GET", "/events")
    yield connect(daemon, "GET", "/containers/lives/stats")
    yield connect(daemon, "GET", "/containers/lives/archive?path=/big")
    yield connect(daemon, "GET", "/containers/lives/export")
    yield connect(daemon, "GET", "/images/heavy/get")
    session = daemon.api.post("/containers/lives/exec", {"Cmd": ["sh", "-c", WRITER], "AttachStdout": True}).json["Id"]
    yield connect(daemon, "POST", f"/exec/{session}/start", b"{}")


def busy(daemon: Moored, writer: str) -> None:
    """Do what produces output for all of the clients, and see that who reads gets everything in time."""
    follower = daemon.docker_popen("logs", "-f", writer)
    assert follower.stdout is not None
    attached = daemon.docker_popen("attach", "--no-stdin", writer)
    received: list[int] = []

    def read(client: "subprocess.Popen[bytes]") -> None:
        assert client.stdout is not None
        count = 0
        while data := os.read(client.stdout.fileno(), 1 << 20):
            count += len(data)
        received.append(count)

    readers = [threading.Thread(target=read, args=(client,)) for client in (follower, attached)]
    for reader in readers:
        reader.start()
    assert daemon.docker("wait", writer, timeout=DEADLINE * 3) == "0"
    for reader in readers:
        reader.join(DEADLINE * 2)
    for client in (follower, attached):
        client.kill()
        client.communicate(timeout=DEADLINE)
    whole = (MEGABYTES << 20) + (MEGABYTES << 20) // 99
    assert received == [whole, whole]
    assert daemon.docker("run", "--rm", "busybox", "echo", "still here") == "still here"
    words = "x" * 5_000
    for _ in range(600):  # 3 MB of events, more than sockets hold
        daemon.api.post("/containers/lives/exec", {"Cmd": ["true", words]})


def test_nobody_waits_for_clients_that_never_read(engine: Moored) -> None:
    before = holdings(engine)
    started = memory(engine)
    writer = "writer"
    engine.docker("create", "--name", writer, "busybox", "sh", "-c", f"sleep 2; {WRITER}")
    with contextlib.ExitStack() as stack:
        engine.docker("start", writer)
        clients = [stack.enter_context(client) for client in mute_clients(engine, writer)]
        busy(engine, writer)
        grown = memory(engine) - started
        assert grown < GROWTH, f"grown by {grown} MiB"
        assert len(clients) == 8
    engine.docker("rm", "-f", writer)
    given_back(engine, before)


def test_clients_that_vanish_leave_nothing(engine: Moored) -> None:
    engine.docker(
        "run", "-d", "--name", "talks", "busybox", "sh", "-c", f"while sleep 0.1; do echo {quote('x' * 500)}; done"
    )
    for client in mute_clients(engine, "talks"):
        client.close()
    before = holdings(engine)
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            for client in mute_clients(engine, "talks"):
                stack.enter_context(client)
    given_back(engine, before)
    engine.docker("rm", "-f", "talks")


def test_builds_given_up_at_any_moment_leave_nothing(engine: Moored) -> None:
    context = tar_bytes({"Dockerfile": b"FROM busybox\nRUN true\nRUN echo a > /a\n"})
    target = "/v1.51/build?nocache=1&rm=1&forcerm=1"
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: {len(context)}\r\n\r\n"

    def build(seconds: float) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(seconds)
            client.connect(str(engine.socket))
            client.sendall(head.encode() + context)
            with contextlib.suppress(TimeoutError):
                while client.recv(65536):
                    pass

    build(DEADLINE)
    before = holdings(engine)
    for step in range(20):
        build(0.01 + step * 0.02)
    given_back(engine, before, ("data/image", "data/layers", "data/moorage"))


def given_back(engine: Moored, before: Holdings, kept: tuple[str, ...] = ()) -> None:
    """Wait until nothing is held that was not before; exec sessions of a container are kept while it lives, as with dockerd.

    ``kept`` are beginnings of the names of files that are meant to stay.
    """
    kept = (*kept, "run/exec/")
    left: dict[str, object] = {}

    def nothing_left() -> bool:
        left.clear()
        for kind, what in leaked(before, holdings(engine)).items():
            names = [name for name in what if not name.startswith(kept)] if isinstance(what, list) else what
            if names:
                left[kind] = names
        return not left

    try:
        wait_for("what the clients held to be given back", nothing_left)
    except AssertionError as error:
        raise AssertionError(f"{error}: {left}") from None
