"""Operations of containers by checked requests: statuses, texts and the traps of live-restore.md, section 6."""

import base64
import bz2
import contextlib
import gzip
import io
import json
import lzma
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from tests.support.fuzzing import tar_bytes
from tests.support.leaks import cgroups
from tests.support.moored import DEADLINE, Moored, wait_for
from tests.support.openapi import Api

pytestmark = pytest.mark.root

SLEEP: dict[str, Any] = {"Image": "busybox", "Cmd": ["sleep", "10000"], "HostConfig": {"NetworkMode": "none"}}


@pytest.fixture
def api(moored: Moored) -> Api:
    """A client whose replies are checked."""
    return moored.api


@contextlib.contextmanager
def made(api: Api, body: dict[str, Any] | None = None, *, start: bool = False, **more: Any) -> Iterator[str]:
    """A container for a while."""
    reply = api.post("/containers/create", {**SLEEP, **(body or {})}, **more)
    assert reply.status == 201, reply.body
    container = reply.json["Id"]
    try:
        if start:
            assert api.post(f"/containers/{container}/start").status == 204
        yield container
    finally:
        api.delete(f"/containers/{container}", force=True, v=True)


class Connection:
    """A raw connection to the API."""

    def __init__(self, moored: Moored, head: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(moored.socket))
        self.socket.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        self.rest = b""

    def head(self) -> str:
        """Read up to the end of the headers."""
        while b"\r\n\r\n" not in self.rest:
            data = self.socket.recv(4096)
            assert data, self.rest
            self.rest += data
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        return head.decode()

    def all(self) -> bytes:
        """Read to the end."""
        while data := self.socket.recv(65536):
            self.rest += data
        return self.rest

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Split a multiplexed stream."""
    found = []
    while data:
        stream, length = struct.unpack(">BxxxI", data[:8])
        found.append((stream, data[8 : 8 + length]))
        data = data[8 + length :]
    return found


def test_create_refuses_what_dockerd_refuses(api: Api) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"Image": "nope:1"}, 404, "No such image: nope:1"),
        ({"Image": "busybox", "Cmd": [], "Entrypoint": [""]}, 400, "no command specified"),
        ({"Image": "busybox", "HostConfig": {"Memory": 1}}, 400, "Minimum memory limit allowed is 6MB"),
        ({"Image": "busybox", "WorkingDir": "rel"}, 400, "it needs to be an absolute path"),
        ({"Image": "busybox", "HostConfig": {"LogConfig": {"Type": "nope"}}}, 400, "no log driver named 'nope'"),
        ({"Image": "busybox", "HostConfig": {"Binds": ["/x:/y:nope"]}}, 400, 'invalid mode: "nope"'),
        ({"Image": "busybox", "HostConfig": {"VolumesFrom": ["nope"]}}, 400, "No such container: nope"),
        ({"Image": "busybox", "StopSignal": "NOPE"}, 400, "invalid signal: NOPE"),
        ({"Image": "busybox", "HostConfig": []}, 400, "invalid JSON"),
        ({}, 400, "config cannot be empty"),
    ]
    for body, status, text in cases:
        reply = api.post("/containers/create", body)
        assert (reply.status, text in reply.message) == (status, True), (body, reply.body)
    assert api.get("/containers/json", all=1).json == []


def test_namespace_of_an_unknown_container_is_refused_at_start(api: Api) -> None:
    with made(api, {"HostConfig": {"NetworkMode": "container:nope"}}) as container:
        reply = api.post(f"/containers/{container}/start")
        assert (reply.status, reply.message) == (404, "No such container: nope")


def test_memory_beyond_the_limit_is_told(api: Api) -> None:
    body = {
        "Cmd": ["sh", "-c", "x=$(head -c 60000000 /dev/zero | tr '\\0' a)"],
        "HostConfig": {"NetworkMode": "none", "Memory": 10 << 20},
    }
    with made(api, body, start=True) as container:
        assert api.post(f"/containers/{container}/wait").json["StatusCode"] != 0
        assert api.get(f"/containers/{container}/json").json["State"]["OOMKilled"] is True


def test_unknown_container_is_404_everywhere(api: Api) -> None:
    calls = [
        ("GET", "json"), ("GET", "top"), ("GET", "changes"), ("GET", "export"), ("GET", "stats"), ("POST", "start"),
        ("POST", "stop"), ("POST", "restart"), ("POST", "kill"), ("POST", "pause"), ("POST", "unpause"),
        ("POST", "wait"),
    ]  # fmt: skip
    for method, verb in calls:
        reply = api.call(method, f"/containers/nope/{verb}")
        assert (reply.status, reply.message) == (404, "No such container: nope"), verb
    assert api.get("/containers/nope/logs", stdout=1).status == 404
    attached = api.call(
        "POST", "/containers/nope/attach", check=False
    )  # in the stream that would have been, as dockerd
    assert (attached.status, attached.body) == (404, b"No such container: nope\r\n")
    assert api.delete("/containers/nope").status == 404


def test_id_prefix_finds_and_ambiguity_is_said(api: Api) -> None:
    with made(api) as container:
        assert api.get(f"/containers/{container[:6]}/json").json["Id"] == container
    with contextlib.ExitStack() as stack:
        ids = [stack.enter_context(made(api)) for _ in range(20)]
        first = next(a[0] for a in ids if sum(b[0] == a[0] for b in ids) > 1)
        reply = api.call("GET", f"/containers/{first}/json", check=False)  # 400: dockerd's, not the document's
        assert "multiple IDs found with provided prefix" in reply.message


def test_states_that_already_are_answer_304_and_conflicts_409(api: Api) -> None:
    with made(api, start=True) as container:

        def status(verb: str) -> int:
            # dockerd's statuses, some of which the document does not have
            return api.call("POST", f"/containers/{container}/{verb}", check=False).status

        assert status("start") == 304
        assert status("pause") == 204
        assert status("start") == 409
        assert status("pause") == 409
        assert status("unpause") == 204
        assert status("unpause") == 409
        assert api.delete(f"/containers/{container}").status == 409
        assert status("kill") == 204
        assert status("kill") == 409
        assert status("stop") == 304


def test_inspect_fits_the_api_in_every_state(api: Api) -> None:
    body = {
        "Labels": {"a": "b"},
        "Healthcheck": {"Test": ["CMD", "true"]},
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {"NetworkMode": "bridge", "Binds": ["x1:/x"], "Tmpfs": {"/t": ""}, "CapAdd": ["NET_ADMIN"]},
    }
    with made(api, body, name="looked") as container:
        created = api.get(f"/containers/{container}/json", size=1).json
        assert created["State"]["Status"] == "created"
        assert created["State"]["StartedAt"] == "0001-01-01T00:00:00Z"
        assert created["SizeRw"] == 0
        api.post(f"/containers/{container}/start")
        running = api.get("/containers/looked/json").json
        assert running["State"]["Running"] is True
        assert running["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        assert running["NetworkSettings"]["Ports"] == {"80/tcp": None}
        assert running["Mounts"][0]["Name"] == "x1"
        listed = api.get("/containers/json").json[0]
        assert listed["Ports"] == [{"PrivatePort": 80, "Type": "tcp"}]
        api.post("/containers/looked/kill")
        ended = api.get("/containers/looked/json").json
        assert (ended["State"]["ExitCode"], ended["State"]["Pid"]) == (137, 0)
        assert ended["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""
    api.delete("/volumes/x1")


def test_wait_answers_headers_before_the_end(moored: Moored, api: Api) -> None:
    with made(api, {"Cmd": ["sh", "-c", "exit 5"]}) as container:
        with Connection(
            moored, f"POST /v1.51/containers/{container}/wait?condition=next-exit HTTP/1.1\nHost: x"
        ) as wait:
            assert wait.head().startswith("HTTP/1.1 200")
            api.post(f"/containers/{container}/start")
            while b"\n" not in wait.rest:
                wait.rest += wait.socket.recv(4096)
            assert b'{"StatusCode":5}' in wait.rest


def test_wait_conditions(api: Api) -> None:
    with made(api) as container:
        assert api.post(f"/containers/{container}/wait").json == {"StatusCode": 0}
        assert api.post(f"/containers/{container}/wait", condition="nope").status == 400
        api.post(f"/containers/{container}/start")
        outcome: list[Any] = []
        waiting = threading.Thread(
            target=lambda: outcome.append(api.post(f"/containers/{container}/wait", condition="removed").json)
        )
        waiting.start()
        api.post(f"/containers/{container}/kill")
        api.delete(f"/containers/{container}")
        waiting.join(DEADLINE)
        assert outcome == [{"StatusCode": 137}]


def _attach_head(container: str, query: str, *, upgrade: bool = True) -> str:
    more = "\nConnection: Upgrade\nUpgrade: tcp" if upgrade else ""
    return f"POST /v1.51/containers/{container}/attach?{query} HTTP/1.1\nHost: x\nContent-Length: 0{more}"


def test_attach_upgrades_frames_and_half_closes(moored: Moored, api: Api) -> None:
    body = {"Cmd": ["sh", "-c", "cat; echo err >&2"], "OpenStdin": True, "StdinOnce": True}
    with made(api, body) as container:
        with Connection(moored, _attach_head(container, "stream=1&stdin=1&stdout=1&stderr=1")) as attached:
            head = attached.head()
            assert head.startswith("HTTP/1.1 101 UPGRADED")
            assert "Content-Type: application/vnd.docker.multiplexed-stream" in head
            api.post(f"/containers/{container}/start")
            attached.socket.sendall(b"hello\n")
            attached.socket.shutdown(socket.SHUT_WR)
            found = frames(attached.all())
        assert b"".join(data for stream, data in found if stream == 1) == b"hello\n"
        assert b"".join(data for stream, data in found if stream == 2) == b"err\n"


def test_attach_without_upgrade_answers_200_and_raw(moored: Moored, api: Api) -> None:
    with made(api, {"Cmd": ["sh", "-c", "echo tty"], "Tty": True}) as container:
        with Connection(moored, _attach_head(container, "stream=1&stdout=1", upgrade=False)) as attached:
            head = attached.head()
            assert head.startswith("HTTP/1.1 200 OK")
            assert "application/vnd.docker.raw-stream" in head
            api.post(f"/containers/{container}/start")
            assert attached.all() == b"tty\r\n"


def test_attach_with_logs_shows_the_past_first(moored: Moored, api: Api) -> None:
    script = "echo past; until [ -e /go ]; do sleep 0.05; done; echo future"
    with made(api, {"Cmd": ["sh", "-c", script]}, start=True) as container:
        wait_for("the past", lambda: api.get(f"/containers/{container}/logs", stdout=1).body)
        with Connection(moored, _attach_head(container, "logs=1&stream=1&stdout=1")) as attached:
            attached.head()
            while b"past" not in attached.rest:
                attached.rest += attached.socket.recv(4096)
            moored.docker("exec", container, "touch", "/go", check=False)  # the end that it brings about may end it too
            assert [data for _, data in frames(attached.all())] == [b"past\n", b"future\n"]


def test_attach_by_websocket(moored: Moored, api: Api) -> None:
    with made(api, {"Cmd": ["cat"], "OpenStdin": True, "StdinOnce": True}, start=True) as container:
        key = base64.b64encode(b"0123456789abcdef").decode()
        head = (
            f"GET /v1.51/containers/{container}/attach/ws?stream=1&stdin=1&stdout=1 HTTP/1.1\nHost: x\n"
            f"Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: {key}"
        )
        with Connection(moored, head) as attached:
            assert attached.head().startswith("HTTP/1.1 101")
            attached.socket.sendall(bytes([0x82, 0x80 | 3]) + b"\0\0\0\0" + b"hi\n")
            while b"hi\n" not in attached.rest:
                data = attached.socket.recv(4096)
                assert data
                attached.rest += data


def test_logs_need_a_stream_and_a_driver_that_keeps_them(api: Api) -> None:
    with made(api) as container:
        reply = api.call("GET", f"/containers/{container}/logs", check=False)
        assert (reply.status, reply.message) == (400, "Bad parameters: you must choose at least one stream")
    with made(api, {"HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "none"}}}) as container:
        reply = api.call("GET", f"/containers/{container}/logs", query={"stdout": 1}, check=False)
        assert (reply.status, reply.message) == (501, "configured logging driver does not support reading")


def test_logs_are_framed_and_follow_ends_with_the_container(api: Api) -> None:
    with made(api, {"Cmd": ["sh", "-c", "echo a; echo b >&2"]}, start=True) as container:
        data = api.get(f"/containers/{container}/logs", stdout=1, stderr=1, follow=1).body
        assert sorted(frames(data)) == [(1, b"a\n"), (2, b"b\n")]
        assert frames(api.get(f"/containers/{container}/logs", stderr=1, tail="nonsense").body) == [(2, b"b\n")]
        assert api.get(f"/containers/{container}/logs", stdout=1, tail="0").body == b""


def test_archive_describes_fetches_and_puts(api: Api) -> None:
    with made(api) as container:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            entry = tarfile.TarInfo("file")
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"data"))
        assert (
            api.call("PUT", f"/containers/{container}/archive", body=out.getvalue(), query={"path": "/"}).status == 200
        )
        head = api.call("HEAD", f"/containers/{container}/archive", query={"path": "/file"})
        found = json.loads(base64.b64decode(head.headers["X-Docker-Container-Path-Stat"]))
        assert (found["name"], found["size"]) == ("file", 4)
        got = api.call("GET", f"/containers/{container}/archive", query={"path": "/file"})
        with tarfile.open(fileobj=io.BytesIO(got.body)) as tar:
            member = tar.extractfile("file")
            assert member is not None
            assert member.read() == b"data"
        assert api.call("GET", f"/containers/{container}/archive", query={"path": "/nope"}).status == 404
        assert api.call("GET", f"/containers/{container}/archive", query={"path": ""}).status == 400
        bad = api.call("PUT", f"/containers/{container}/archive", body=b"x" * 1024, query={"path": "/"})
        assert bad.status == 400


def test_archive_is_put_in_whichever_compression(api: Api) -> None:
    with made(api) as container:
        for kind, press in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
            body = press(tar_bytes({f"from-{kind}": b"data"}))
            assert api.call("PUT", f"/containers/{container}/archive", body=body, query={"path": "/"}).status == 200
            assert api.call("HEAD", f"/containers/{container}/archive", query={"path": f"/from-{kind}"}).status == 200


def test_links_do_not_lead_a_copy_out_of_the_root(api: Api, moored: Moored) -> None:
    with made(api, start=True) as container:
        moored.docker("exec", container, "sh", "-c", "ln -s / /up; ln -s ../../../../etc /etc2")
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("planted"))
        assert (
            api.call("PUT", f"/containers/{container}/archive", body=out.getvalue(), query={"path": "/etc2"}).status
            == 200
        )
        assert moored.docker("exec", container, "ls", "/etc/planted") == "/etc/planted"


def test_stats_are_numbers_and_none_for_a_stopped_one(api: Api) -> None:
    with made(api, start=True) as container:
        one = json.loads(api.call("GET", f"/containers/{container}/stats", query={"stream": 0, "one-shot": 1}).body)
        assert one["pids_stats"]["current"] >= 1
        assert one["cpu_stats"]["system_cpu_usage"] > 0
        assert one["memory_stats"]["usage"] > 0
        stream = api.lines("GET", f"/containers/{container}/stats")
        first, second = next(stream), next(stream)
        stream.close()
        assert second["preread"] == first["read"]
        assert second["precpu_stats"] == first["cpu_stats"]
        api.post(f"/containers/{container}/kill")
        ended = json.loads(api.call("GET", f"/containers/{container}/stats", query={"stream": 0}).body)
        assert ended["memory_stats"] == {}


def test_log_frames_are_lines_but_for_the_docker_cli(moored: Moored, api: Api) -> None:
    with made(api, {"Cmd": ["seq", "1000"]}) as container:
        api.post(f"/containers/{container}/start")
        api.post(f"/containers/{container}/wait")
        found = {}
        for agent in ("docker-sdk-python/7", "Docker-Client/28.0.0 (linux)"):
            reply = api.call("GET", f"/containers/{container}/logs", query={"stdout": 1}, headers={"User-Agent": agent})
            found[agent[:6]] = [data for _, data in frames(reply.body)]
        assert found["docker"] == [b"%d\n" % number for number in range(1, 1001)]
        assert b"".join(found["Docker"]) == b"".join(found["docker"])
        assert len(found["Docker"]) < 100


def test_archive_that_contradicts_itself_is_the_clients_fault(api: Api) -> None:
    archive = tar_bytes({"a": b"x", "a/b": b"x"})
    with made(api) as container:
        target = f"/containers/{container}/archive"
        put = api.call("PUT", target, query={"path": "/tmp"}, body=archive, check=False)
        got = api.call("GET", target, query={"path": "/tm\0p"}, check=False)
        long = api.call("GET", target, query={"path": "/" + "a" * 5000}, check=False)
    built = api.call("POST", "/build", body=archive, headers={"Content-Type": "application/x-tar"}, check=False)
    assert [put.status, got.status, long.status, built.status] == [400] * 4, (put.body, got.body, long.body, built.body)


def test_start_that_the_kernel_refuses_leaves_no_cgroup(moored: Moored, api: Api) -> None:
    host = {"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1000}]}  # no block device
    with made(api, {"HostConfig": host}) as container:
        assert api.call("POST", f"/containers/{container}/start", check=False).status == 500
        assert [name for name in cgroups(moored) if container in name] == []


def test_limit_of_processes_is_taken_away_live_and_a_senseless_one_refused(moored: Moored, api: Api) -> None:
    with made(api, {"HostConfig": {"PidsLimit": 50}}, start=True) as container:
        file = next(
            Path(name) / "pids.max"
            for name in cgroups(moored)
            if (Path(name) / "pids.max").exists() and container in name
        )
        assert file.read_text() == "50\n"
        api.post(f"/containers/{container}/update", {"PidsLimit": -1})
        assert file.read_text() == "max\n"
        refused = api.call("POST", f"/containers/{container}/update", body={"PidsLimit": 2**53}, check=False)
        assert refused.status == 400
        assert "Invalid argument" in refused.message


def test_cpu_quota_is_taken_away_live(moored: Moored, api: Api) -> None:
    with made(api, {"HostConfig": {"CpuQuota": 50_000}}, start=True) as container:
        folder = next(Path(name) for name in cgroups(moored) if name.endswith(container) and _quota(Path(name)))
        assert _quota(folder).startswith("50000")
        api.post(f"/containers/{container}/update", {"CpuQuota": -1})
        assert _quota(folder).split()[0] in ("-1", "max")
        assert api.get(f"/containers/{container}/json").json["HostConfig"]["CpuQuota"] == -1
        api.post(f"/containers/{container}/restart", t=0)


def _quota(folder: Path) -> str:
    files = (folder / "cpu.cfs_quota_us", folder / "cpu.max")
    return next((file.read_text() for file in files if file.exists()), "")


def test_client_that_never_reads_holds_up_nobody(moored: Moored, api: Api) -> None:
    script = "dd if=/dev/zero bs=1M count=5 2>/dev/null | tr '\\0' a; exit 4"
    with made(api, {"Cmd": ["sh", "-c", script]}) as container:
        logs = f"GET /v1.51/containers/{container}/logs?stdout=1&follow=1 HTTP/1.1\nHost: x"
        with (
            Connection(moored, _attach_head(container, "stream=1&stdout=1")) as attached,
            Connection(moored, logs) as follower,
        ):
            attached.head()
            follower.head()
            api.post(f"/containers/{container}/start")
            assert api.post(f"/containers/{container}/wait").json == {"StatusCode": 4}
            assert sum(len(data) for _, data in frames(attached.all())) == 5 << 20  # it still gets everything


def test_resize_needs_numbers_and_a_running_container(api: Api) -> None:
    with made(api, {"Tty": True}, start=True) as container:
        assert api.post(f"/containers/{container}/resize", h=10, w=20).status == 200
        assert api.call("POST", f"/containers/{container}/resize", query={"h": "a", "w": 1}, check=False).status == 400
        api.post(f"/containers/{container}/kill")
        assert api.call("POST", f"/containers/{container}/resize", query={"h": 1, "w": 1}, check=False).status == 409


def test_docker_py_runs_and_reads(moored: Moored) -> None:
    with moored.client() as found_client:
        client: Any = found_client
        assert client.containers.run("busybox", "echo hello", remove=True, network_mode="none") == b"hello\n"
        container = client.containers.run(
            "busybox", "sleep 10000", detach=True, network_mode="none", name="py", labels={"k": "v"}
        )
        try:
            assert client.containers.list(filters={"label": "k=v", "status": "running"}) == [container]
            code, output = container.exec_run("sh -c 'echo out; exit 3'")
            assert (code, output) == (3, b"out\n")
            assert container.exec_run("sh -c 'echo o; echo e >&2'", demux=True).output == (b"o\n", b"e\n")
            assert container.stats(stream=False)["pids_stats"]["current"] >= 1
            assert container.top()["Titles"][:3] == ["UID", "PID", "PPID"]
            bits, found = container.get_archive("/etc/passwd")
            assert found["name"] == "passwd"
            assert b"root" in b"".join(bits)
            container.rename("renamed")
            container.reload()
            assert container.name == "renamed"
            container.kill()
            assert container.wait()["StatusCode"] == 137
            assert container.logs() == b""
            assert container.diff() is not None
        finally:
            container.remove(force=True)
        with pytest.raises(APIError, match="No such container"):
            client.api.start("renamed")


def test_docker_py_attaches_by_socket(moored: Moored) -> None:
    with moored.client() as found_client:
        client: Any = found_client
        container = client.containers.create(
            "busybox", "cat", stdin_open=True, network_mode="none", detach=True, tty=False
        )
        try:
            stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
            container.start()
            stream._sock.sendall(b"text\n")
            data = b""
            while len(data) < 13:
                data += stream._sock.recv(13 - len(data))
            assert frames(data) == [(1, b"text\n")]
            stream._sock.close()
            stream.close()
        finally:
            container.remove(force=True)
