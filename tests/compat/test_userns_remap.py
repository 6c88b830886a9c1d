"""`--userns-remap`: containers whose root is an ordinary user of the machine, as the docker CLI sees and uses them."""

import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import buildx
from tests.support.images import busybox_archive, docker_archive, layer_tar
from tests.support.moored import DEADLINE, Moored, wait_for
from tests.support.userns import ROOT, remapping_moored

pytestmark = pytest.mark.root

SLEEP = ("busybox", "sleep", "10000")
MAP = f"0 {ROOT} 65536"


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    with remapping_moored() as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


@pytest.fixture(scope="module")
def web(moored: Moored) -> Iterator[str]:
    """A running container that tests look at and add files to."""
    moored.docker("run", "-d", "--name", "web", "--ipc", "shareable", *SLEEP)
    yield "web"
    moored.docker("rm", "-f", "web")


def _shell(moored: Moored, *arguments: str) -> str:
    """Run a shell command, the last argument, in a container that is removed."""
    *options, command = arguments
    return moored.docker("run", "--rm", *options, "busybox", "sh", "-c", command)


def _pid(moored: Moored, name: str) -> str:
    return moored.docker("inspect", "-f", "{{.State.Pid}}", name)


def _userns(moored: Moored, name: str) -> str:
    return moored.sandbox.run("readlink", f"/proc/{_pid(moored, name)}/ns/user").stdout


def _owners(moored: Moored, *arguments: str) -> dict[str, tuple[int, int]]:
    """Return who owns the files in the tar that a command of the CLI writes."""
    target = moored.sandbox.root / "out.tar"
    moored.sandbox.run("sh", "-c", f'docker "$@" > {target}', "sh", *arguments, env=dict(moored.docker_environment()))
    with tarfile.open(fileobj=io.BytesIO(target.read_bytes())) as archive:
        return {member.name.strip("/"): (member.uid, member.gid) for member in archive}


def test_root_of_a_container_is_another_user_of_the_machine(moored: Moored) -> None:
    """What moby's TestDaemonUserNamespaceRootSetting looks at."""
    shared, missing = moored.sandbox.root / "shared", moored.sandbox.root / "a" / "missing"
    shared.mkdir()
    os.chown(shared, ROOT, ROOT)
    moored.docker(
        "run", "-d", "--name", "userns", "-v", f"{shared}:/goofy", "-v", f"{missing}:/donald", "busybox", "sh", "-c",
        "touch /goofy/testfile; exec top",
    )  # fmt: skip
    assert moored.docker("top", "userns").splitlines()[1].split()[0] == str(ROOT)
    for path in (missing, missing.parent, shared / "testfile"):
        wait_for(f"{path}", path.exists)
        assert (path.stat().st_uid, path.stat().st_gid) == (ROOT, ROOT), path
    for kind in ("uid", "gid"):
        assert moored.sandbox.run("cat", f"/proc/{_pid(moored, 'userns')}/{kind}_map").stdout.split() == MAP.split()
    moored.docker("run", "-d", "--name", "userns_skip", "--userns", "host", *SLEEP)
    assert moored.docker("top", "userns_skip").splitlines()[1].split()[0] == "root"
    assert moored.docker("inspect", "-f", "{{.HostConfig.UsernsMode}}", "userns_skip") == "host"
    moored.docker("rm", "-f", "userns", "userns_skip")


def test_everything_is_kept_in_a_folder_of_these_users(moored: Moored, web: str) -> None:
    own = moored.data_root / f"{ROOT}.{ROOT}"
    info = json.loads(moored.docker("info", "--format", "{{json .}}"))
    assert info["DockerRootDir"] == str(own)
    assert "name=userns" in info["SecurityOptions"]
    assert moored.docker("inspect", "-f", "{{.HostsPath}}", web).startswith(f"{own}/containers/")
    for folder in (moored.data_root, own):
        status = folder.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o710, 0, ROOT)
    assert not (moored.data_root / "layers").exists() and not (moored.data_root / "moorage.db").exists()
    files = own / "containers" / moored.docker("inspect", "-f", "{{.Id}}", web)
    assert all((files / name).stat().st_uid == ROOT for name in ("hosts", "hostname", "resolv.conf"))
    assert (files / f"{files.name}-json.log").stat().st_uid == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--privileged", "privileged mode is incompatible with user namespaces.  You must run the container in the host "
         "namespace when running privileged mode"),
        ("--network=host", "cannot share the host's network namespace when user namespaces are enabled"),
        ("--pid=host", "cannot share the host PID namespace when user namespaces are enabled"),
    ],
)  # fmt: skip
def test_what_needs_the_machines_root_is_refused_unless_the_container_has_it(
    moored: Moored, option: str, said: str
) -> None:
    assert said in moored.docker_run("run", "--rm", option, "busybox", "true").stderr
    assert _shell(moored, option, "--userns=host", "cat /proc/self/uid_map").split() == ["0", "0", "4294967295"]


