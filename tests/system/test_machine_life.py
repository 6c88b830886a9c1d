"""The machine through the backend: ready means the engine answered; backends come and go; what it leaves behind."""

import contextlib
import json
import os
import shlex
import signal
import socket
import time
import urllib.request

import pytest
from moorage_host.errors import HostError
from moorage_host.paths import docker_config

from tests.support.host import wait_ended
from tests.support.images import BUSYBOX_IMAGE
from tests.support.vm import Vm, moorage

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]


def test_ready_means_that_the_engine_answers_through_the_socket(engine_ready: Vm) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(60)
        stream.connect(str(engine_ready.paths.docker_socket))
        stream.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200" in stream.recv(4096).split(b"\r\n")[0]
    assert engine_ready.paths.docker_socket.stat().st_mode & 0o777 == 0o600


def test_docker_context_leads_to_the_engine(engine_ready: Vm) -> None:
    (meta,) = (docker_config() / "contexts" / "meta").glob("*/meta.json")
    content = json.loads(meta.read_text())
    assert (content["Name"], content["Endpoints"]["docker"]["Host"]) == (
        "moorage",
        f"unix://{engine_ready.paths.docker_socket}",
    )


def test_start_of_a_running_machine_returns_at_once(engine_ready: Vm) -> None:
    before = engine_ready.status().since
    assert engine_ready.client.start().since == before


def test_killed_backend_leaves_the_machine_to_the_next(engine_ready: Vm, container_running: str) -> None:
    pid = engine_ready.docker("inspect", "-f", "{{.State.Pid}}", container_running)
    boot = engine_ready.run("cat /proc/sys/kernel/random/boot_id")
    backend = engine_ready.status().backend.pid
    os.kill(backend, signal.SIGKILL)
    wait_ended(backend)
    engine_ready.wait("ready")
    assert engine_ready.run("cat /proc/sys/kernel/random/boot_id") == boot
    assert engine_ready.docker("inspect", "-f", "{{.State.Pid}}", container_running) == pid


