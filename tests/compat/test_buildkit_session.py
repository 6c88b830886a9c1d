"""What builds get from real clients over their sessions: folders of every shape, agents, standard input; and clients that go."""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import buildx
from tests.support.moored import DEADLINE, Moored, wait_for

pytestmark = pytest.mark.root


def environment(moored: Moored) -> dict[str, str]:
    """The environment of somebody who has buildx and has chosen nothing."""
    buildx.install(moored.docker_config)
    found = dict(moored.docker_environment())
    del found["DOCKER_BUILDKIT"]
    return found


def build(
    moored: Moored, *options: str, stdin: bytes | None = None, more: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Build with buildx, whether or not that succeeds."""
    done = subprocess.run(
        ["docker", "buildx", "build", "--progress=plain", *options],
        env={**environment(moored), **(more or {})}, input=stdin or b"", capture_output=True, timeout=180, check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def built(moored: Moored, *options: str, stdin: bytes | None = None, more: Mapping[str, str] | None = None) -> str:
    """Build with success and return what was said."""
    done = build(moored, *options, stdin=stdin, more=more)
    assert done.returncode == 0, f"{done.stderr}\n{moored.log()}"
    return done.stderr


def upgrade(moored: Moored, path: str, *headers: str) -> tuple[str, socket.socket]:
    """Ask for another protocol; return the answer, and the connection."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE)
    connection.connect(str(moored.socket))
    head = "".join(f"{each}\r\n" for each in ("Host: x", "Content-Length: 0", *headers))
    connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:  # not a byte more: what follows is another protocol
        answer += connection.recv(1)
    if length := re.search(rb"Content-Length: (\d+)", answer):
        answer += connection.recv(int(length[1]), socket.MSG_WAITALL)
    return answer.decode(), connection


def test_a_session_is_opened_and_refused_in_dockerds_words(moored: Moored) -> None:
    name = "X-Docker-Expose-Session-Uuid: testsessioncreate"
    wanted = ("Connection: Upgrade", "Upgrade: h2c", name)
    answer, connection = upgrade(moored, "/session", *wanted)
    with connection:
        assert answer.startswith("HTTP/1.1 101 ") and "Upgrade: h2c" in answer
        assert connection.recv(14, socket.MSG_WAITALL) == b"PRI * HTTP/2.0", "the engine is the one that asks"
        again, other = upgrade(moored, "/v1.43/session", *wanted)
        other.close()
        assert again.startswith("HTTP/1.1 400 ") and "session testsessioncreate already exists" in again
    for headers, words in (((), "no upgrade proto in request"), (("Upgrade: foo",), "protocol foo not supported")):
        for path, status in (("/session", 400), ("/grpc", 500)):
            answer, connection = upgrade(moored, path, *headers)
            connection.close()
            assert answer.startswith(f"HTTP/1.1 {status} ") and words in answer, answer
    answer, connection = upgrade(moored, "/grpc", "Connection: Upgrade", "Upgrade: h2c")
    with connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert answer.startswith("HTTP/1.1 101 ") and connection.recv(9, socket.MSG_WAITALL)[3:4] == b"\4"

    def opens_again() -> bool:
        answer, connection = upgrade(moored, "/session", *wanted)
        connection.close()
        return answer.startswith("HTTP/1.1 101 ")

    wait_for("the name of a session that is over to be free", opens_again)


def test_a_folder_of_every_kind_of_file_arrives_as_it_is(moored: Moored, tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "dir" / "empty").mkdir(parents=True)
    (context / "large").write_bytes(os.urandom(9 << 20))
    (context / "dir" / "run.sh").write_text("#!/bin/sh\n")
    (context / "dir" / "run.sh").chmod(0o4755)
    (context / "dir" / "täglich $x 'y' +%41").write_text("named")
    os.utime(context / "dir" / "run.sh", (1_500_000_000, 1_500_000_000))
    os.link(context / "large", context / "twin")
    (context / "link").symlink_to("./dir/run.sh")
    (context / "outside").symlink_to("/etc/passwd")
    os.chown(context / "dir", 1234, 1234)
    os.mkfifo(context / "pipe")
    (context / "left-out").write_text("x")
    (context / ".dockerignore").write_text("left-out\n*.täg\n")
    with socket.socket(socket.AF_UNIX) as listener:  # clients send it as an empty file
        listener.bind(str(context / "sock"))
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    built(moored, "-t", "every-kind", str(context))
    inside = (
        "cd /c && stat -c '%n %F %a %u %g' dir dir/empty dir/run.sh large pipe && stat -c %Y dir/run.sh && readlink link && readlink outside"
        " && cmp large twin && cat dir/t* && ls"
    )
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "Dockerfile").write_text("FROM busybox\nCOPY --from=every-kind / /c\n")
    built(moored, "-t", "look", str(tmp_path / "look"))
    said = moored.docker("run", "--rm", "look", "sh", "-c", inside).splitlines()
    assert said == [
        "dir directory 755 0 0", "dir/empty directory 755 0 0", "dir/run.sh regular file 4755 0 0", "large regular file 644 0 0",
        "pipe fifo 644 0 0", "1500000000", "./dir/run.sh", "/etc/passwd",
        "named" + "Dockerfile", "dir", "large", "link", "outside", "pipe", "sock", "twin",
    ]  # fmt: skip
    digest = moored.docker("run", "--rm", "look", "sha256sum", "/c/large").split()[0]
    assert digest == hashlib.sha256((context / "large").read_bytes()).hexdigest()


