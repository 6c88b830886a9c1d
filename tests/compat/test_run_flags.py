"""Every flag that the docker CLI's `run` offers: what it does is looked at from inside of the container.

The tables name each flag of `docker run --help` once: a flag that a newer CLI brings fails the test until it has its line.
"""

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.moored import Moored, wait_for

pytestmark = pytest.mark.root

#: A limit as the container reads it: cgroup v2's file, else the one of v1.
LIMIT = "cat /sys/fs/cgroup/{} 2>/dev/null || cat /sys/fs/cgroup/{}"


@dataclass(frozen=True)
class Seen:
    """Arguments, what looks for their effect inside of the container, and what that must match."""

    arguments: str
    probe: str
    pattern: str


#: All in one container, on a network with known subnets.
TOGETHER = {
    "--add-host": Seen("--add-host lighthouse:192.0.2.7", "grep lighthouse /etc/hosts", r"192\.0\.2\.7\s+lighthouse"),
    "--attach": Seen("--attach stdout", "echo shown", "shown"),
    "--cap-add": Seen("--cap-add NET_ADMIN", "grep CapBnd /proc/self/status", r"CapBnd:\s+00000000a80435fa"),
    "--cap-drop": Seen("--cap-drop CHOWN", "grep CapBnd /proc/self/status", r"CapBnd:\s+[0-9a-f]+[02468ace]"),
    "--cpu-period": Seen(
        "--cpu-period 50000", LIMIT.format("cpu.max", "cpu/cpu.cfs_period_us"), r"(\d+ )?50000"
    ),
    "--cpu-quota": Seen("--cpu-quota 20000", LIMIT.format("cpu.max", "cpu/cpu.cfs_quota_us"), r"20000( 50000)?"),
    "--cpu-shares": Seen("--cpu-shares 512", LIMIT.format("cpu.weight", "cpu/cpu.shares"), r"512|20|59"),
    "--cpuset-cpus": Seen("--cpuset-cpus 0", "grep Cpus_allowed_list /proc/self/status", r"Cpus_allowed_list:\s+0"),
    "--cpuset-mems": Seen("--cpuset-mems 0", "grep Mems_allowed_list /proc/self/status", r"Mems_allowed_list:\s+0"),
    "--device": Seen("--device /dev/null:/dev/other:r", "stat -c '%t %T %F' /dev/other", "1 3 character special file"),
    "--dns": Seen("--dns 192.0.2.53", "cat /etc/resolv.conf", r"(?s).*nameserver 127\.0\.0\.11.*192\.0\.2\.53"),
    "--dns-option": Seen("--dns-option ndots:3", "grep options /etc/resolv.conf", r"options ndots:3"),
    "--dns-search": Seen("--dns-search example.test", "grep search /etc/resolv.conf", "search example.test"),
    "--domainname": Seen("--domainname port.test", "cat /proc/sys/kernel/domainname", r"port\.test"),
    "--entrypoint": Seen("--entrypoint /bin/sh", "cat /proc/1/cmdline | tr '\\0' ' ' | head -n1", r".*/bin/sh -c echo .*"),
    "--env": Seen("--env COLOUR=blue", "echo $COLOUR", "blue"),
    "--env-file": Seen("--env-file {files}/environment", "echo $SHAPE", "round"),
    "--group-add": Seen("--group-add 4242", "id -G", r"1000 4242|4242 1000"),
    "--hostname": Seen("--hostname brig", "hostname", "brig"),
    "--init": Seen("--init", "cat /proc/1/comm", "docker-init|tini"),
    "--interactive": Seen("--interactive", "readlink /proc/1/fd/0 | cut -c1-5", "pipe:"),
    "--ip": Seen("--ip 10.97.0.9", "ip -4 addr show eth0", r"(?s).*inet 10\.97\.0\.9/24 .*"),
    "--ip6": Seen("--ip6 fd97::9", "ip -6 addr show eth0", r"(?s).*inet6 fd97::9/64 .*"),
    "--link": Seen("--link {other}:pilot", "nslookup pilot.", r"(?s).*pilot.*Address.*10\.97\.0\..*"),
    "--link-local-ip": Seen("--link-local-ip 169.254.7.7", "ip route | grep 169.254", r"169\.254\.0\.0/16 dev eth0.*"),
    "--mac-address": Seen("--mac-address 02:42:0a:4d:00:63", "cat /sys/class/net/eth0/address", "02:42:0a:4d:00:63"),
    "--memory": Seen("--memory 64m", LIMIT.format("memory.max", "memory/memory.limit_in_bytes"), "67108864"),
    "--memory-reservation": Seen(
        "--memory-reservation 32m", LIMIT.format("memory.low", "memory/memory.soft_limit_in_bytes"), "33554432"
    ),
    "--memory-swap": Seen(
        "--memory-swap 96m", LIMIT.format("memory.swap.max", "memory/memory.memsw.limit_in_bytes"), "33554432|100663296"
    ),
    "--mount": Seen("--mount type=bind,src={files},dst=/files,readonly", "cat /files/environment", "SHAPE=round"),
    "--network": Seen("--network {network}", "ip route | grep default", r"default via 10\.97\.0\.1 dev eth0.*"),
    "--network-alias": Seen("--network-alias beacon", "nslookup beacon.", r"(?s).*beacon.*Address.*10\.97\.0\.9.*"),
    "--oom-score-adj": Seen("--oom-score-adj 300", "cat /proc/1/oom_score_adj", "300"),
    "--pids-limit": Seen("--pids-limit 60", LIMIT.format("pids.max", "pids/pids.max"), "60"),
    "--read-only": Seen("--read-only", "touch /new 2>&1", r".*Read-only file system"),
    "--security-opt": Seen("--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status", r"NoNewPrivs:\s+1"),
    "--shm-size": Seen("--shm-size 8m", "df -k /dev/shm | tail -1", r"shm\s+8192\s.*"),
    "--sysctl": Seen("--sysctl net.ipv4.ip_default_ttl=77", "cat /proc/sys/net/ipv4/ip_default_ttl", "77"),
    "--tmpfs": Seen("--tmpfs /scratch:size=1m,mode=1777", "df -k /scratch | tail -1", r"tmpfs\s+1024\s.*"),
    "--ulimit": Seen("--ulimit nofile=100:200", "ulimit -Sn; ulimit -Hn", "100\n200"),
    "--user": Seen("--user 1000:1000", "id -u", "1000"),
    "--volume": Seen("--volume {files}:/more:ro", "cat /more/environment", "SHAPE=round"),
    "--volumes-from": Seen("--volumes-from {other}", "cat /kept/of", "another"),
    "--workdir": Seen("--workdir /var", "pwd", "/var"),
}  # fmt: skip