def test_other_namespaces_of_the_machine_can_be_had(moored: Moored) -> None:
    assert _shell(moored, "--uts=host", "--cgroupns=host", "cat /proc/self/uid_map").split() == MAP.split()
    assert "mqueue" in moored.docker_run("run", "--rm", "--ipc=host", "busybox", "true").stderr  # as dockerd's runc


def test_containers_do_not_share_a_user_namespace_unless_they_share_another(moored: Moored, web: str) -> None:
    moored.docker("run", "-d", "--name", "apart", *SLEEP)
    assert _userns(moored, "apart") != _userns(moored, web)
    moored.docker("rm", "-f", "apart")
    for option in ("--network", "--pid", "--ipc"):
        moored.docker("run", "-d", "--name", "joined", f"{option}=container:{web}", *SLEEP)
        assert _userns(moored, "joined") == _userns(moored, web), option
        moored.docker("rm", "-f", "joined")
    moored.docker("run", "-d", "--name", "host", "--userns", "host", *SLEEP)
    for option in ("--network", "--pid", "--ipc"):
        done = moored.docker_run("run", "--rm", f"{option}=container:host", "busybox", "true")
        assert "has the machine's users: give this one --userns=host" in done.stderr or option == "--ipc"
    assert _shell(moored, "--userns=host", "--network=container:host", "cat /proc/self/uid_map").split()[1] == "0"
    moored.docker("rm", "-f", "host")
    both = ("--network=none", f"--pid=container:{web}")
    assert _shell(moored, *both, "cat /proc/self/uid_map; ls /sys/class/net").split() == [*MAP.split(), "lo"]
    assert moored.docker("exec", web, "ip", "link", "show", "eth0")


def test_files_of_images_belong_to_whom_they_say(moored: Moored, web: str) -> None:
    path = moored.sandbox.root / "made.tar"
    path.write_bytes(docker_archive([layer_tar({"deep/in/file": b"x"})], tags=["made:1"]))
    moored.docker("load", "-i", str(path))
    seen = moored.docker(
        "exec", web, "stat", "-c", "%u:%g", "/", "/bin", "/bin/busybox", "/etc/hosts", "/dev/shm", "/dev/pts"
    )
    assert set(seen.split()) == {"0:0"}
    moored.docker("create", "--name", "made", "made:1", "x")
    owners = _owners(moored, "export", "made")
    assert {owners[name] for name in ("deep", "deep/in", "deep/in/file", "etc", ".dockerenv", "dev/console")} == {
        (0, 0)
    }
    moored.docker("rm", "made")


def test_owners_survive_commit_export_import_and_copies(moored: Moored, web: str) -> None:
    moored.docker("exec", web, "sh", "-c", "touch /one; mkdir /two; chown 5:6 /two; chown -h 65534:65535 /one")
    assert set(moored.docker("diff", web).splitlines()) >= {"A /one", "A /two"}
    moored.docker("commit", web, "committed")
    ask = "stat -c %u:%g /one /two"
    expected = ["65534:65535", "5:6"]
    assert moored.docker("run", "--rm", "committed", "sh", "-c", ask).split() == expected
    owners = _owners(moored, "export", web)
    assert (owners["one"], owners["two"], owners["bin"]) == ((65534, 65535), (5, 6), (0, 0))
    moored.docker("import", str(moored.sandbox.root / "out.tar"), "imported")
    assert moored.docker("run", "--rm", "imported", "sh", "-c", ask).split() == expected
    assert _owners(moored, "cp", f"{web}:/two", "-") == {"two": (5, 6)}
    moored.sandbox.run(
        "sh", "-c", f"docker cp {web}:/two - | docker cp -a - {web}:/tmp", env=dict(moored.docker_environment())
    )
    file = moored.sandbox.root / "file"
    file.write_text("x")
    moored.docker("cp", str(file), f"{web}:/tmp/file")
    assert moored.docker("exec", web, "stat", "-c", "%u:%g", "/tmp/two", "/tmp/file").split() == ["5:6", "0:0"]
    moored.docker("create", "--name", "still", "--workdir", "/not/there", *SLEEP)
    moored.docker("cp", str(file), "still:/not/there/")
    moored.docker("start", "still")
    assert (
        moored.docker("exec", "still", "stat", "-c", "%u:%g", "/not", "/not/there", "/not/there/file").split()
        == ["0:0"] * 3
    )
    moored.docker("rm", "-f", "still")