def test_a_context_may_come_by_standard_input(moored: Moored, tmp_path: Path) -> None:
    assert "writing image" in built(moored, "-", stdin=b"FROM busybox\nRUN echo from-stdin > /said\n")
    (tmp_path / "file").write_text("in the folder")
    built(moored, "-t", "piped", "-f", "-", str(tmp_path), stdin=b"FROM busybox\nCOPY file /\n")
    assert moored.docker("run", "--rm", "piped", "cat", "/file") == "in the folder"
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY file /archived\n")
    archive = subprocess.run(["tar", "-C", tmp_path, "-cz", "."], capture_output=True, check=True).stdout
    built(moored, "-t", "archived", "-", stdin=archive)
    assert moored.docker("run", "--rm", "archived", "cat", "/archived") == "in the folder"


def test_a_second_folder_is_a_context_by_its_name(moored: Moored, tmp_path: Path) -> None:
    for name in ("main", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "main" / "Dockerfile").write_text("FROM busybox\nCOPY --from=second file /\n")
    built(moored, "-t", "named", "--build-context", f"second={tmp_path / 'other'}", str(tmp_path / "main"))
    assert moored.docker("run", "--rm", "named", "cat", "/file") == "other"


def transferred(said: str) -> float:
    """How many bytes of the context came, as buildx says."""
    found = re.findall(r"transferring context: ([0-9.]+)(B|kB|MB)", said)
    assert found, said
    return max(float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit] for number, unit in found)


def test_a_folder_that_is_built_again_is_sent_no_more_than_has_changed(moored: Moored, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY . /c\n")
    (tmp_path / "large").write_bytes(os.urandom(3 << 20))
    (tmp_path / "small").write_text("first")
    assert transferred(built(moored, str(tmp_path))) > 3e6
    (tmp_path / "small").write_text("second")
    assert transferred(built(moored, "-t", "again", str(tmp_path))) < 10e3
    assert moored.docker("run", "--rm", "again", "cat", "/c/small") == "second"
    digest = moored.docker("run", "--rm", "again", "sha256sum", "/c/large").split()[0]
    assert digest == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()
    subprocess.run(["docker", "buildx", "prune", "-f"], env=environment(moored), check=True, timeout=DEADLINE)
    assert transferred(built(moored, str(tmp_path))) > 3e6
    moored.api.call("POST", "/build/prune")
    assert transferred(built(moored, str(tmp_path))) > 3e6


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """A real SSH agent with a key; its socket."""
    path = tmp_path / "agent.sock"
    running = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        wait_for("the agent to listen", path.exists)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "key-of-the-test", "-f", tmp_path / "key"], check=True
        )
        subprocess.run(
            ["ssh-add", "-q", tmp_path / "key"],
            env={**os.environ, "SSH_AUTH_SOCK": str(path)},
            check=True,
            timeout=DEADLINE,
        )
        yield path
    finally:
        running.terminate()
        running.wait(DEADLINE)


def take_along(program: str, folder: Path) -> None:
    """Put a program of this machine below a folder, with the libraries that it needs."""
    path = shutil.which(program)
    assert path is not None
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    for each in [path, *re.findall(r"(/\S+) \(0x", listed)]:
        (folder / each.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(each, folder / each.lstrip("/"))


def test_a_command_asks_the_clients_agent(moored: Moored, tmp_path: Path, agent: Path) -> None:
    context = tmp_path / "context"
    take_along("ssh-add", context / "root")
    with_agent = {"SSH_AUTH_SOCK": str(agent)}
    (context / "Dockerfile").write_text(
        "FROM busybox\nCOPY root /\nRUN --mount=type=ssh ssh-add -l && stat -c %a $SSH_AUTH_SOCK\n"
        'RUN test -z "$SSH_AUTH_SOCK"\nRUN --mount=type=ssh,id=missing test -z "$SSH_AUTH_SOCK"\n'
    )
    said = built(moored, "--ssh", "default", "--no-cache", str(context), more=with_agent)
    assert "key-of-the-test (ED25519)" in said and " 600\n" in said, said
    (context / "Dockerfile").write_text("FROM busybox\nRUN --mount=type=ssh,id=missing,required=true true\n")
    for offered in (("--ssh", "default"), ()):
        done = build(moored, *offered, str(context), more=with_agent)
        assert done.returncode != 0 and "unset ssh forward key missing" in done.stderr, done.stderr


def test_a_client_that_is_killed_while_it_sends_leaves_nothing(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY . /\n")
    with (tmp_path / "blob").open("wb") as file:
        file.truncate(100 << 30)
    client = subprocess.Popen(
        ["docker", "buildx", "build", "--progress=plain", str(tmp_path)], env=environment(moored),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert client.stderr is not None
    with client.stderr:
        wait_for("the context to be under way", lambda: "transferring context: " in client.stderr.readline())  # type: ignore[union-attr]
        os.killpg(client.pid, signal.SIGKILL)
        client.wait(DEADLINE)

    def is_idle() -> bool:
        listed = moored.sandbox.run("ls", "-l", f"/proc/{moored.daemon_pid()}/fd")
        return "context-" not in listed.stdout

    wait_for("the engine to let go of the context", is_idle)
    assert "Traceback" not in moored.log()


def test_a_daemon_that_stops_ends_its_builds_at_once(fresh_moored: Moored, tmp_path: Path) -> None:
    moored = fresh_moored
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo now && sleep 1000\n")
    client = subprocess.Popen(
        ["docker", "buildx", "build", "--progress=plain", str(tmp_path)], env=environment(moored),
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stderr is not None
    with client.stderr:
        wait_for("the command to run", lambda: re.search(r" now$", client.stderr.readline()))  # type: ignore[union-attr]
        assert moored.stop(timeout=25) == 0, "it waited for what it had stopped listening to"
        assert client.wait(DEADLINE) == 1
        assert "rpc error" in client.stderr.read()
    moored.start()
    assert "did not end" not in moored.log(), "the command's container was left to the next daemon"