#: What cannot go with the others, each group in a container of its own.
APART = (
    {
        "--cgroup-parent": Seen("--cgroup-parent {parent}/own", "cat /proc/self/cgroup", r"(?s).*/own/[0-9a-f]{64}.*"),
        "--cgroupns": Seen("--cgroupns host", "readlink /proc/self/ns/cgroup", "{cgroup}"),
        "--cpus": Seen("--cpus 0.5", LIMIT.format("cpu.max", "cpu/cpu.cfs_quota_us"), r"50000( 100000)?"),
        "--ipc": Seen("--ipc host", "readlink /proc/self/ns/ipc", "{ipc}"),
        "--pid": Seen("--pid host", "readlink /proc/self/ns/pid", "{pid}"),
        "--privileged": Seen("--privileged", "mkdir /m && mount -t tmpfs tmpfs /m && echo mounted", "mounted"),
        "--tty": Seen("--tty", "[ -t 1 ] && echo terminal", "terminal"),
        "--uts": Seen("--uts host", "readlink /proc/self/ns/uts", "{uts}"),
        "--userns": Seen("--userns host", "cat /proc/self/uid_map", r"\s*0\s+0\s+4294967295"),
    },
    {
        "--device-cgroup-rule": Seen(
            "--device-cgroup-rule 'c 10:200 rwm'", "mknod /tun c 10 200; cat /tun", r"(?s)(?!.*not permitted).*"
        ),
    },
)