def test_an_owner_that_no_container_can_have_is_refused(moored: Moored, web: str) -> None:
    info = tarfile.TarInfo("far")
    info.uid = 70000
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        archive.addfile(info)
    answer = moored.api.call("PUT", f"/containers/{web}/archive?path=/", body=body.getvalue(), check=False)
    assert answer.status == 400 and "Container ID 70000 cannot be mapped to a host ID" in answer.json["message"]
    (moored.sandbox.root / "far.tar").write_bytes(docker_archive([body.getvalue()], tags=["far:1"]))
    assert (
        "Container ID 70000 cannot be mapped"
        in moored.docker_run("load", "-i", str(moored.sandbox.root / "far.tar")).stderr
    )
    for options in (("--user", "70000"), ("--group-add", "70000")):
        assert "Invalid argument" in moored.docker_run("run", "--rm", *options, "busybox", "true").stderr


def test_builds_give_files_to_whom_they_should(moored: Moored) -> None:
    context = moored.sandbox.root / "context"
    context.mkdir()
    (context / "f").write_text("x")
    (context / "Dockerfile").write_text(
        "FROM busybox\n"
        "COPY f /new/f1\nCOPY --chown=7:8 f /f2\nRUN touch /r && chown 9:10 /r\nWORKDIR /app/dir\n"
        "RUN mkdir /vol && chown 11:12 /vol && touch /vol/x && chown 13:14 /vol/x\nVOLUME /vol\n"
        "FROM busybox\nCOPY --from=0 /r /f2 /g/\n"
        "RUN stat -c %u:%g /g /g/r /g/f2 > /seen\n"
    )
    moored.docker("build", "-q", "--target", "0", "-t", "first", str(context), check=False)
    moored.docker("build", "-q", "-t", "second", str(context))
    assert moored.docker("run", "--rm", "second", "cat", "/seen").split() == ["0:0", "9:10", "7:8"]
    first = moored.docker("images", "-q", "--filter", "dangling=true").split()[0]
    ask = "stat -c %u:%g /new /new/f1 /f2 /r /app /app/dir /vol /vol/x"
    seen = moored.docker("run", "--rm", first, "sh", "-c", ask).split()
    assert seen == ["0:0", "0:0", "7:8", "9:10", "0:0", "0:0", "11:12", "13:14"]


