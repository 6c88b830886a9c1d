"""What dockerd's own suite found: texts, checks and defaults that depend on the version a client speaks."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.moored import Moored, wait_for
from tests.support.openapi import Api, Reply


def create(moored: Moored, host: dict[str, Any] | None = None, *, version: str = "1.51", **config: Any) -> Reply:
    body = {"Image": "busybox", "Cmd": ["true"], **config, "HostConfig": host or {}}
    return Api(moored.socket, version=version).call("POST", "/containers/create", body=body, check=False)


def made(reply: Reply) -> str:
    assert reply.status == 201, reply.message
    return str(reply.json["Id"])


def inspect(moored: Moored, container: str) -> dict[str, Any]:
    return dict(moored.api.get(f"/containers/{container}/json").json)


@pytest.mark.parametrize("path", ["/commit", "/containers/create", "/containers/nobody/exec", "/exec/nobody/start"])
def test_bodies_that_are_no_json_are_refused_before_anything_is_looked_up(moored: Moored, path: str) -> None:
    for kind, body, text in (
        ("text/plain", b"{}", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        ("application/json", b"{x", "invalid JSON: invalid character 'x' looking for beginning of object key string"),
        ("application/json", b"{} more", "unexpected content after JSON"),
        ("application/json", b'{"a"', "invalid JSON: unexpected EOF"),
        ("application/json", b'{"a":}', "invalid JSON: invalid character '}' looking for beginning of value"),
    ):
        reply = moored.api.call("POST", path, body=body, headers={"Content-Type": kind}, check=False)
        assert (reply.status, reply.message) == (400, text)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ({"Tmpfs": {"//": ""}}, "destination can't be '/'"),
        ({"Annotations": {"": "a"}}, "invalid Annotations: the empty string is not permitted as an annotation key"),
        ({"Links": ["nobody"]}, "could not get container for nobody: No such container: nobody"),
        ({"PidMode": "container:nobody"}, "No such container: nobody"),
        ({"IpcMode": "container:nobody"}, "No such container: nobody"),
    ],
)
def test_what_cannot_start_is_refused_at_create(moored: Moored, host: dict[str, Any], text: str) -> None:
    reply = create(moored, host)
    assert reply.status == 400 and text in reply.message


def test_an_image_of_another_platform_is_not_found_so_that_the_client_pulls(moored: Moored) -> None:
    body = {"Image": "busybox", "Cmd": ["true"]}
    reply = moored.api.call("POST", "/containers/create", body=body, query={"platform": "linux/s390x"}, check=False)
    assert reply.status == 404
    assert "does not match the specified platform: wanted linux/s390x, actual: linux/" in reply.message


def test_several_networks_at_create_need_a_newer_client(moored: Moored) -> None:
    networks: dict[str, Any] = {"EndpointsConfig": {"bridge": {}, "other": {}}}
    reply = create(moored, version="1.43", NetworkingConfig=networks)
    assert reply.status == 400
    assert reply.message == "Container cannot be created with multiple network endpoints: bridge, other"


def test_older_clients_get_the_defaults_of_their_time(moored: Moored) -> None:
    old = inspect(moored, made(create(moored, {"Annotations": {"a": "b"}}, version="1.39")))["HostConfig"]
    assert old["IpcMode"] == "shareable" and "Annotations" not in old
    new = inspect(moored, made(create(moored, {"Annotations": {"a": "b"}})))["HostConfig"]
    assert new["IpcMode"] == "private" and new["Annotations"] == {"a": "b"}


def test_a_container_wide_mac_address_is_answered_with_a_warning(moored: Moored) -> None:
    assert create(moored, MacAddress="02:00:00:00:00:07", version="1.43").json["Warnings"] == []
    warnings = create(moored, MacAddress="02:00:00:00:00:07").json["Warnings"]
    assert warnings == [
        "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
    ]


def test_a_working_directory_is_shown_without_its_trailing_slash(moored: Moored) -> None:
    assert inspect(moored, made(create(moored, WorkingDir="/tmp/")))["Config"]["WorkingDir"] == "/tmp"


def test_a_pids_limit_is_taken_away_by_zero_and_left_alone_by_clients_that_do_not_know_it(moored: Moored) -> None:
    container = made(create(moored, {"PidsLimit": 32}))
    body = {"PidsLimit": 64}
    Api(moored.socket, version="1.39").call("POST", f"/containers/{container}/update", body=body, check=False)
    assert inspect(moored, container)["HostConfig"]["PidsLimit"] == 32
    moored.api.post(f"/containers/{container}/update", {"PidsLimit": -1})
    assert inspect(moored, container)["HostConfig"]["PidsLimit"] == 0


def test_joining_a_stopped_container_fails_at_start_and_says_so(moored: Moored) -> None:
    stopped = made(create(moored))
    reply = moored.api.post(f"/containers/{made(create(moored, {'PidMode': f'container:{stopped}'}))}/start")
    assert (reply.status, reply.message) == (
        500, f"failed to join PID namespace: container {stopped} is not running",
    )  # fmt: skip


def test_links_follow_a_renamed_container_and_name_a_path(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "first", "busybox", "sleep", "1000")
    moored.docker("run", "-d", "--name", "user", "--link", "first:db", "busybox", "sleep", "1000")
    moored.docker("rename", "first", "second")
    assert inspect(moored, "user")["HostConfig"]["Links"] == ["/second:/user/db"]
    assert moored.docker("inspect", "--type", "container", "-f", "{{.Name}}", "user/db") == "/second"
    moored.docker("restart", "-t", "0", "user")
    assert "second" in moored.docker("exec", "user", "cat", "/etc/hosts")
    moored.docker("rm", "-f", "second", "user")


@pytest.mark.parametrize("below", ["", "containers"])
def test_the_daemons_own_folder_is_mounted_only_with_propagation_from_the_host(moored: Moored, below: str) -> None:
    source = str(moored.data_root / below)
    for asked, shown in (("", "rslave"), ("rslave", "rslave"), ("rshared", "rshared"), ("private", None)):
        reply = create(moored, {"Binds": [f"{source}:/seen" + (f":{asked}" if asked else "")]})
        if shown is None:
            assert reply.status == 400 and 'must use either propagation mode "rslave" or "rshared"' in reply.message
        else:
            assert inspect(moored, made(reply))["Mounts"][0]["Propagation"] == shown


def test_a_read_only_bind_covers_what_is_mounted_below_it(moored: Moored) -> None:
    folder = moored.sandbox.root / "binds"
    (folder / "below").mkdir(parents=True)
    moored.sandbox.run("mount", "-t", "tmpfs", "tmpfs", folder / "below")
    command = ["sh", "-c", "if touch /seen/below/x; then exit 7; elif [ -d /seen/below ]; then exit 8; fi"]
    for version, status in (("1.51", 8), ("1.43", 7)):
        container = made(create(moored, {"Binds": [f"{folder}:/seen:ro"]}, version=version, Cmd=command))
        moored.api.post(f"/containers/{container}/start")
        assert moored.api.post(f"/containers/{container}/wait").json["StatusCode"] == status
    alone = {"Type": "bind", "Source": str(folder), "Target": "/seen", "BindOptions": {"NonRecursive": True}}
    seen = made(create(moored, {"Mounts": [alone]}, Cmd=["grep", "-c", " /seen", "/proc/self/mountinfo"]))
    assert moored.docker("start", "-a", seen) == "1"
    moored.sandbox.run("umount", folder / "below")


def test_frames_of_an_exec_are_what_its_start_asks_for(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "framed", "busybox", "sleep", "1000")
    exec_id = moored.api.post(
        "/containers/framed/exec", {"Cmd": ["echo", "hi"], "Tty": True, "AttachStdout": True}
    ).json["Id"]
    reply = moored.api.call("POST", f"/exec/{exec_id}/start", body={"Tty": False}, check=False)
    assert reply.body == b"\x01\0\0\0\0\0\0\x04hi\r\n"
    moored.docker("rm", "-f", "framed")


def test_a_folder_of_a_volume_is_filled_from_the_image(moored: Moored) -> None:
    moored.docker("run", "--rm", "-v", "parts:/v", "busybox", "mkdir", "/v/bin")
    mount = {"Type": "volume", "Source": "parts", "Target": "/bin", "VolumeOptions": {"Subpath": "bin"}}
    container = made(create(moored, {"Mounts": [mount]}, Cmd=["ls", "/bin/busybox"]))
    assert moored.docker("start", "-a", container) == "/bin/busybox"
    moored.docker("rm", "-v", container)
    moored.docker("volume", "rm", "parts")


def test_copies_are_named_by_the_last_part_of_the_path_and_errors_by_the_clients_words(moored: Moored) -> None:
    container = made(create(moored))
    for path, first in (("/", "/"), ("/etc/.", "./"), ("./", "./"), ("etc", "etc/"), ("/etc/", "etc/")):
        reply = moored.api.call("GET", f"/containers/{container}/archive", query={"path": path}, check=False)
        with tarfile.open(fileobj=io.BytesIO(reply.body)) as archive:
            names = archive.getnames()
        assert names[0].rstrip("/") == first.rstrip("/")
        if path == "/":
            assert {"/bin/busybox", "/etc/passwd"} <= set(names)
    for reference in (container, container[:12]):
        missing = moored.api.call("GET", f"/containers/{reference}/archive", query={"path": "/no"}, check=False)
        assert missing.message == f"Could not find the file /no in container {reference}"


def test_copies_of_one_container_do_not_disturb_each_other(moored: Moored) -> None:
    container = made(create(moored))
    for _ in range(20):
        for path in ("/", "/etc/passwd", "/bin"):
            reply = moored.api.call("HEAD", f"/containers/{container}/archive", query={"path": path}, check=False)
            assert reply.status == 200


def test_hosts_of_the_host_network_is_the_hosts_own(moored: Moored) -> None:
    assert moored.docker("run", "--rm", "--network", "host", "busybox", "cat", "/etc/hosts") == (
        Path("/etc/hosts").read_text().removesuffix("\n")
    )


def test_fields_of_the_host_beside_the_configuration_count_as_they_did(moored: Moored) -> None:
    reply = moored.api.call(
        "POST", "/containers/create", body={"Image": "busybox", "Cmd": "ls", "Memory": 524287}, check=False
    )
    assert (reply.status, reply.message) == (400, "Minimum memory limit allowed is 6MB")
    body = {"Image": "busybox", "Cmd": ["true"], "CpuShares": 12, "HostConfig": {"Memory": 64 << 20}}
    host = inspect(moored, made(moored.api.call("POST", "/containers/create", body=body)))["HostConfig"]
    assert (host["CpuShares"], host["Memory"]) == (12, 64 << 20)


def test_nothing_to_run_is_said_even_without_an_image(moored: Moored) -> None:
    reply = moored.api.call("POST", "/containers/create", body={"Image": ""}, check=False)
    assert (reply.status, reply.message) == (400, "no command specified")


def test_options_are_answered_and_sizes_are_checked_before_the_session(moored: Moored) -> None:
    assert moored.api.call("OPTIONS", "/", check=False).status == 200
    assert moored.api.call("POST", "/exec/nope/resize", query={"h": "foo", "w": "bar"}, check=False).status == 400


def test_an_exec_that_has_ended_still_tells_its_process(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "told", "busybox", "sleep", "1000")
    exec_id = moored.api.post("/containers/told/exec", {"Cmd": ["true"]}).json["Id"]
    moored.api.post(f"/exec/{exec_id}/start", {"Detach": True})
    wait_for("the end", lambda: not moored.api.get(f"/exec/{exec_id}/json").json["Running"])
    assert moored.api.get(f"/exec/{exec_id}/json").json["Pid"] > 1
    moored.docker("pause", "told")
    refused = moored.docker_run("exec", "told", "true")
    assert "Container told is paused, unpause the container before exec" in refused.stderr
    moored.docker("unpause", "told")
    moored.docker("rm", "-f", "told")


def test_a_container_that_does_not_run_shows_its_files_as_it_would_see_them(moored: Moored, tmp_path: Path) -> None:
    folder = moored.sandbox.root / "seen"
    folder.mkdir()
    (folder / "file").write_text("bound")
    (folder / "out").symlink_to("/tmp")
    (folder / "within").symlink_to("file")
    options = ["--name", "still", "--read-only", "-w", "/made/for/work", "-v", f"{folder}:/bound", "-v", "/anonymous"]
    moored.docker("create", *options, "busybox", "true")
    for path in ("/bound", "/anonymous", "/made/for/work"):
        moored.docker("cp", f"still:{path}", str(tmp_path))
        assert (tmp_path / Path(path).name).is_dir()
    assert (tmp_path / "bound" / "file").read_text() == "bound"
    (tmp_path / "new").write_text("new")
    refused = moored.docker_run("cp", str(tmp_path / "new"), "still:/bound/out/new")
    assert "container rootfs is marked read-only" in refused.stderr
    moored.docker("cp", str(tmp_path / "new"), "still:/bound/within")
    assert (folder / "file").read_text() == "new" and (folder / "within").is_symlink()
    moored.docker("start", "-a", "still")
    moored.docker("cp", "still:/etc/resolv.conf", str(tmp_path / "resolv.conf"))
    assert "nameserver" in (tmp_path / "resolv.conf").read_text()
    moored.docker("rm", "-v", "still")
    left = moored.sandbox.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    assert not [line for line in left if f" {moored.data_root}/" in line]


def test_containers_are_found_by_an_image_that_theirs_was_built_from(moored: Moored, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nLABEL built=yes\n")
    moored.docker("build", "-q", "-t", "descendant", str(tmp_path))
    container = moored.docker("create", "descendant", "true")
    assert container in moored.docker("ps", "-aq", "--no-trunc", "--filter", "ancestor=busybox").splitlines()
    assert moored.docker("ps", "-aq", "--no-trunc", "--filter", "ancestor=descendant") == container
    moored.docker("rm", container)
    moored.docker("rmi", "descendant")


def test_an_anonymous_volume_goes_with_the_last_container_that_has_it(moored: Moored) -> None:
    moored.docker("create", "--name", "parent", "-v", "/anonymous", "-v", "named:/named", "busybox", "true")
    moored.docker("create", "--name", "child", "--volumes-from", "parent", "busybox", "true")
    (volume,) = [each["Name"] for each in inspect(moored, "child")["Mounts"] if each["Destination"] == "/anonymous"]
    moored.docker("rm", "-v", "parent")
    assert volume in moored.docker("volume", "ls", "-q").splitlines()
    moored.docker("rm", "-v", "child")
    assert {volume, "named"} & set(moored.docker("volume", "ls", "-q").splitlines()) == {"named"}
    moored.docker("volume", "rm", "named")
    refused = moored.docker_run("create", "--volumes-from", "x:bar", "busybox", "true")
    assert "invalid mode: bar" in refused.stderr


def test_a_read_only_root_covers_the_files_of_the_network_and_home_is_never_empty(moored: Moored) -> None:
    script = "for f in hosts resolv.conf hostname; do [ -w /etc/$f ] && touch /etc/$f 2>/dev/null && echo $f; done; echo $HOME"
    assert moored.docker("run", "--rm", "--read-only", "-e", "HOME=", "busybox", "sh", "-c", script) == "/root"


def test_nothing_is_mounted_over_what_the_kernel_says_of_itself(moored: Moored) -> None:
    reply = create(moored, {"Binds": ["/tmp:/proc//sys"]})
    assert (reply.status, reply.message) == (400, '"/proc/sys" cannot be mounted because it is inside /proc')
    made(create(moored, {"Binds": ["/proc/uptime:/proc/uptime"]}))


def test_a_folder_in_a_programs_place_cannot_be_invoked(moored: Moored) -> None:
    assert moored.docker_run("run", "--rm", "busybox", "/etc").returncode == 126


def test_variables_of_links_are_there_for_an_exec(moored: Moored) -> None:
    moored.docker("run", "-d", "--name", "served", "busybox", "sleep", "1000")
    moored.docker("run", "-d", "--name", "serves", "--link", "served:db", "busybox", "sleep", "1000")
    assert "DB_NAME=/serves/db" in moored.docker("exec", "serves", "env").splitlines()
    moored.docker("rm", "-f", "-v", "served")
    assert "DB_NAME" not in moored.docker("exec", "serves", "env")
    moored.docker("rm", "-f", "serves")


def test_what_excludes_a_share_of_cpus_is_named(moored: Moored) -> None:
    container = made(create(moored, {"NanoCpus": 500_000_000}))
    reply = moored.api.call("POST", f"/containers/{container}/update", body={"CpuQuota": 50000}, check=False)
    assert reply.message == "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"
    blank = moored.api.call("DELETE", "/images/%20", check=False)
    assert (blank.status, blank.message) == (400, "image name cannot be blank")


def test_networks_that_cannot_be_joined_say_why(moored: Moored) -> None:
    for arguments, text in (
        (["--name", "me", "--network", "container:me"], "cannot join own network"),
        (["--network", "container"], "invalid container format container:<name|id>"),
    ):
        refused = moored.docker_run("run", *arguments, "busybox", "true")
        assert refused.returncode == 125 and text in refused.stderr
    moored.docker("rm", "me")
    own = {"MacAddress": "92:d0:c6:0a:29:33"}
    reply = create(moored, {"NetworkMode": "host"}, version="1.43", **own)
    assert (reply.status, reply.message) == (400, "conflicting options: mac-address and the network mode")
    assert "MacAddress" not in inspect(moored, made(create(moored, {"NetworkMode": "host"}, **own)))["Config"]


def test_a_filters_fault_is_told_even_when_there_is_nothing_to_choose_from(moored: Moored) -> None:
    reply = moored.api.call("GET", "/volumes", query={"filters": '{"dangling":["invalid"]}'}, check=False)
    assert reply.status == 400 and reply.message.startswith("invalid filter 'dangling=")