#: What is only kept, or what acts on the daemon's side: a template of `docker inspect`.
KEPT = {
    "--annotation": ("--annotation a.b=c", "{{index .HostConfig.Annotations \"a.b\"}}", "c"),
    "--expose": ("--expose 99/udp", "{{json (index .Config.ExposedPorts \"99/udp\")}}", "{}"),
    "--health-cmd": ("--health-cmd true", "{{json .Config.Healthcheck.Test}}", '["CMD-SHELL","true"]'),
    "--health-interval": ("--health-interval 7s", "{{json .Config.Healthcheck.Interval}}", "7000000000"),
    "--health-retries": ("--health-retries 4", "{{.Config.Healthcheck.Retries}}", "4"),
    "--health-start-interval": ("--health-start-interval 2s", "{{json .Config.Healthcheck.StartInterval}}", "2000000000"),
    "--health-start-period": ("--health-start-period 9s", "{{json .Config.Healthcheck.StartPeriod}}", "9000000000"),
    "--health-timeout": ("--health-timeout 3s", "{{json .Config.Healthcheck.Timeout}}", "3000000000"),
    "--label": ("--label a=b", '{{index .Config.Labels "a"}}', "b"),
    "--label-file": ("--label-file {files}/labels", '{{index .Config.Labels "kind"}}', "boat"),
    "--log-driver": ("--log-driver local", "{{.HostConfig.LogConfig.Type}}", "local"),
    "--log-opt": ("--log-opt max-size=3m", '{{index .HostConfig.LogConfig.Config "max-size"}}', "3m"),
    "--name": ("--name called", "{{.Name}}", "/called"),
    "--platform": ("--platform linux", "{{.Platform}}", "linux"),
    "--publish": ("--publish 127.0.0.1::80", '{{(index .HostConfig.PortBindings "80/tcp" 0).HostIp}}', "127.0.0.1"),
    "--publish-all": ("--publish-all", "{{.HostConfig.PublishAllPorts}}", "true"),
    "--pull": ("--pull never", "{{.Config.Image}}", "busybox"),
    "--restart": ("--restart on-failure:3", "{{json .HostConfig.RestartPolicy.MaximumRetryCount}}", "3"),
    "--stop-signal": ("--stop-signal USR1", "{{.Config.StopSignal}}", "USR1"),
    "--stop-timeout": ("--stop-timeout 33", "{{.Config.StopTimeout}}", "33"),
    "--volume-driver": ("--volume-driver local", "{{.HostConfig.VolumeDriver}}", "local"),
}  # fmt: skip

#: What a daemon refuses that has no such thing, and in which words.
REFUSED = {
    "--gpus": ("--gpus all", 'could not select device driver "" with capabilities: [[gpu]]'),
    "--isolation": ("--isolation hyperv", "invalid isolation 'hyperv' on linux"),
    "--runtime": ("--runtime none-such", "unknown or invalid runtime name: none-such"),
    "--storage-opt": ("--storage-opt size=1G", "--storage-opt is supported only for"),
}

#: What depends on the kernel: it has an effect, or a warning names it.
BY_KERNEL = {
    "--blkio-weight": ("--blkio-weight 300", LIMIT.format("io.bfq.weight", "blkio/blkio.bfq.weight"), "300", "Block I/O weight"),
    "--memory-swappiness": ("--memory-swappiness 20", "cat /sys/fs/cgroup/memory/memory.swappiness", "20", "swappiness"),
    "--oom-kill-disable": (
        "--oom-kill-disable --memory 64m", "grep -o 'oom_kill_disable 1' /sys/fs/cgroup/memory/memory.oom_control",
        "oom_kill_disable 1", "OomKillDisable",
    ),
}  # fmt: skip

#: Limits of a disk's speed, given for the first disk of the machine.
DISK = {
    "--blkio-weight-device": ":100",
    "--device-read-bps": ":1mb",
    "--device-read-iops": ":100",
    "--device-write-bps": ":1mb",
    "--device-write-iops": ":100",
}

