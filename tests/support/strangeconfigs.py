"""Bodies of POST /containers/create that are well formed, and that hardly anybody would send."""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

_SIZES = (0, -1, 1, 4096, 6 * 2**20 - 1, 6 * 2**20, 64 * 2**20, 2**31, 2**40, 2**63 - 1)
_PATHS = (
    "/",
    "/x",
    "/etc",
    "/etc/hosts",
    "/proc",
    "/proc/sys",
    "/sys",
    "/dev",
    "/dev/shm",
    "/x/../y",
    "relative",
    "/a/b/c/d/e",
    "/bin/busybox",
)

#: Pools by field of HostConfig; where a field is a list or a map, some of a pool are taken.
_ONE: dict[str, Sequence[Any]] = {
    "NetworkMode": ("bridge", "none", "host", "default", "fuzz-net", "container:fuzz-runs", "container:fuzz-ended", "no-such"),
    "PidMode": ("", "host", "container:fuzz-runs", "container:fuzz-ended", "private"),
    "IpcMode": ("", "none", "private", "shareable", "host", "container:fuzz-runs"),
    "UTSMode": ("", "host", "private"),
    "UsernsMode": ("", "host", "private"),
    "CgroupnsMode": ("", "host", "private", "x"),
    "Cgroup": ("", "container:fuzz-runs"),
    "CgroupParent": ("", "p", "/p/../../q/p", "a.slice"),
    "Runtime": ("", "crun", "runc", "moorage", "io.containerd.runc.v2", "no-such"),
    "Isolation": ("", "default", "hyperv"),
    "VolumeDriver": ("", "local", "no-such"),
    "Privileged": (True, False),
    "ReadonlyRootfs": (True,),
    "Init": (True, False, None),
    "AutoRemove": (True, False),
    "PublishAllPorts": (True,),
    "OomKillDisable": (True, False),
    "OomScoreAdj": (0, 1000, -1000, 1001, 500),
    "Memory": _SIZES, "MemorySwap": _SIZES, "MemoryReservation": _SIZES, "KernelMemory": _SIZES, "ShmSize": _SIZES,
    "MemorySwappiness": (-1, 0, 60, 100, 101),
    "CpuShares": (0, 1, 2, 1024, 262145, -1), "CpuPeriod": (0, 1000, 100_000, 1_000_001, -1), "CpuQuota": (0, -1, 1000, 10**12),
    "NanoCpus": (0, 1, 10**7, 10**9, 10**12, -5), "CpuRealtimePeriod": (0, 1000), "CpuRealtimeRuntime": (0, 950),
    "CpusetCpus": ("", "0", "0-1", "0,1", "7-3", "99999", "x", "0-"), "CpusetMems": ("", "0", "17"),
    "PidsLimit": (None, 0, -1, 1, 5, 4_000_000), "BlkioWeight": (0, 9, 10, 500, 1001),
    "RestartPolicy": ({"Name": "no"}, {"Name": "always"}, {"Name": "on-failure", "MaximumRetryCount": 3}, {"Name": "x"}, {"Name": "no", "MaximumRetryCount": 2}),
    "LogConfig": (
        {"Type": "none"}, {"Type": "local", "Config": {"max-size": "1k"}}, {"Type": "json-file", "Config": {"max-file": "0"}},
        {"Type": "json-file", "Config": {"tag": "{{.Name}}/{{.No}}", "labels": "a"}}, {"Type": "syslog"},
        {"Type": "json-file", "Config": {"mode": "non-blocking", "max-buffer-size": "1"}},
    ),
    "ConsoleSize": ([0, 0], [70000, 1], [24, 80]),
    "MaskedPaths": (None, [], ["/proc/kcore", "/x"]), "ReadonlyPaths": (None, [], ["/etc", "/no/such"]),
}  # fmt: skip
_SOME: dict[str, Sequence[Any]] = {
    "CapAdd": ("ALL", "NET_ADMIN", "CAP_SYS_ADMIN", "cap_chown", "NO_SUCH", ""), "CapDrop": ("ALL", "CHOWN", "NO_SUCH"),
    "SecurityOpt": ("no-new-privileges", "no-new-privileges:false", "seccomp=unconfined", 'seccomp={"defaultAction":"SCMP_ACT_ALLOW"}', "seccomp={", "apparmor=x", "label=disable", "systempaths=unconfined", "x=y"),
    "Binds": ("fuzz-volume:/v", "/etc:/e:ro", "/tmp:/t:rshared", "/proc/no/such:/n", "anonymous-x:/", "fuzz-volume:/etc:nocopy", "/dev:/d:z", "/x", ":", "a:b:c:d"),
    "Tmpfs": (("/t", ""), ("/tmp", "size=64k,mode=1777"), ("/", ""), ("/t2", "size=-1"), ("rel", ""), ("/etc", "noexec,uid=5"), ("/t3", "nonsense=1")),
    "Sysctls": (("net.ipv4.ip_forward", "1"), ("kernel.shmmax", "1000"), ("kernel.panic", "1"), ("net.no.such", "1"), ("fs.mqueue.msg_max", "x"), ("", "")),
    "Dns": ("1.1.1.1", "::1", "x", ""), "DnsSearch": ("example.org", ".", ""), "DnsOptions": ("ndots:5", "", "x y"),
    "ExtraHosts": ("a:1.2.3.4", "b:host-gateway", "c:::1", "d", ":", "e:x"), "GroupAdd": ("0", "root", "nobody-here", "4294967296", "-1", ""),
    "Links": ("fuzz-runs:alias", "fuzz-runs", "no-such:x", ":"), "VolumesFrom": ("fuzz-runs", "fuzz-runs:ro", "no-such", "fuzz-ended:x"),
    "Devices": ({"PathOnHost": "/dev/null", "PathInContainer": "/dev/n", "CgroupPermissions": "rwm"}, {"PathOnHost": "/dev/no"}, {"PathOnHost": "/etc", "PathInContainer": "/x", "CgroupPermissions": "rwx"}, {}),
    "DeviceCgroupRules": ("c 1:3 rwm", "a *:* rwm", "x", "b *:8 q"), "DeviceRequests": ({"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}, {}),
    "Ulimits": ({"Name": "nofile", "Soft": 10, "Hard": 10}, {"Name": "nofile", "Soft": 20, "Hard": 10}, {"Name": "x", "Soft": 1, "Hard": 1}, {"Name": "core", "Soft": -1, "Hard": -1}, {"Name": "nproc", "Soft": 1, "Hard": 1}, {}),
    "StorageOpt": (("size", "10G"), ("x", "y")), "Annotations": (("a", "b"), ("run.oci.handler", "krun"), ("", "")),
    "BlkioWeightDevice": ({"Path": "/dev/null", "Weight": 500}, {"Path": "/no", "Weight": 5000}), "BlkioDeviceReadBps": ({"Path": "/dev/null", "Rate": 1000}, {"Path": "/no", "Rate": -1}),
    "PortBindings": (("80/tcp", [{"HostPort": ""}]), ("81/udp", [{"HostIp": "127.0.0.1", "HostPort": "5000-5002"}]), ("82", None), ("x/y", [{}]), ("83/sctp", [{"HostIp": "::1", "HostPort": "99999"}]), ("84/tcp", [{"HostPort": "6000"}, {"HostPort": "6000"}])),
    "Mounts": (
        {"Type": "volume", "Target": "/mv"}, {"Type": "tmpfs", "Target": "/mt", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 0o1777}},
        {"Type": "bind", "Source": "/etc", "Target": "/mb", "ReadOnly": True, "BindOptions": {"Propagation": "rslave"}},
        {"Type": "bind", "Source": "/proc/no/such", "Target": "/mn", "BindOptions": {"CreateMountpoint": True}}, {"Type": "bind", "Target": "/m"},
        {"Type": "volume", "Source": "fuzz-volume", "Target": "/ms", "VolumeOptions": {"Subpath": "../.."}}, {"Type": "image", "Source": "busybox", "Target": "/mi"},
        {"Type": "npipe", "Source": "x", "Target": "y"}, {"Type": "cluster", "Source": "x", "Target": "/y"}, {"Type": "volume", "Target": "/", "Source": "a"}, {},
    ),
}  # fmt: skip
_CONFIG: dict[str, Sequence[Any]] = {
    "User": ("", "0", "nobody", "1000:1000", "no-such", "root:no-such", "4294967295", "-1", ":", "0:0:0"),
    "WorkingDir": ("", "/", "/new/folder", "relative", "/etc/hosts", "/x/../y"),
    "Cmd": (["true"], ["false"], ["no-such-program"], ["/etc"], ["sh", "-c", "exit 300"], [""], "true", ["sleep", "1000"], ["echo", "x" * 100_000]),
    "Entrypoint": ([], [""], ["sh", "-c"], "", None), "Tty": (True, False), "OpenStdin": (True,), "StdinOnce": (True,),
    "Env": ([], ["A=b"], ["A"], ["=x"], ["A=\n💥"], ["PATH="], ["A=" + "x" * 200_000]), "Hostname": ("", "h", "a" * 64, "a b", "ä", "-"),
    "Domainname": ("", "example.org", "d" * 300), "StopSignal": ("", "SIGINT", "65", "x"), "StopTimeout": (0, -1, 2**31, None),
    "Healthcheck": ({"Test": ["CMD", "true"], "Interval": 10**9}, {"Test": ["NONE"]}, {"Test": ["X"]}, {"Test": ["CMD-SHELL"], "Retries": -1}, {"Test": []}),
    "ExposedPorts": ({"80/tcp": {}}, {"1-70000": {}}, {"x": {}}, {}), "Volumes": ({"/v": {}}, {"": {}}, {"/etc": {}}, {"rel": {}}),
    "MacAddress": ("", "02:42:ac:11:00:09", "x", "ff:ff:ff:ff:ff:ff"), "NetworkDisabled": (True,), "Labels": ({"": ""}, {"a": "\0"}), "Shell": ([], ["x"]),
}  # fmt: skip


@st.composite
def host_configs(draw: Callable[..., Any], parent: str) -> dict[str, Any]:
    """A body of create; the image is always busybox, and the cgroups are below ``parent`` whatever they are called."""
    host: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(sorted(_ONE)), max_size=3, unique=True)):
        value = draw(st.sampled_from(_ONE[name]))
        host[name] = f"/{parent}/{value}" if name == "CgroupParent" and value else value
    for name in draw(st.lists(st.sampled_from(sorted(_SOME)), max_size=2, unique=True)):
        chosen = draw(st.lists(st.sampled_from(_SOME[name]), max_size=2))
        host[name] = dict(chosen) if chosen and isinstance(chosen[0], tuple) else chosen
    body: dict[str, Any] = {"Image": "busybox", "Cmd": ["sleep", "1000"], "HostConfig": host}
    for name in draw(st.lists(st.sampled_from(sorted(_CONFIG)), max_size=2, unique=True)):
        body[name] = draw(st.sampled_from(_CONFIG[name]))
    return body
