"""Rules of the runtime spec that need no container: capabilities, seccomp, devices, sysctls, security options, users."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moorage_guest.api.types import ContainerConfig, HostConfig, Ulimit
from moorage_guest.errors import InvalidParameter
from moorage_guest.oci import capabilities, resources
from moorage_guest.oci.devices import parse_rule
from moorage_guest.oci.limits import drop_unsupported
from moorage_guest.oci.seccomp import Machine, default_profile, load_profile
from moorage_guest.oci.security import parse_security_options
from moorage_guest.oci.spec import (
    MountPoint,
    SpecDefaults,
    SpecRequest,
    build_environment,
    build_spec,
    merge_environment,
)
from moorage_guest.oci.users import resolve_user
from moorage_guest.sysinfo import CgroupFacts

X86 = Machine("amd64", (6, 12))


def _request(tmp_path: Path, **host: Any) -> SpecRequest:
    return SpecRequest("abc", ContainerConfig(cmd=["sh"]), HostConfig(**host), tmp_path, hostname="box")


def test_all_with_a_drop_is_all_but_that() -> None:
    granted = capabilities.granted(["ALL"], ["sys_admin"], privileged=False)
    assert set(granted) == capabilities.available() - {"CAP_SYS_ADMIN"}


def test_an_unknown_capability_is_named() -> None:
    with pytest.raises(InvalidParameter, match='invalid capability: "FLY"'):
        capabilities.granted(["FLY"], [], privileged=False)


def test_seccomp_unlocks_by_capability() -> None:
    plain, admin = (_allowed(default_profile(caps, X86)) for caps in ([], ["CAP_SYS_ADMIN"]))
    assert {"read", "clone"} <= plain
    assert not {"mount", "unshare", "setns", "bpf"} & plain
    assert {"mount", "unshare", "setns", "bpf"} <= admin


def _allowed(profile: dict[str, Any]) -> set[str]:
    return {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


def test_conditions_of_a_profile_are_decided_for_the_machine() -> None:
    allow = {"action": "SCMP_ACT_ALLOW"}
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["a"], **allow, "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["b"], **allow, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["c"], **allow, "includes": {"arches": ["arm64"]}},
            {"names": ["d"], **allow, "includes": {"minKernel": "6.12"}},
            {"names": ["e"], **allow, "includes": {"minKernel": "7.0"}},
            {"name": "f", **allow, "args": None},
        ],
    }
    found = load_profile(json.dumps(profile), [], X86)
    assert _allowed(found) == {"b", "d", "f"}
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    with pytest.raises(InvalidParameter, match="Decoding seccomp profile failed"):
        load_profile("{", [], X86)


@pytest.mark.parametrize("option", ["nonsense", "foo=bar", "no-new-privileges=maybe", "apparmor=mine"])
def test_security_options_that_are_none_are_refused(option: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_security_options([option])


def test_security_options_are_parsed() -> None:
    options = parse_security_options(
        ["no-new-privileges:true", "seccomp=unconfined", "label=disable", "apparmor=unconfined"]
    )
    assert (options.no_new_privileges, options.seccomp) == (True, "unconfined")
    assert not parse_security_options(["no-new-privileges=false"], no_new_privileges=True).no_new_privileges


def test_device_rules() -> None:
    assert parse_rule("c 10:* rw") == {"allow": True, "type": "c", "major": 10, "access": "rw"}
    with pytest.raises(InvalidParameter, match="invalid device cgroup rule format: 'x 1:2 r'"):
        parse_rule("x 1:2 r")


def test_environment_layers_override_in_place_and_a_bare_name_removes() -> None:
    assert merge_environment(["A=1", "B=2"], ["A=3", "B"], ["C="]) == ["A=3", "C="]
    config = ContainerConfig(env=["PATH=/x", "TERM=dumb"])
    assert build_environment(config, "h", tty=True) == ["PATH=/x", "HOSTNAME=h", "TERM=dumb"]


def test_resources_follow_the_host_config() -> None:
    host = HostConfig(nano_cpus=1_500_000_000, memory=1 << 26, memory_swap=-1, pids_limit=-1, cpuset_cpus="0-1")
    found = resources.build_resources(host, [])
    assert found["cpu"] == {"period": 100_000, "quota": 150_000, "cpus": "0-1"}
    assert found["memory"] == {"limit": 1 << 26, "swap": -1}
    assert found["pids"] == {"limit": -1}


def test_own_ulimits_go_over_the_daemons() -> None:
    defaults = {"nofile": Ulimit(name="nofile", soft=10, hard=20), "core": Ulimit(name="core", soft=0, hard=0)}
    found = resources.rlimits([Ulimit(name="nofile", soft=5, hard=6)], defaults)
    assert found == [
        {"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    with pytest.raises(InvalidParameter, match="invalid ulimit type: wings"):
        resources.rlimits([Ulimit(name="wings", soft=1, hard=1)])


def test_a_users_mount_takes_the_place_of_a_default_one_and_deeper_ones_come_later(tmp_path: Path) -> None:
    request = _request(tmp_path)
    mounts = [
        MountPoint("/b", "/a/b/c", "bind"),
        MountPoint("/dev/shm", "/dev/shm", "bind", ("rbind",)),
        MountPoint("/a", "/a", "bind"),
    ]
    spec = build_spec(SpecRequest("abc", request.config, request.host_config, tmp_path, mounts=mounts))
    places = [each["destination"] for each in spec["mounts"]]
    assert places.count("/dev/shm") == 1
    assert places.index("/a") < places.index("/a/b/c")


def test_namespaces_of_the_host_are_left_out(tmp_path: Path) -> None:
    host = {"network_mode": "host", "pid_mode": "host", "ipc_mode": "host", "uts_mode": "host", "cgroupns_mode": "host"}
    spec = build_spec(_request(tmp_path, **host))
    assert spec["linux"]["namespaces"] == [{"type": "mount"}]
    assert "hostname" not in spec
    assert spec["linux"]["sysctl"] == {}


def test_the_daemons_defaults_take_part(tmp_path: Path) -> None:
    request = _request(tmp_path)
    defaults = SpecDefaults(init=True, no_new_privileges=True, seccomp_profile="unconfined", cgroupns_mode="private")
    spec = build_spec(SpecRequest("abc", request.config, request.host_config, tmp_path, defaults=defaults))
    assert spec["process"]["args"] == ["/sbin/docker-init", "--", "sh"]
    assert spec["process"]["noNewPrivileges"]
    assert "seccomp" not in spec["linux"]
    assert {"type": "cgroup"} in spec["linux"]["namespaces"]


def test_numbers_need_no_entry_but_have_a_range(tmp_path: Path) -> None:
    assert resolve_user(tmp_path, "12:34", ["5"]).additional_gids == (34, 5)
    assert resolve_user(tmp_path, "").uid == 0
    with pytest.raises(InvalidParameter, match="uids and gids must be in range 0-2147483647"):
        resolve_user(tmp_path, "2147483648")
    with pytest.raises(InvalidParameter, match="unable to find group staff: no matching entries in group file"):
        resolve_user(tmp_path, "0:staff")


def test_a_passwd_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    import os

    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    assert resolve_user(tmp_path, "7").home == "/"


FACTS = CgroupFacts("2", True, True, True, True, True, True, True, False, True, True)


def test_limits_that_the_kernel_lacks_are_dropped_with_dockerds_warning() -> None:
    host = HostConfig(blkio_weight=300, pids_limit=5, memory=1 << 26, memory_swap=1 << 27, memory_swappiness=10)
    assert drop_unsupported(host, replace(FACTS, blkio_weight=False, swap_limit=False)) == [
        "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
        "Memory swappiness discarded.",
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
    ]
    assert (host.blkio_weight, host.pids_limit, host.memory, host.memory_swap) == (0, 5, 1 << 26, -1)
    assert host.memory_swappiness is None


def test_limits_that_the_kernel_has_stay() -> None:
    host = HostConfig(blkio_weight=300, pids_limit=5, memory=1 << 26, memory_swap=1 << 27, cpuset_cpus="0")
    before = host.model_copy(deep=True)
    assert drop_unsupported(host, FACTS) == []
    assert host == before


def test_profile_with_both_kinds_of_architectures_is_refused_in_dockerds_words() -> None:
    both = {"architectures": ["SCMP_ARCH_X32"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}], "syscalls": []}
    with pytest.raises(InvalidParameter, match="use either 'architectures' or 'archMap'"):
        load_profile(json.dumps(both), [])