#: What has a test of its own below or elsewhere, or nothing to look at.
ELSEWHERE = {
    "--cidfile": "test_run_flags.py::test_flags_of_the_client_itself",
    "--detach": "test_run_flags.py::test_flags_of_the_client_itself",
    "--no-healthcheck": "test_run_flags.py::test_flags_of_the_client_itself",
    "--rm": "test_run_flags.py::test_flags_of_the_client_itself",
    "--quiet": "test_run_flags.py::test_flags_of_the_client_itself",
    "--use-api-socket": "the client's own: a bind mount of the socket",
    "--sig-proxy": "test_run_flags.py::test_client_that_is_signalled_passes_it_on_unless_told_not_to",
    "--detach-keys": "test_containers_cli.py::test_attach_sees_what_comes_and_detach_keys_leave_it_running",
    "--cpu-rt-period": "needs a kernel with real-time groups; the kernel's own refusal is passed on",
    "--cpu-rt-runtime": "needs a kernel with real-time groups; the kernel's own refusal is passed on",
    "--disable-content-trust": "the client's own: no request carries it",
    "--kernel-memory": "ignored by every engine since API 1.42",
    "--help": "the client's own",
}


@pytest.fixture(scope="module")
def places(moored: Moored, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the arguments and patterns of the tables name in braces."""
    files = tmp_path_factory.mktemp("files")
    files.chmod(0o755)
    (files / "environment").write_text("SHAPE=round\n")
    (files / "labels").write_text("kind=boat\n")
    moored.docker("network", "create", "--subnet", "10.97.0.0/24", "--ipv6", "--subnet", "fd97::/64", "flags")
    moored.docker(
        "run", "-d", "--init", "--name", "another", "--network", "flags", "-v", "/kept", "busybox", "sleep", "3600"
    )
    moored.docker("exec", "another", "sh", "-c", "echo another >/kept/of")
    spaces = {
        kind: re.escape(str(Path(f"/proc/{moored.sandbox.init_pid}/ns/{kind}").readlink()))
        for kind in ("cgroup", "ipc", "pid", "uts")
    }
    yield {
        "files": str(files), "network": "flags", "other": "another", "parent": f"/{moored.sandbox.root.name}", **spaces,
    }  # fmt: skip
    moored.docker("rm", "-fv", "another")
    moored.docker("network", "rm", "flags")


def _filled(text: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        text = text.replace("{" + name + "}", value)
    return text


def _look(moored: Moored, places: Mapping[str, str], flags: Mapping[str, Seen]) -> None:
    """Run one container with all flags and hold what their probes print against the patterns."""
    script = "\n".join(f"echo '@{flag}'; {{ {seen.probe}; }} 2>&1" for flag, seen in flags.items()) + "\ntrue"
    arguments = [part for seen in flags.values() for part in shlex.split(_filled(seen.arguments, places))]
    command = ["-c", script] if "--entrypoint" in flags else ["sh", "-c", script]
    printed = moored.docker("run", "--rm", *arguments, "busybox", *command).replace("\r", "")
    parts = (part.partition("\n") for part in f"\n{printed}\n".split("\n@")[1:])
    answers = {flag: text for flag, _, text in parts}
    wrong = {
        flag: answers.get(flag)
        for flag, seen in flags.items()
        if re.fullmatch(_filled(seen.pattern, places), answers.get(flag, "").strip("\n")) is None
    }
    assert wrong == {}


def test_every_flag_of_run_is_in_one_table(moored: Moored) -> None:
    offered = re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)", moored.docker("run", "--help"), re.MULTILINE)
    apart = (flag for table in APART for flag in table)
    known = [*TOGETHER, *apart, *KEPT, *REFUSED, *BY_KERNEL, *DISK, *ELSEWHERE]
    assert sorted(known) == sorted(offered)
    for place in ELSEWHERE.values():
        file, both, name = place.partition("::")
        assert not both or f"def {name}(" in (Path(__file__).parent / file).read_text(), place


def test_flags_have_their_effect_inside(moored: Moored, places: dict[str, str]) -> None:
    _look(moored, places, TOGETHER)


@pytest.mark.parametrize("number", range(len(APART)))
def test_flags_that_share_or_lift_the_walls_have_their_effect(
    moored: Moored, places: dict[str, str], number: int
) -> None:
    _look(moored, places, APART[number])


def test_flags_that_are_kept_are_inspected_as_given(moored: Moored, places: dict[str, str]) -> None:
    arguments = [part for given, _, _ in KEPT.values() for part in shlex.split(_filled(given, places))]
    moored.docker("create", *arguments, "busybox", "true")
    template = "{{println}}".join(each for _, each, _ in KEPT.values())
    shown = moored.docker("inspect", "--format", template, "called").splitlines()
    moored.docker("rm", "called")
    assert dict(zip(KEPT, shown, strict=True)) == {flag: value for flag, (_, _, value) in KEPT.items()}


@pytest.mark.parametrize("flag", REFUSED)
def test_flags_of_what_is_not_there_are_refused_in_words(moored: Moored, flag: str) -> None:
    arguments, words = REFUSED[flag]
    done = moored.docker_run("run", "--rm", *shlex.split(arguments), "busybox", "true")
    assert (done.returncode, words in done.stderr) == (125, True), done.stderr


@pytest.mark.parametrize("flag", BY_KERNEL)
def test_flags_that_need_the_kernel_work_or_warn(moored: Moored, flag: str) -> None:
    arguments, probe, value, words = BY_KERNEL[flag]
    done = moored.docker_run("run", "--rm", *shlex.split(arguments), "busybox", "sh", "-c", probe)
    assert done.stdout.strip() == value or words in done.stderr, (done.stdout, done.stderr)


def test_speed_of_a_disk_is_limited(moored: Moored) -> None:
    disk = next(each for each in sorted(Path("/sys/block").iterdir()) if (each / "queue").is_dir())
    number = (disk / "dev").read_text().strip()
    node = "/dev/shm/disk"  # the client takes paths below /dev only; this one is gone with the sandbox
    moored.sandbox.run("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
    moored.sandbox.run("mknod", node, "b", *number.split(":"))
    arguments = [f"{flag}={node}{limit}" for flag, limit in DISK.items()]
    probe = "cat /sys/fs/cgroup/io.max 2>/dev/null || cat /sys/fs/cgroup/blkio/blkio.throttle.*_device"
    done = moored.docker_run("run", "--rm", *arguments, "busybox", "sh", "-c", probe)
    assert done.returncode == 0, done.stderr
    limits = done.stdout.split("\n")
    one_line = f"{number} rbps=1048576 wbps=1048576 riops=100 wiops=100"  # cgroup v2
    assert one_line in limits or (limits.count(f"{number} 1048576"), limits.count(f"{number} 100")) == (2, 2), limits


def test_flags_of_the_client_itself(moored: Moored, tmp_path: Path) -> None:
    file = tmp_path / "cid"
    shown = moored.docker("run", "--detach", "--rm", "--cidfile", str(file), "busybox", "true")
    assert file.read_text() == shown
    wait_for("the container to be removed", lambda: moored.docker_run("inspect", shown).returncode == 1)
    unchecked = moored.docker("create", "--no-healthcheck", "busybox")
    assert moored.docker("inspect", "--format", "{{.Config.Healthcheck.Test}}", unchecked) == "[NONE]"
    moored.docker("rm", unchecked)
    for flags, told in ([], True), (["--quiet"], False):
        missing = moored.docker_run("run", *flags, "127.0.0.1:1/none:1")
        assert ("Unable to find image" in missing.stderr, missing.returncode) == (told, 125)


@pytest.mark.parametrize("proxied", [True, False])
def test_client_that_is_signalled_passes_it_on_unless_told_not_to(moored: Moored, proxied: bool) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    client = moored.docker_popen(
        "run", f"--sig-proxy={str(proxied).lower()}", "--name", "signalled", "busybox", "sh", "-c", script
    )
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGTERM)
        if proxied:
            client.communicate(timeout=60)
            assert client.returncode == 7
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                client.wait(1)
        state = moored.docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "signalled")
        assert state == ("exited 7" if proxied else "running 0")
    finally:
        client.kill()
        client.communicate(timeout=60)
        moored.docker("rm", "-f", "signalled")