def test_builds_with_buildkit_give_files_to_whom_they_should(moored: Moored, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    (tmp_path / "secret").write_text("word")
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox AS first\nWORKDIR /app/dir\nCOPY --chown=7:8 f /f2\nRUN touch /r && chown 9:10 /r\n"
        "FROM busybox\nCOPY --from=first /r /f2 /g/\n"
        "RUN --mount=type=secret,id=word,uid=11,gid=12 --mount=type=cache,target=/cache,uid=13 "
        "--mount=type=bind,from=first,target=/first --mount=type=bind,target=/context,rw --mount=type=tmpfs,target=/t "
        "touch /cache/x /t/x /context/x && cat /run/secrets/word > /seen && "
        "stat -c %u:%g /g /g/r /g/f2 /run/secrets/word /cache /first/r /first/app /context /context/f /t >> /seen\n"
        "RUN <<END\nid -u >> /seen\nEND\n"
    )
    buildx.install(moored.docker_config)
    secret = f"id=word,src={tmp_path}/secret"
    argv = ["docker", "buildx", "build", "--progress=plain", "--secret", secret, "-t", "third", str(tmp_path)]
    environment = {**moored.docker_environment(), "DOCKER_BUILDKIT": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    seen = moored.docker("run", "--rm", "third", "cat", "/seen").removeprefix("word").split()
    assert seen == ["0:0", "9:10", "7:8", "11:12", "13:0", "9:10", "0:0", "0:0", "0:0", "0:0", "0"]


def test_volumes_and_tmpfs_belong_to_the_containers_root(moored: Moored) -> None:
    moored.docker("volume", "create", "vol")
    place = Path(moored.docker("volume", "inspect", "-f", "{{.Mountpoint}}", "vol"))
    assert place.stat().st_uid == ROOT
    ask = "touch /vol/x /tmp/x /mounted/x; stat -c %u:%g /vol /vol/x /t /t2"
    seen = _shell(
        moored,
        "-v",
        "vol:/vol",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/t",
        "--tmpfs",
        "/t2:uid=5,gid=6",
        "-v",
        "/mounted",
        ask,
    )
    assert seen.split() == ["0:0", "0:0", "0:0", "5:6"]
    assert (place / "x").stat().st_uid == ROOT
    moored.docker("volume", "rm", "vol")


def test_standard_streams_can_be_opened_again(moored: Moored, web: str) -> None:
    ask = "echo out > /dev/stdout; echo err > /dev/stderr"
    for done in (
        moored.docker_run("run", "--rm", "busybox", "sh", "-c", ask),
        moored.docker_run("run", "--rm", "--user", "1000:1000", "busybox", "sh", "-c", ask),
        moored.docker_run("exec", web, "sh", "-c", ask),
        moored.docker_run("exec", "--user", "1000:1000", web, "sh", "-c", ask),
    ):
        assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert moored.docker("run", "--rm", "-i", "busybox", "cat", "/dev/stdin", input="in") == "in"
    assert _shell(moored, "-t", "echo out > /dev/stdout; stat -c %u:%g $(tty)").split() == ["out", "0:5"]


def test_health_checks_and_init_work(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "well", "--init", "--health-cmd", "id -u", "--health-interval", "20ms", *SLEEP)
    wait_for("health", lambda: moored.docker("inspect", "-f", "{{.State.Health.Status}}", "well") == "healthy")
    assert "docker-init" in moored.docker("exec", "well", "cat", "/proc/1/cmdline")
    moored.docker("rm", "-f", "well")


def test_networks_belong_to_the_containers_root(moored: Moored) -> None:
    moored.docker("network", "create", "own")
    moored.docker(
        "run",
        "-d",
        "--name",
        "server",
        "--network",
        "own",
        "busybox",
        "sh",
        "-c",
        "mkdir /w; echo hello > /w/f; exec httpd -f -p 80 -h /w",
    )
    ask = "until wget -qO- http://server/f; do sleep 0.05; done; ping -c 1 -W 5 server >/dev/null && echo pinged"
    assert _shell(moored, "--network", "own", ask).split() == ["hello", "pinged"]
    assert (
        _shell(moored, "--cap-add", "NET_ADMIN", "ip link set eth0 mtu 1400 && cat /sys/class/net/eth0/mtu") == "1400"
    )
    assert (
        "not permitted"
        in moored.docker_run("run", "--rm", "busybox", "ip", "link", "set", "eth0", "mtu", "1400").stderr
    )
    assert _shell(moored, "--sysctl", "net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward") == "1"
    moored.docker("network", "connect", "bridge", "server")
    moored.docker("exec", "server", "ip", "addr", "show", "eth1")
    moored.docker("rm", "-f", "server")
    moored.docker("network", "rm", "own")


def test_root_of_a_container_can_do_nothing_to_the_machine(moored: Moored) -> None:
    kept = moored.sandbox.root / "kept"
    kept.mkdir()
    (kept / "secret").write_text("secret")
    (kept / "secret").chmod(0o600)
    tries = (
        "cat /kept/secret", "touch /kept/new", "chown 0:0 /kept/secret", "rm -f /kept/secret", "mknod /disk b 8 0",
        "mount -t tmpfs none /mnt", "echo 1 > /proc/sys/kernel/sysrq", "echo 1 > /proc/sys/vm/drop_caches",
        "echo h > /proc/sysrq-trigger", "mkdir /sys/fs/cgroup/memory/mine", "echo 1 > /sys/kernel/profiling",
        "hostname other", "cat /proc/kcore", "chroot /proc/1/root/../.. true && false",
    )  # fmt: skip
    script = "; ".join(f"({each}) >/dev/null 2>&1 && echo '{each}'" for each in tries)
    for options in ((), ("--cap-add=ALL",), ("--cap-add=ALL", "--security-opt=seccomp=unconfined")):
        done = _shell(moored, *options, "-v", f"{kept}:/kept", f"{script}; true").splitlines()
        own = {"mount -t tmpfs none /mnt", "hostname other"} if options else set()  # its own namespaces are its own
        assert set(done) <= own, options
    assert (kept / "secret").read_text() == "secret" and [each.name for each in kept.iterdir()] == ["secret"]
    status = _shell(moored, "--security-opt", "no-new-privileges", "cat /proc/self/status")
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status and "CapEff:\t00000000a80425fb" in status


def test_nothing_stays_behind(moored: Moored) -> None:
    before = sorted(each.name for name in ("netns", "userns") for each in (moored.exec_root / name).iterdir())
    name = moored.docker("run", "-d", "--ipc", "shareable", *SLEEP)
    assert (moored.exec_root / "userns" / name).exists()
    moored.docker("rm", "-f", name)
    assert not (moored.exec_root / "shm" / name).exists()
    assert moored.docker_run("run", "--rm", "busybox", "not-there").returncode == 127
    assert (
        sorted(
            each.name for each in [*(moored.exec_root / "netns").iterdir(), *(moored.exec_root / "userns").iterdir()]
        )
        == before
    )
