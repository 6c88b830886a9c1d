"""Containers by the real docker CLI."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.moored import DEADLINE, Moored, wait_for

pytestmark = pytest.mark.root

LOOP = "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"


def _run_detached(moored: Moored, *arguments: str) -> str:
    return moored.docker("run", "-d", "--network", "none", *arguments)


def _remove(moored: Moored, *names: str) -> None:
    moored.docker("rm", "-f", "-v", *names)


def test_run_prints_output_and_returns_the_exit_code(moored: Moored) -> None:
    done = moored.docker_run("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert moored.docker("ps", "-aq") == ""


def test_run_feeds_standard_input_and_sees_its_end(moored: Moored) -> None:
    text = "".join(f"{number}\n" for number in range(2000))
    assert moored.docker("run", "--rm", "-i", "--network", "none", "busybox", "cat", input=text) + "\n" == text


def test_input_without_a_terminal_is_data_whatever_bytes_it_holds(moored: Moored) -> None:
    data = bytes(range(256)) * 64 + b"\x10\x11" + os.urandom(1 << 20)  # ctrl-p ctrl-q would let a terminal's client go
    digest = hashlib.sha256(data).hexdigest()
    for command in (["run", "--rm", "-i", "busybox"], ["exec", "-i", "reader"]):
        if command[0] == "exec":
            _run_detached(moored, "--name", "reader", "busybox", "sleep", "1000")
        client = moored.docker_popen(*command, "sh", "-c", "tee /proc/self/fd/2 | sha256sum", stdin=subprocess.PIPE)
        out, err = client.communicate(data, timeout=60)
        assert (client.returncode, out.split()[:1]) == (0, [digest.encode()])
        assert hashlib.sha256(err).hexdigest() == digest
    _remove(moored, "reader")


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc", 126), ("/etc/passwd", 126)])
def test_run_of_what_cannot_run_says_so(moored: Moored, command: str, code: int) -> None:
    done = moored.docker_run("run", "--rm", "--network", "none", "busybox", command)
    assert done.returncode == code
    assert "unable to start container process" in done.stderr
    assert moored.docker("ps", "-aq") == ""


def test_what_the_runtime_says_is_in_the_error_and_nowhere_else(moored: Moored) -> None:
    for _ in range(5):
        done = moored.docker_run("run", "--name", "refused", "--sysctl", "net.nope=1", "busybox", "true")
        assert done.returncode in (125, 127) and done.stdout == "" and "/proc/sys/net/nope" in done.stderr
        assert not re.search(r"^open ", done.stderr, re.MULTILINE), done.stderr
        assert moored.docker("logs", "refused") == ""
        moored.docker("rm", "refused")


def test_failed_start_leaves_a_container_that_says_why(moored: Moored) -> None:
    moored.docker("create", "--name", "failing", "--network", "none", "busybox", "no-such-program")
    assert moored.docker_run("start", "failing").returncode == 1
    state = json.loads(moored.docker("inspect", "-f", "{{json .State}}", "failing"))
    assert (state["Status"], state["ExitCode"]) == ("created", 127)
    assert "executable file not found in $PATH" in state["Error"]
    _remove(moored, "failing")


def test_terminal_is_one_with_the_size_of_the_client(moored: Moored) -> None:
    primary, secondary = os.openpty()
    try:
        import termios

        termios.tcsetwinsize(secondary, (33, 101))
        process = moored.docker_popen(
            "run", "--rm", "-it", "--network", "none", "busybox", "sh",
            stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True,
        )  # fmt: skip
        os.close(secondary)
        secondary = -1
        os.write(
            primary, b"until [ \"$(stty size)\" = '33 101' ]; do sleep 0.05; done; tty; echo size-is-right; exit 7\n"
        )
        output = b""
        while True:
            try:
                data = os.read(primary, 4096)
            except OSError:
                break
            if not data:
                break
            output += data
        assert process.wait(DEADLINE) == 7
        assert b"\r\nsize-is-right" in output
        assert b"/dev/pts/0" in output or b"/dev/console" in output
    finally:
        os.close(primary)
        if secondary >= 0:
            os.close(secondary)


def test_list_shows_containers_newest_first_and_filters(moored: Moored) -> None:
    _run_detached(moored, "--name", "one", "--label", "color=red", "busybox", "sleep", "1000")
    moored.docker("create", "--name", "two", "--label", "color=blue", "--network", "none", "busybox", "true")

    def names(*filters: str) -> list[str]:
        flags = [word for each in filters for word in ("--filter", each)]
        return moored.docker("ps", "-a", "--format", "{{.Names}}", *flags).split()

    try:
        assert names() == ["two", "one"]
        assert moored.docker("ps", "--format", "{{.Names}} {{.State}}") == "one running"
        assert names("label=color=red") == ["one"]
        assert names("label=color") == ["two", "one"]
        assert names("status=created") == ["two"]
        assert names("name=^/two$") == ["two"]
        assert names("ancestor=busybox") == ["two", "one"]
        assert names("before=two") == ["one"]
        assert names("since=one") == ["two"]
        assert names("network=none", "status=running") == ["one"]
        assert moored.docker("ps", "-aq", "-n", "1") == moored.docker("inspect", "-f", "{{.Id}}", "two")[:12]
        assert "invalid filter" in moored.docker_run("ps", "--filter", "nope=1").stderr
    finally:
        _remove(moored, "one", "two")


def test_stop_sends_the_stop_signal_and_then_kills(moored: Moored) -> None:
    _run_detached(moored, "--name", "polite", "busybox", "sh", "-c", LOOP)
    _run_detached(moored, "--name", "deaf", "--stop-timeout", "1", "busybox", "sh", "-c", "trap '' TERM; sleep 1000")
    _run_detached(
        moored, "--name", "usr1", "--stop-signal", "USR1", "busybox", "sh", "-c",
        "trap 'exit 5' USR1; while :; do sleep 0.05; done",
    )  # fmt: skip
    wait_for("the traps to be set", lambda: "line" in moored.docker("logs", "polite"))
    moored.docker("stop", "polite", "deaf", "usr1")
    codes = moored.docker("inspect", "-f", "{{.State.ExitCode}}", "polite", "deaf", "usr1").split()
    assert codes == ["0", "137", "5"]
    assert moored.docker_run("stop", "polite").returncode == 0  # 304 is no fault
    _remove(moored, "polite", "deaf", "usr1")


def test_kill_and_wait(moored: Moored) -> None:
    _run_detached(moored, "--name", "victim", "busybox", "sleep", "1000")
    waiting = moored.docker_popen("wait", "victim")
    moored.docker("kill", "-s", "WINCH", "victim")
    assert moored.docker("inspect", "-f", "{{.State.Running}}", "victim") == "true"
    moored.docker("kill", "victim")
    assert waiting.communicate(timeout=DEADLINE)[0] == b"137\n"
    assert "is not running" in moored.docker_run("kill", "victim").stderr
    assert "invalid signal" in moored.docker_run("kill", "-s", "NOPE", "victim").stderr
    _remove(moored, "victim")


def test_restart_gives_a_new_process(moored: Moored) -> None:
    _run_detached(moored, "--name", "again", "busybox", "sleep", "1000")
    before = moored.docker("inspect", "-f", "{{.State.Pid}}", "again")
    moored.docker("restart", "-t", "0", "again")
    after = moored.docker("inspect", "-f", "{{.State.Pid}} {{.State.Running}} {{.RestartCount}}", "again").split()
    assert after[0] != before
    assert after[1:] == ["true", "0"]
    _remove(moored, "again")


def test_pause_freezes_and_unpause_thaws(moored: Moored) -> None:
    _run_detached(moored, "--name", "cold", "busybox", "sh", "-c", LOOP)
    wait_for("a first line", lambda: moored.docker("logs", "cold"))
    moored.docker("pause", "cold")
    assert moored.docker("ps", "--format", "{{.State}}", "--filter", "name=cold") == "paused"
    frozen = moored.docker("logs", "cold")
    assert "is already paused" in moored.docker_run("pause", "cold").stderr
    assert "paused, unpause the container before exec" in moored.docker_run("exec", "cold", "true").stderr
    assert "paused and must be unpaused first" in moored.docker_run("rm", "cold").stderr
    moored.docker("unpause", "cold")
    wait_for("another line", lambda: len(moored.docker("logs", "cold")) > len(frozen))
    moored.docker("pause", "cold")
    moored.docker("stop", "-t", "5", "cold")
    assert moored.docker("inspect", "-f", "{{.State.ExitCode}}", "cold") in ("0", "137")
    _remove(moored, "cold")


def test_rename_and_taken_names(moored: Moored) -> None:
    moored.docker("create", "--name", "first", "--network", "none", "busybox", "true")
    moored.docker("create", "--name", "second", "--network", "none", "busybox", "true")
    for name, why in (
        ("first", 'Conflict. The container name "/first" is already in use'),
        ("no name", "Invalid container name (/no name), only"),
    ):
        assert f"Error when allocating new name: {why}" in moored.docker_run("rename", "second", name).stderr
    moored.docker("rename", "second", "third")
    assert moored.docker("inspect", "-f", "{{.Name}}", "third") == "/third"
    assert "No such container: second" in moored.docker_run("rm", "second").stderr
    assert "is already in use" in moored.docker_run("create", "--name", "first", "busybox", "true").stderr
    _remove(moored, "first", "third")


def test_rm_of_a_running_container_needs_force(moored: Moored) -> None:
    _run_detached(moored, "--name", "busy", "busybox", "sleep", "1000")
    refused = moored.docker_run("rm", "busy")
    assert "container is running: stop the container before removing or force remove" in refused.stderr
    moored.docker("rm", "-f", "busy")
    assert moored.docker("ps", "-aq") == ""


def test_logs_tail_since_timestamps_and_follow(moored: Moored) -> None:
    _run_detached(
        moored, "--name", "talk", "busybox", "sh", "-c",
        "for i in 1 2 3; do echo $i; done; echo e >&2; until [ -e /go ]; do sleep 0.05; done; echo 4",
    )  # fmt: skip
    wait_for("the first lines", lambda: len(moored.docker("logs", "talk").split()) == 3)
    assert moored.docker("logs", "--tail", "1", "talk") in ("3", "")
    assert moored.docker_run("logs", "talk").stderr == "e\n"
    stamped = moored.docker("logs", "-t", "talk").splitlines()[0]
    assert len(stamped.split()[0]) == len("2026-01-01T00:00:00.000000000Z")
    assert moored.docker("logs", "--since", str(int(time.time()) + 100), "talk") == ""
    follower = moored.docker_popen("logs", "-f", "talk")
    moored.docker("exec", "talk", "touch", "/go")
    out, _ = follower.communicate(timeout=DEADLINE)
    assert out.split() == [b"1", b"2", b"3", b"4"]
    _remove(moored, "talk")


def test_attach_sees_what_comes_and_detach_keys_leave_it_running(moored: Moored) -> None:
    _run_detached(moored, "-it", "--name", "shell", "busybox", "sh")
    primary, secondary = os.openpty()
    process = moored.docker_popen(
        "attach", "shell", stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True
    )
    os.close(secondary)
    seen = b""
    os.write(primary, b"echo he''llo\n")
    while b"hello" not in seen:
        seen += os.read(primary, 4096)
    os.write(primary, b"\x10\x11")
    process.wait(DEADLINE)
    os.close(primary)
    assert moored.docker("inspect", "-f", "{{.State.Running}}", "shell") == "true"
    _remove(moored, "shell")


def test_restart_policy_counts_and_gives_up(moored: Moored) -> None:
    _run_detached(moored, "--name", "flaky", "--restart", "on-failure:2", "busybox", "false")
    wait_for(
        "the policy to give up",
        lambda: moored.docker("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "flaky") == "2 exited",
    )
    _run_detached(moored, "--name", "ever", "--restart", "always", "busybox", "sh", "-c", "sleep 0.1; exit 1")
    wait_for("a restart", lambda: int(moored.docker("inspect", "-f", "{{.RestartCount}}", "ever")) >= 1)
    moored.docker("stop", "-t", "1", "ever")
    assert moored.docker("inspect", "-f", "{{.State.Status}}", "ever") == "exited"
    _remove(moored, "flaky", "ever")


def test_health_goes_from_starting_to_unhealthy_to_healthy(moored: Moored) -> None:
    _run_detached(
        moored, "--name", "checked", "--health-cmd", "test -e /ok && echo fine", "--health-interval", "100ms",
        "--health-retries", "2", "busybox", "sleep", "1000",
    )  # fmt: skip

    def status() -> str:
        return moored.docker("inspect", "-f", "{{.State.Health.Status}}", "checked")

    wait_for("unhealthy", lambda: status() == "unhealthy")
    moored.docker("exec", "checked", "touch", "/ok")
    wait_for("healthy", lambda: status() == "healthy")
    health = json.loads(moored.docker("inspect", "-f", "{{json .State.Health}}", "checked"))
    assert health["FailingStreak"] == 0
    assert health["Log"][-1]["Output"] == "fine\n"
    assert len(health["Log"]) <= 5
    assert "(healthy)" in moored.docker("ps", "--format", "{{.Status}}")
    _remove(moored, "checked")


def test_volumes_are_shared_filled_and_removed(moored: Moored, tmp_path: Path) -> None:
    moored.docker(
        "run", "--name", "data", "--network", "none", "-v", "/etc", "-v", "named:/n", "busybox", "touch", "/n/x"
    )
    out = moored.docker(
        "run", "--rm", "--network", "none", "--volumes-from", "data", "busybox", "ls", "/n", "/etc/passwd"
    )
    assert out.split() == ["/etc/passwd", "/n:", "x"]
    assert "volume is in use" in moored.docker_run("volume", "rm", "named").stderr
    moored.docker("rm", "-v", "data")
    assert moored.docker("volume", "ls", "-q") == "named"
    moored.docker("volume", "rm", "named")


def test_a_file_is_bound_read_only_where_the_image_has_nothing(moored: Moored, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("there\n")
    done = moored.docker_run("run", "--rm", "-v", f"{file}:/run/new/file:ro", "busybox", "sh", "-c", "cat /run/new/file; echo x > /run/new/file")  # fmt: skip
    assert done.stdout == "there\n", done
    assert "Read-only file system" in done.stderr


def test_mounts_tmpfs_binds_and_read_only_root(moored: Moored) -> None:
    folder = moored.sandbox.root / "bound"
    folder.mkdir()
    (folder / "file").write_text("content")
    script = "cat /b/file; touch /b/y 2>/dev/null || echo ro; touch /t/x && echo tmp; touch /x 2>/dev/null || echo root"
    out = moored.docker(
        "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/t", "-v", f"{folder}:/b:ro", "busybox",
        "sh", "-c", script,
    )  # fmt: skip
    assert out == "contentro\ntmp\nroot"
    refused = moored.docker_run("run", "--rm", "--mount", "type=bind,src=/no/such,dst=/x", "busybox", "true")
    assert "bind source path does not exist: /no/such" in refused.stderr


def test_namespaces_of_another_container_are_joined(moored: Moored) -> None:
    _run_detached(moored, "--name", "host1", "--ipc", "shareable", "busybox", "sleep", "1000")
    out = moored.docker(
        "run", "--rm", "--pid", "container:host1", "--ipc", "container:host1", "--network", "container:host1", "busybox",
        "sh", "-c", "ps | grep -c '[s]leep 1000'; readlink /proc/self/ns/net",
    ).split()  # fmt: skip
    pid = moored.docker("inspect", "-f", "{{.State.Pid}}", "host1")
    assert out == ["1", moored.sandbox.run("readlink", f"/proc/{pid}/ns/net").stdout.strip()]
    moored.docker("kill", "host1")
    refused = moored.docker_run("run", "--rm", "--network", "container:host1", "busybox", "true")
    assert "non running container" in refused.stderr
    _remove(moored, "host1")


def test_cp_both_ways_running_and_stopped(moored: Moored, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("copied")
    _run_detached(moored, "--name", "box", "-v", "vol:/v", "--tmpfs", "/t", "busybox", "sleep", "1000")
    for target in ("/root/", "/v/", "/t/new"):
        moored.docker("cp", str(tmp_path / "in"), f"box:{target}")
    assert moored.docker("exec", "box", "cat", "/root/in", "/v/in", "/t/new") == "copied" * 3
    moored.docker("kill", "box")
    for number, source in enumerate(("/root/in", "/v/in")):
        moored.docker("cp", f"box:{source}", str(tmp_path / f"out{number}"))
        assert (tmp_path / f"out{number}").read_text() == "copied"
    assert "Could not find the file /nope in container box" in moored.docker_run("cp", "box:/nope", "-").stderr
    _remove(moored, "box")
    moored.docker("volume", "rm", "vol")


def test_diff_export_and_commit(moored: Moored, tmp_path: Path) -> None:
    moored.docker(
        "run", "--name", "changed", "--network", "none", "busybox", "sh", "-c", "echo x > /new; rm /etc/group"
    )
    assert moored.docker("diff", "changed").splitlines() == ["C /etc", "D /etc/group", "A /new"]
    moored.docker("export", "-o", str(tmp_path / "root.tar"), "changed")
    assert b"new" in (tmp_path / "root.tar").read_bytes()
    moored.docker("commit", "-m", "why", "-a", "me", "changed", "derived:1")
    assert moored.docker("run", "--rm", "--network", "none", "derived:1", "cat", "/new") == "x"
    _remove(moored, "changed")
    moored.docker("rmi", "derived:1")


def test_update_changes_limits_of_a_running_container(moored: Moored) -> None:
    _run_detached(moored, "--name", "limited", "--memory", "64m", "busybox", "sleep", "1000")
    moored.docker(
        "update", "--memory", "96m", "--memory-swap", "128m", "--cpus", "0.5", "--restart", "always", "limited"
    )
    found = json.loads(moored.docker("inspect", "-f", "{{json .HostConfig}}", "limited"))
    assert (found["Memory"], found["MemorySwap"], found["NanoCpus"]) == (96 << 20, 128 << 20, 500_000_000)
    assert found["RestartPolicy"]["Name"] == "always"
    limit = json.loads(moored.api.call("GET", "/containers/limited/stats", query={"stream": 0, "one-shot": 1}).body)
    assert limit["memory_stats"]["limit"] == 96 << 20
    assert "Minimum memory limit" in moored.docker_run("update", "--memory", "1m", "limited").stderr
    _remove(moored, "limited")


def test_top_and_stats_show_what_runs(moored: Moored) -> None:
    _run_detached(moored, "--name", "shown", "busybox", "sleep", "12345")
    assert "sleep 12345" in moored.docker("top", "shown")
    assert moored.docker("top", "shown", "-o", "pid,comm").split()[0] == "PID"
    assert "shown" in moored.docker("stats", "--no-stream", "shown")
    moored.docker("kill", "shown")
    assert "is not running" in moored.docker_run("top", "shown").stderr
    _remove(moored, "shown")


def test_prune_takes_what_does_not_run(moored: Moored) -> None:
    _run_detached(moored, "--name", "kept", "busybox", "sleep", "1000")
    moored.docker("create", "--name", "gone", "--label", "x=1", "--network", "none", "busybox", "true")
    moored.docker("create", "--name", "other", "--network", "none", "busybox", "true")
    moored.docker("container", "prune", "-f", "--filter", "label=x=1")
    assert set(moored.docker("ps", "-a", "--format", "{{.Names}}").split()) == {"kept", "other"}
    moored.docker("container", "prune", "-f")
    assert moored.docker("ps", "-a", "--format", "{{.Names}}") == "kept"
    _remove(moored, "kept")


def test_events_tell_a_containers_life(moored: Moored) -> None:
    since = time.time()
    moored.docker("run", "--rm", "--name", "lived", "--network", "none", "busybox", "true")
    out = moored.docker(
        "events", "--since", f"{since:.6f}", "--until", f"{time.time() + 0.5:.6f}", "--filter", "container=lived",
        "--format", "{{.Action}}",
    )  # fmt: skip
    assert out.split() == ["create", "attach", "start", "die", "destroy"]


def test_events_show_execs_and_mounts_as_dockerd_words_them(moored: Moored) -> None:
    since = time.time()
    _run_detached(moored, "--name", "told", "-v", "told:/kept:ro", "busybox", "sleep", "1000")
    moored.docker("exec", "told", "true")
    moored.docker("exec", "told", "echo", "a", "b")
    _remove(moored, "told")
    moored.docker("volume", "rm", "told")
    events = ("--since", f"{since:.6f}", "--until", f"{time.time() + 0.5:.6f}")
    execs = moored.docker(
        "events", *events, "--filter", "container=told", "--filter", "event=exec_start", "--format", "{{.Action}}|"
    )
    assert execs.splitlines() == ["exec_start: true |", "exec_start: echo a b|"]
    mounts = moored.docker(
        "events",
        *events,
        "--filter",
        "volume=told",
        "--filter",
        "event=mount",
        "--format",
        "{{json .Actor.Attributes}}",
    )
    seen = json.loads(mounts)
    assert len(seen.pop("container")) == 64
    assert seen == {"destination": "/kept", "driver": "local", "propagation": "", "read/write": "false"}


def test_init_reaps_and_passes_signals(moored: Moored) -> None:
    if not Path("/usr/bin/tini-static").exists():
        pytest.fail("tini-static is missing on this machine")
    out = moored.docker("run", "--rm", "--init", "--network", "none", "busybox", "ps")
    assert "docker-init" in out


def test_user_workdir_env_and_hostname(moored: Moored) -> None:
    out = moored.docker(
        "run", "--rm", "--network", "none", "-u", "1000:1000", "-w", "/tmp", "-e", "A=b", "-h", "me", "busybox", "sh",
        "-c", "id -u; pwd; echo $A; hostname; cat /etc/hostname",
    )  # fmt: skip
    assert out.split() == ["1000", "/tmp", "b", "me", "me"]


def test_wait_for_a_killed_client_does_not_stay(moored: Moored) -> None:
    _run_detached(moored, "--name", "waited", "busybox", "sleep", "1000")
    client = moored.docker_popen("wait", "waited")
    client.send_signal(signal.SIGKILL)
    client.communicate(timeout=DEADLINE)
    _remove(moored, "waited")
    assert moored.docker("ps", "-aq") == ""


def test_links_give_names_and_variables_and_can_be_removed(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "target", "--expose", "80", "-e", "OF=target", "busybox", "sleep", "1000")
    out = moored.docker(
        "run", "--name", "linked", "--link", "target:alias", "busybox", "sh", "-c", "env; ping -c1 alias"
    )
    assert "ALIAS_PORT_80_TCP_PORT=80" in out
    assert "ALIAS_ENV_OF=target" in out
    assert "1 packets received" in out
    assert "linked/alias" in moored.docker("ps", "--format", "{{.Names}}", "--no-trunc")
    moored.docker("rm", "--link", "linked/alias")
    assert "linked/alias" not in moored.docker("ps", "--format", "{{.Names}}", "--no-trunc")
    _remove(moored, "linked", "target")


def test_what_a_client_sends_at_once_is_answered_to_it(moored: Moored) -> None:
    moored.docker("run", "-d", "-i", "--name", "echo", "busybox", "cat")
    for number in range(15):
        connection = socket.socket(socket.AF_UNIX)
        with connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(moored.socket))
            connection.sendall(
                b"POST /containers/echo/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"
                b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n%d\n" % number
            )
            answer = b""
            while not answer.endswith(b"%d\n" % number) or b"\r\n\r\n" not in answer:
                more = connection.recv(4096)
                assert more, answer
                answer += more
    moored.docker("rm", "-f", "echo")