def test_killed_daemon_comes_back_and_its_containers_never_left(engine_ready: Vm, container_running: str) -> None:
    before = engine_ready.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", container_running)
    daemon = engine_ready.status().engine
    assert daemon is not None
    engine_ready.client.daemon("kill")
    for status in engine_ready.client.watch():
        if status.state == "ready" and status.engine and status.engine.daemon.pid not in (None, daemon.daemon.pid):
            break
    assert engine_ready.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", container_running) == before
    numbers = [int(line.split()[1]) for line in engine_ready.docker("logs", container_running).splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_broken_ssh_connection_comes_back(engine_ready: Vm) -> None:
    engine_ready.run("kill $(pidof sshd-session) ; true", check=False)
    engine_ready.wait("ready")
    assert engine_ready.docker("version", "-f", "{{.Server.Version}}").strip()


def test_published_port_answers_on_the_host_and_goes_with_the_container(engine_ready: Vm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    container = engine_ready.docker(
        "run",
        "-d",
        "-p",
        f"127.0.0.1:{port}:80",
        BUSYBOX_IMAGE,
        "sh",
        "-c",
        "mkdir /www; echo good > /www/index.html; httpd -f -h /www",
    ).strip()
    try:
        for status in engine_ready.client.watch():
            if any(one.port == port and not one.error for one in status.ports):
                break
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert opener.open(f"http://127.0.0.1:{port}/", timeout=120).read() == b"good\n"
    finally:
        engine_ready.docker("rm", "-f", container)
    for status in engine_ready.client.watch():
        if not any(one.port == port for one in status.ports):
            break
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_published_udp_port_answers_on_the_host_and_goes_with_the_container(engine_ready: Vm) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # busybox serves no UDP: the guest's Python does, in the container's network
    server = "import socket; s = socket.socket(2, 2); s.bind(('', 53))\nwhile True: d, a = s.recvfrom(9999); s.sendto(b'>' + d, a)"
    container = engine_ready.docker(
        "run", "-d", "-p", f"127.0.0.1:{port}:53/udp", BUSYBOX_IMAGE, "sleep", "600"
    ).strip()
    try:
        pid = engine_ready.docker("inspect", "-f", "{{.State.Pid}}", container).strip()
        inside = f"nsenter -t {pid} -n python3 -I -c {shlex.quote(server)}"
        engine_ready.run(f"setsid {inside} < /dev/null > /dev/null 2>&1 &")
        for status in engine_ready.client.watch():
            if any((one.port, one.protocol, one.error) == (port, "udp", "") for one in status.ports):
                break
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(1)
            client.connect(("127.0.0.1", port))
            answer, deadline = b"", time.monotonic() + 120
            while not answer and time.monotonic() < deadline:
                client.send(b"question")
                with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                    answer = client.recv(100)
            assert answer == b">question"
    finally:
        engine_ready.docker("rm", "-f", container)
        engine_ready.run("pkill -f 's.recvfrom[(]9999' ; true")
    for status in engine_ready.client.watch():
        if not any(one.port == port for one in status.ports):
            break
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", port))


def test_taken_port_is_listed_with_the_reason(engine_ready: Vm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        container = engine_ready.docker(
            "run", "-d", "-p", f"127.0.0.1:{port}:80", BUSYBOX_IMAGE, "sleep", "600"
        ).strip()
        try:
            for status in engine_ready.client.watch():
                found = [one for one in status.ports if one.port == port]
                if found:
                    break
            assert "cannot be had" in found[0].error
        finally:
            engine_ready.docker("rm", "-f", container)


def test_guest_has_the_hosts_time(engine_ready: Vm) -> None:
    engine_ready.run("date -s '2020-01-01 00:00:00'")
    deadline = time.monotonic() + 120
    while abs(float(engine_ready.run("date +%s")) - time.time()) > 5:
        assert time.monotonic() < deadline


def test_machine_is_reached_with_its_pinned_keys_alone(engine_ready: Vm) -> None:
    for path in (engine_ready.paths.client_key, engine_ready.paths.host_key, engine_ready.paths.guest_config):
        assert path.stat().st_mode & 0o777 == 0o600


def test_daemon_json_is_reloaded_restarted_and_rolled_back(engine_ready: Vm, container_running: str) -> None:
    client = engine_ready.client
    before = engine_ready.docker("inspect", "-f", "{{.State.Pid}}", container_running)
    original = client.engine_config().content
    try:
        reloaded = client.apply_engine_config('{"debug": true}')
        assert (reloaded.ok, reloaded.mode) == (True, "reload"), reloaded.message
        assert engine_ready.run("cat /var/lib/moorage/daemon.json") == '{"debug": true}'
        assert "true" in engine_ready.docker("info", "-f", "{{.Debug}}")
        restarted = client.apply_engine_config('{"debug": true, "shutdown-timeout": 20, "log-driver": "local"}')
        assert (restarted.ok, restarted.mode) == (True, "restart"), restarted.message
        broken = client.apply_engine_config(
            '{"debug": true, "hosts": ["unix:///nowhere/x.sock"], "data-root": "/proc/nowhere"}'
        )
        assert not broken.ok
        engine_ready.wait("ready")
        assert "local" in engine_ready.docker("info", "-f", "{{.LoggingDriver}}")
    finally:
        client.apply_engine_config(original)
    engine_ready.wait("ready")
    assert engine_ready.docker("inspect", "-f", "{{.State.Pid}}", container_running) == before


def test_whole_life(own_vm: Vm) -> None:
    """Start, edit while down, stop in order, start again with the disk kept, delete without a trace."""
    client, paths = own_vm.client, own_vm.paths
    steps: list[str] = []
    client.start(steps.append, accelerator="tcg")
    assert any("waiting for the engine" in step for step in steps)
    own_vm.run("echo kept > /var/lib/moorage/kept")
    client.stop()
    assert client.status().state == "stopped"
    assert not paths.docker_socket.exists()
    assert "data disk unmounted" in paths.console_log.read_text(errors="replace")
    assert client.apply_engine_config('{"debug": true}').pending
    assert moorage("status", "--json").returncode == 3
    client.start()
    assert own_vm.run("cat /var/lib/moorage/kept") == "kept\n"
    assert "true" in own_vm.docker("info", "-f", "{{.Debug}}")
    client.delete()
    assert client.status().state == "absent"
    assert not paths.machine.exists()
    assert not list((docker_config() / "contexts" / "meta").glob("*/meta.json"))


def test_killed_machine_is_noticed_and_started_again(own_vm: Vm) -> None:
    client = own_vm.client
    client.start(saved_start="auto")
    client.kill()
    assert client.status().state == "stopped"
    with pytest.raises(HostError):
        client.pipes()
    client.start()
    assert client.status().state == "ready"


def test_guest_that_powers_off_by_itself_is_noticed(own_vm: Vm) -> None:
    own_vm.client.start()
    own_vm.run("poweroff", check=False)
    assert "from inside" in own_vm.wait("stopped").message
