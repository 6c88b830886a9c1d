"""Every setting of daemon.json, declared once: validation, form, command line, reference page and plan are made from this.

Keys and flags are those of dockerd's reference for version 28.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moorage_contract.daemon_config import checks
from moorage_contract.daemon_config.declaration import Absent, Cost, Setting, declared, setting
from moorage_contract.daemon_config.document import Json
from moorage_contract.daemon_config.kinds import (
    AddressPool,
    AddressPools,
    Flags,
    Free,
    Integer,
    Runtime,
    Runtimes,
    Size,
    Switch,
    Text,
    TextList,
    TextMap,
    TextMapMap,
    Ulimit,
    Ulimits,
    choice,
)

_CONTAINERD = "there is no containerd here: the daemon's own shims run containers"
_SWARM = "swarm is not part of this engine, so nothing reads it"
_LEVELS = ("panic", "fatal", "error", "warn", "info", "debug", "trace")


@dataclass(frozen=True)
class DaemonConfig:
    """The daemon's configuration, checked and with defaults filled in. Made by `parse`; never changed in place."""

    given: frozenset[str] = frozenset()
    """Keys that the file or a flag set."""
    notices: tuple[str, ...] = ()
    """Sentences on accepted keys that change nothing; the daemon logs them as warnings."""

    # Live restore and logs
    live_restore: bool = setting(
        Switch(),
        True,
        "Keep containers running while the daemon is away; on by default, but off as in dockerd when started under its name.",
        cost=Cost.RELOAD,
    )
    shutdown_timeout: int = setting(
        Integer(fault="invalid shutdown timeout: {}"),
        15,
        "Seconds that containers get to stop when the daemon stops and live restore is off.",
        cost=Cost.RELOAD,
    )
    log_driver: str = setting(
        Text(checks.log_driver, '"json-file" | "local" | "none"'),
        "json-file",
        "Where new containers log to unless they say otherwise.",
    )
    log_opts: Mapping[str, str] = setting(
        TextMap(), {}, "Options of that driver for new containers.", flags=("--log-opt",)
    )
    log_spill_size: int = setting(
        Size(),
        0,
        "Bytes of output of each stream that are kept on disk while the daemon is away, so that a container started from now on "
        "need not wait when its log pipe is full; 0 lets it wait. Not for containers with a terminal.",
        cost=Cost.RELOAD,
    )

    # The daemon's own log
    debug: bool = setting(
        Switch(), False, "Log debug messages of the daemon.", cost=Cost.RELOAD, flags=("--debug", "-D")
    )
    log_level: str = setting(
        choice(_LEVELS, "invalid logging level: {}"),
        "info",
        "How much the daemon itself logs.",
        flags=("--log-level", "-l"),
    )
    log_format: str = setting(
        choice(("text", "json"), "invalid log format: {}"), "text", "Form of the daemon's own log lines."
    )
    raw_logs: bool = setting(Switch(), False, "Write the daemon's own log without colour and with whole timestamps.")

    # Places
    data_root: str = setting(
        Text(checks.absolute, "absolute path"),
        "/var/lib/moorage",
        "Where images, containers and volumes are kept.",
        restore=True,
    )
    exec_root: str = setting(
        Text(checks.absolute, "absolute path"),
        "/run/moorage",
        "Where sockets and the state of running containers are.",
        restore=True,
    )
    pidfile: str = setting(
        Text(checks.absolute, "absolute path"),
        "/run/moorage.pid",
        "File that holds the daemon's process id.",
        flags=("--pidfile", "-p"),
    )
    hosts: tuple[str, ...] = setting(
        TextList(checks.host, "list of sockets"),
        (),
        "Sockets to listen on: unix://PATH, fd:// or tcp://HOST:PORT (which needs tlsverify and its three files).",
        flags=("--host", "-H"),
    )
    group: str = setting(
        Text(), "docker", "Group that may use the unix socket, when there is such a group.", flags=("--group", "-G")
    )

    # Storage
    storage_driver: str = setting(
        Text(checks.storage_driver, '"overlay2"'),
        "overlay2",
        "How layers become a file system.",
        flags=("--storage-driver", "-s"),
        restore=True,
    )
    storage_opts: tuple[str, ...] = setting(
        TextList(checks.storage_option), (), "Options of the storage driver.", flags=("--storage-opt",), restore=True
    )

    # Networks
    bridge: str = setting(
        Text(),
        "",
        'Bridge of the default network, when it is not to be docker0; "none" for no default network.',
        flags=("--bridge", "-b"),
        restore=True,
    )
    bip: str = setting(
        Text(checks.interface_of(4, "bip"), "IPv4 address/prefix"),
        "",
        "IPv4 address of the default bridge, and by it its subnet.",
        restore=True,
    )
    bip6: str = setting(
        Text(checks.interface_of(6, "bip6"), "IPv6 address/prefix"),
        "",
        "IPv6 address of the default bridge.",
        restore=True,
    )
    fixed_cidr: str = setting(
        Text(checks.subnet_of(4, "fixed-cidr"), "IPv4 network"),
        "",
        "Part of the bridge's subnet from which containers get addresses.",
        restore=True,
    )
    fixed_cidr_v6: str = setting(
        Text(checks.subnet_of(6, "fixed-cidr-v6"), "IPv6 network"), "", "The same for IPv6.", restore=True
    )
    default_gateway: str = setting(
        Text(checks.version_of(4, "default-gateway"), "IPv4 address"),
        "",
        "IPv4 gateway of containers on the default bridge.",
        restore=True,
    )
    default_gateway_v6: str = setting(
        Text(checks.version_of(6, "default-gateway-v6"), "IPv6 address"),
        "",
        "IPv6 gateway of containers on the default bridge.",
        restore=True,
    )
    default_address_pools: tuple[AddressPool, ...] = setting(
        AddressPools(),
        (),
        "Networks from which subnets of new networks are cut.",
        flags=("--default-address-pool",),
        restore=True,
    )
    default_network_opts: Mapping[str, Mapping[str, str]] = setting(
        TextMapMap(), {}, "Options that new networks get, by driver.", flags=("--default-network-opt",)
    )
    mtu: int = setting(Integer(0, 65535, "invalid default MTU: {}"), 1500, "MTU of the default bridge.", restore=True)
    ip: str = setting(
        Text(checks.ip_address, "IP address"),
        "0.0.0.0",
        "Address that published ports bind to when none is given; 0.0.0.0 means all, of IPv6 as well.",
    )
    ipv6: bool = setting(Switch(), False, "Give the default bridge IPv6 as well.", restore=True)
    icc: bool = setting(Switch(), True, "Let containers of the default bridge speak to each other.", restore=True)
    iptables: bool = setting(Switch(), True, "Write firewall rules for IPv4.", restore=True)
    ip6tables: bool = setting(Switch(), True, "Write firewall rules for IPv6.", restore=True)
    ip_forward: bool = setting(Switch(), True, "Switch on forwarding in the kernel.")
    ip_forward_no_drop: bool = setting(
        Switch(),
        False,
        "Leave the policy of the forward chain alone.",
        no_effect="the policy of the forward chain is never changed here",
    )
    ip_masq: bool = setting(
        Switch(), True, "Hide containers of the default bridge behind the machine's address.", restore=True
    )
    userland_proxy: bool = setting(
        Switch(), True, "Serve published ports on loopback by a process where the kernel cannot."
    )
    userland_proxy_path: str = setting(Text(), "", "The proxy's program.", no_effect="the proxy is part of the engine")
    allow_direct_routing: bool = setting(
        Switch(),
        False,
        "Let packets reach containers without a published port.",
        refusal="packets reach containers by published ports alone; set allow-direct-routing to false",
    )
    bridge_accept_fwmark: str = setting(
        Text(),
        "",
        "Accept marked packets to containers.",
        refusal="firewall marks are not looked at; remove bridge-accept-fwmark",
    )
    firewall_backend: str = setting(
        choice(("nftables",), "invalid firewall-backend: {} is not offered, rules are written with nftables"),
        "nftables",
        "How firewall rules are written.",
    )
    dns: tuple[str, ...] = setting(
        TextList(checks.ip_address, "list of IP addresses"), (), "Name servers of new containers."
    )
    dns_opts: tuple[str, ...] = setting(TextList(), (), "Options of new containers' resolv.conf.", flags=("--dns-opt",))
    dns_search: tuple[str, ...] = setting(
        TextList(checks.dns_search, "list of domains"), (), "Search domains of new containers."
    )
    host_gateway_ips: tuple[str, ...] = setting(
        TextList(checks.host_gateway, "list of IP addresses"),
        (),
        "What host-gateway in --add-host stands for; the default bridge's address unless given.",
        flags=("--host-gateway-ip",),
        aliases=("host-gateway-ip",),
    )
    network_control_plane_mtu: int = setting(Integer(0), 1500, "MTU of swarm's control plane.", no_effect=_SWARM)
    network_diagnostic_port: int = setting(
        Integer(0, 65535, "invalid network-diagnostic-port ({}): value must be between 0 and 65535"),
        0,
        "Port of swarm's network diagnostics.",
        cost=Cost.RELOAD,
        absent=Absent.DEFAULT,
        refusal="it belongs to swarm, which is not part of this engine; remove network-diagnostic-port",
        hidden=True,
    )

    # Defaults of containers
    cgroup_parent: str = setting(
        Text(checks.cgroup_parent, "cgroup path"), "", "Cgroup below which new containers are put."
    )
    default_cgroupns_mode: str = setting(
        Text(checks.default_cgroupns, '"private" | "host"'),
        "",
        "Cgroup namespace of new containers; private with cgroup v2 and host with v1 unless given.",
        cost=Cost.RELOAD,
    )
    default_ipc_mode: str = setting(
        Text(checks.default_ipc, '"private" | "shareable"'),
        "private",
        "IPC namespace of new containers.",
        cost=Cost.RELOAD,
    )
    default_shm_size: int = setting(Size(), 64 * 1024 * 1024, "Size of /dev/shm of new containers.", cost=Cost.RELOAD)
    default_ulimits: Mapping[str, Ulimit] = setting(
        Ulimits(), {}, "Resource limits of new containers.", flags=("--default-ulimit",)
    )
    default_runtime: str = setting(
        Text(),
        "runc",
        "OCI runtime of new containers, one of runtimes; runc is another name for crun here.",
        cost=Cost.RELOAD,
        absent=Absent.DEFAULT,
    )
    runtimes: Mapping[str, Runtime] = setting(
        Runtimes(),
        {},
        "Further OCI runtimes by name, which are called as runc is; those of file and command line together.",
        cost=Cost.RELOAD,
        absent=Absent.DEFAULT,
        flags=("--add-runtime",),
    )
    exec_opts: tuple[str, ...] = setting(
        TextList(checks.exec_option),
        (),
        "Options of the runtime: native.cgroupdriver=cgroupfs.",
        flags=("--exec-opt",),
        restore=True,
    )
    init: bool = setting(Switch(), False, "Run an init in every new container that reaps processes.")
    init_path: str = setting(Text(checks.absolute, "absolute path"), "", "Program of that init; tini unless given.")
    no_new_privileges: bool = setting(Switch(), False, "Keep processes of new containers from gaining privileges.")
    seccomp_profile: str = setting(
        Text(), "builtin", 'File with a seccomp profile, "builtin", or "unconfined" for none.'
    )
    selinux_enabled: bool = setting(
        Switch(),
        False,
        "Label containers for SELinux.",
        refusal="the machine's kernel policy is not SELinux; set selinux-enabled to false",
    )
    userns_remap: str = setting(
        Text(checks.remap, '"default" | user[:group] | uid[:gid]'),
        "",
        "Run containers in user namespaces whose root is an ordinary user of the machine: one of the subordinate ones that "
        "/etc/subuid and /etc/subgid give to this user. Images, containers and volumes are then kept apart from those of other users.",
        restore=True,
    )
    cpu_rt_period: int = setting(
        Integer(),
        0,
        "Period of real-time scheduling, in microseconds.",
        refusal="cgroup v2 has no real-time scheduling; remove cpu-rt-period",
    )
    cpu_rt_runtime: int = setting(
        Integer(),
        0,
        "Share of real-time scheduling, in microseconds.",
        refusal="cgroup v2 has no real-time scheduling; remove cpu-rt-runtime",
    )
    cdi_spec_dirs: tuple[str, ...] = setting(
        TextList(),
        ("/etc/cdi", "/var/run/cdi"),
        "Folders with specifications of devices (CDI) for `--device vendor.com/class=name`; `features.cdi` false turns them off.",
        flags=("--cdi-spec-dir",),
    )

    # Images and registries
    registry_mirrors: tuple[str, ...] = setting(
        TextList(checks.mirror, "list of addresses"),
        (),
        "Mirrors asked before the public registry.",
        cost=Cost.RELOAD,
        flags=("--registry-mirror",),
    )
    insecure_registries: tuple[str, ...] = setting(
        TextList(checks.index_name, "list of hosts or networks"),
        (),
        "Registries spoken to without TLS or with any certificate.",
        cost=Cost.RELOAD,
        flags=("--insecure-registry",),
    )
    allow_nondistributable_artifacts: tuple[str, ...] = setting(
        TextList(),
        (),
        "Registries that get foreign layers.",
        cost=Cost.RELOAD,
        no_effect="foreign layers are no longer a thing apart: they are pushed as any other",
        hidden=True,
    )
    max_concurrent_downloads: int = setting(
        Integer(0, fault="invalid max concurrent downloads: {}"),
        3,
        "Layers fetched at the same time in one pull.",
        cost=Cost.RELOAD,
        absent=Absent.DEFAULT,
    )
    max_concurrent_uploads: int = setting(
        Integer(0, fault="invalid max concurrent uploads: {}"),
        5,
        "Layers sent at the same time in one push.",
        cost=Cost.RELOAD,
        absent=Absent.DEFAULT,
    )
    max_download_attempts: int = setting(
        Integer(0, fault="invalid max download attempts: {}"),
        5,
        "How often a layer is tried in one pull.",
        cost=Cost.RELOAD,
        absent=Absent.DEFAULT,
    )
    http_proxy: str = setting(Text(), "", "Proxy for the daemon's HTTP requests.", section="proxies")
    https_proxy: str = setting(Text(), "", "Proxy for the daemon's HTTPS requests.", section="proxies")
    no_proxy: str = setting(
        Text(), "", "Hosts that are reached without the proxy, separated by commas.", section="proxies"
    )
    builder: Mapping[str, Json] = setting(
        Free(),
        {},
        "Garbage collection of the build cache.",
        flags=(),
        no_effect="the build cache is freed by `docker builder prune`, not by itself",
    )

    # API
    labels: tuple[str, ...] = setting(
        TextList(checks.label, "list of key=value"),
        (),
        "Labels of the engine, shown by docker info.",
        cost=Cost.RELOAD,
        flags=("--label",),
    )
    experimental: bool = setting(Switch(), False, "Say to clients that experimental features are on.")
    features: Mapping[str, bool] = setting(
        Flags(),
        {},
        "Named features on or off. `buildkit`, on unless false, is what makes clients build with BuildKit when their "
        "user has chosen no builder; the engine knows no other.",
        cost=Cost.RELOAD,
        flags=("--feature",),
        absent=Absent.DEFAULT,
    )
    tls: bool = setting(Switch(), False, "Use TLS on TCP sockets; tlsverify implies it.")
    tlsverify: bool = setting(Switch(), False, "Ask for and check the client's certificate.")
    tlscacert: str = setting(Text(), "", "Authority that clients' certificates must be signed by.")
    tlscert: str = setting(Text(), "", "Certificate of the daemon.")
    tlskey: str = setting(Text(), "", "Key of that certificate.")
    authorization_plugins: tuple[str, ...] = setting(
        TextList(),
        (),
        "Plugins that allow or forbid requests, asked in this order.",
        cost=Cost.RELOAD,
        flags=("--authorization-plugin",),
    )
    api_cors_header: str = setting(
        Text(),
        "",
        "CORS headers of the API.",
        refusal='DEPRECATED: The "api-cors-header" config parameter and the dockerd "--api-cors-header" option have been removed; use a reverse proxy if you need CORS headers',
        hidden=True,
    )
    metrics_addr: str = setting(
        Text(), "", "Where metrics are served.", refusal="the engine serves no metrics of its own; remove metrics-addr"
    )
    oom_score_adjust: int = setting(
        Integer(-1000, 1000, "invalid oom-score-adjust: {}: from -1000 to 1000"),
        0,
        "The kernel's readiness to kill the daemon for memory.",
        refusal="a daemon that is killed is back at once and containers run on, so its score is not changed; remove oom-score-adjust",
        hidden=True,
    )

    # Of other daemons
    containerd: str = setting(Text(), "", "Socket of containerd.", no_effect=_CONTAINERD)
    containerd_namespace: str = setting(Text(), "moby", "Namespace in containerd.", no_effect=_CONTAINERD)
    containerd_plugins_namespace: str = setting(
        Text(),
        "plugins.moby",
        "Namespace of plugins in containerd.",
        no_effect=_CONTAINERD,
        aliases=("containerd-plugin-namespace",),
    )
    cri_containerd: bool = setting(Switch(), False, "Start containerd with CRI.", no_effect=_CONTAINERD)
    node_generic_resources: tuple[str, ...] = setting(
        TextList(checks.generic_resource, "list of key=value"),
        (),
        "Resources told to a swarm.",
        flags=("--node-generic-resource",),
        no_effect=_SWARM,
    )
    swarm_default_advertise_addr: str = setting(Text(), "", "Address told to a swarm.", no_effect=_SWARM)
    rootless: bool = setting(
        Switch(),
        False,
        "Run without root.",
        refusal="the daemon has a machine of its own and needs root in it; remove rootless",
    )


SETTINGS: Mapping[str, Setting] = declared(DaemonConfig)
SECTIONS = frozenset(found.section for found in SETTINGS.values() if found.section)
ALIASES: Mapping[str, str] = {alias: found.key for found in SETTINGS.values() for alias in found.aliases}
