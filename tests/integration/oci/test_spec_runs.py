"""Specs that `build_spec` makes do in the real crun what the API promises."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from moorage_guest.errors import InvalidParameter, SystemError_
from moorage_guest.oci.spec import ExecSpecRequest, MountPoint, build_exec_process, build_spec

from tests.support.oci import Bench, oci_bench, with_config

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with oci_bench() as found:
        yield found


def test_a_plain_command_runs_as_root_with_hostname_and_environment(bench: Bench) -> None:
    request = bench.request(
        "/bin/sh", "-c", "id -u; hostname; echo $PATH $HOME $HOSTNAME $A; pwd", config={"env": ["A=b"]}
    )
    assert bench.run(request).split("\n") == [
        "0", "box", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root box b", "/",
    ]  # fmt: skip


def test_a_named_user_has_its_groups_and_the_added_ones(bench: Bench) -> None:
    request = bench.request("/bin/id", config={"user": "ann"}, group_add=["audio", "4711"])
    assert bench.run(request) == "uid=1000(ann) gid=1001(ann) groups=10(wheel),29(audio),1001(ann),4711"


def test_an_unknown_user_is_refused_with_dockerds_text(bench: Bench) -> None:
    with pytest.raises(InvalidParameter, match="unable to find user bob: no matching entries in passwd file"):
        build_spec(bench.request("/bin/id", config={"user": "bob"}))


def test_a_passwd_file_that_links_out_of_the_root_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "passwd"
    outside.write_text("bob:x:5:5::/:/bin/sh\n")
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/passwd").symlink_to(outside)
    with pytest.raises(InvalidParameter, match="unable to find user bob"):
        build_spec(replace(bench.request("/bin/id", config={"user": "bob"}), rootfs=rootfs))


def test_default_capabilities_are_dockers_and_a_user_has_none_effective(bench: Bench) -> None:
    show = ("/bin/sh", "-c", "grep -E 'Cap(Eff|Bnd)' /proc/self/status")
    (bench.rootfs / "bin/grep").unlink(missing_ok=True)
    (bench.rootfs / "bin/grep").symlink_to("busybox")
    assert bench.run(bench.request(*show)).split() == ["CapEff:", "00000000a80425fb", "CapBnd:", "00000000a80425fb"]
    ordinary = bench.run(bench.request(*show, config={"user": "1000"})).split()
    assert ordinary == ["CapEff:", "0000000000000000", "CapBnd:", "00000000a80425fb"]
    dropped = bench.run(bench.request(*show, cap_drop=["ALL"], cap_add=["net_admin"])).split()
    assert dropped[1] == "0000000000001000"


def test_seccomp_forbids_a_new_user_namespace_unless_unconfined(bench: Bench) -> None:
    command = ("/bin/unshare", "-U", "/bin/sh", "-c", "echo made")
    assert "made" not in bench.run(bench.request(*command), check=False)
    assert bench.run(bench.request(*command, security_opt=["seccomp=unconfined"])) == "made"


def test_a_seccomp_profile_given_as_json_is_applied(bench: Bench) -> None:
    profile = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}'
    )
    said = bench.run(bench.request("/bin/mkdir", "/tmp/x", security_opt=[f"seccomp={profile}"]), check=False)
    assert "Operation not permitted" in said
    assert not (bench.rootfs / "tmp/x").exists()


def test_proc_sys_is_read_only_and_masked_paths_are_empty(bench: Bench) -> None:
    script = "echo x > /proc/sys/kernel/hostname; cat /proc/kcore; ls /sys/firmware"
    said = bench.run(bench.request("/bin/sh", "-c", script), check=False)
    assert "Read-only file system" in said
    assert build_spec(bench.request("/bin/sh", masked_paths=[]))["linux"]["maskedPaths"] == []


def test_a_read_only_root_refuses_writing_but_a_tmpfs_mount_takes_it(bench: Bench) -> None:
    request = bench.request("/bin/sh", "-c", "echo a > /tmp/a && cat /tmp/a; echo b > /b", readonly_rootfs=True)
    request = replace(request, mounts=[MountPoint("tmpfs", "/tmp", "tmpfs", ("size=1m", "nosuid"))])
    said = bench.run(request, check=False)
    assert said.startswith("a\n")
    assert "Read-only file system" in said


def test_init_reaps_as_process_one(bench: Bench) -> None:
    said = bench.run(bench.request("/bin/sh", "-c", "cat /proc/1/comm", init=True))
    assert said == "docker-init"


def test_shm_has_the_asked_for_size_and_none_without_ipc(bench: Bench) -> None:
    command = ("/bin/sh", "-c", "cat /proc/mounts | while read d p r; do [ $p = /dev/shm ] && echo $r; done; true")
    assert "size=1024k" in bench.run(bench.request(*command, shm_size=1 << 20))
    assert bench.run(bench.request(*command, ipc_mode="none")) == ""


def test_ulimits_are_set(bench: Bench) -> None:
    command = ("/bin/sh", "-c", "ulimit -n; ulimit -Hn")
    request = bench.request(*command, ulimits=[{"Name": "nofile", "Soft": 100, "Hard": 200}])
    assert bench.run(request).split() == ["100", "200"]
    with pytest.raises(InvalidParameter, match="soft limit must be less than or equal to hard limit: 3 > 2"):
        build_spec(bench.request(*command, ulimits=[{"Name": "nofile", "Soft": 3, "Hard": 2}]))


def test_a_device_is_there_and_a_missing_one_refused(bench: Bench) -> None:
    device = {"PathOnHost": "/dev/null", "PathInContainer": "/dev/nothing", "CgroupPermissions": "rw"}
    said = bench.run(
        bench.request("/bin/sh", "-c", "[ -c /dev/nothing ] && echo x > /dev/nothing && echo ok", devices=[device])
    )
    assert said == "ok"
    missing = {"PathOnHost": "/dev/isnotthere", "PathInContainer": "/dev/x"}
    with pytest.raises(SystemError_, match='adding custom device "/dev/isnotthere": no such file or directory'):
        build_spec(bench.request("/bin/sh", devices=[missing]))


def test_sysctls_of_the_containers_own_namespaces_are_set_and_others_refused(bench: Bench) -> None:
    request = bench.request("/bin/cat", "/proc/sys/net/ipv4/ip_forward", sysctls={"net.ipv4.ip_forward": "1"})
    assert bench.run(request) == "1"
    with pytest.raises(InvalidParameter, match="not in a separate kernel namespace"):
        build_spec(bench.request("/bin/cat", sysctls={"kernel.panic": "1"}))
    with pytest.raises(InvalidParameter, match="not allowed in host network namespace"):
        build_spec(bench.request("/bin/cat", network_mode="host", sysctls={"net.ipv4.ip_forward": "1"}))


def test_a_privileged_container_has_all_capabilities_and_devices(bench: Bench) -> None:
    spec = build_spec(bench.request("/bin/sh", privileged=True))
    assert "seccomp" not in spec["linux"]
    assert "maskedPaths" not in spec["linux"]
    assert "/dev/null" in [each["path"] for each in spec["linux"]["devices"]]
    script = "mkdir -p /tmp/m && mount -t tmpfs x /tmp/m && echo mounted"
    assert bench.run(bench.request("/bin/sh", "-c", script, privileged=True)) == "mounted"


def test_host_network_shares_the_machines_interfaces(bench: Bench) -> None:
    own = bench.run(
        bench.request("/bin/sh", "-c", "ls -di /proc/self/ns/net; stat -L -c %i /proc/self/ns/net", network_mode="host")
    )
    assert own.split("\n")[1] == str(Path("/proc/self/ns/net").stat().st_ino)


def test_no_new_privileges_is_set(bench: Bench) -> None:
    command = ("/bin/sh", "-c", "while read k v; do [ $k = NoNewPrivs: ] && echo $v; done < /proc/self/status; true")
    assert bench.run(bench.request(*command, security_opt=["no-new-privileges"])) == "1"
    assert bench.run(bench.request(*command)) == "0"


def test_an_exec_process_runs_beside_with_its_own_user_and_environment(bench: Bench) -> None:
    request = with_config(bench.request("/bin/sleep", "600"), env=["A=1"])
    with bench.started(request):
        process = build_exec_process(
            ExecSpecRequest(
                request.config, request.host_config, request.rootfs, "box",
                ["/bin/sh", "-c", "id -un; echo $A $B $HOME; pwd"], env=["B=2"], user="ann", working_dir="/tmp",
            )
        )  # fmt: skip
        file = bench.bundle(process) / "config.json"
        said = bench.crun("exec", "--process", str(file), request.container_id).stdout
    assert said.split("\n")[:3] == ["ann", "1 2 /home/ann", "/tmp"]
