"""What single parts of the daemon need of daemon.json, in their own terms."""

import ipaddress
from pathlib import Path

from moorage_contract.daemon_config import DaemonConfig
from moorage_contract.daemon_config.kinds import STOCK_RUNTIMES

from moorage_guest import sysinfo
from moorage_guest.api.types import Ulimit
from moorage_guest.engine.settings import DEFAULT_RUNTIME, EngineSettings, RuntimeProgram
from moorage_guest.images.registry import RegistrySettings
from moorage_guest.net.config import NetConfig, parse_pools


class SettingsError(Exception):
    """A setting names something that is not there; the text says which key and what."""


def engine_settings(config: DaemonConfig) -> EngineSettings:
    """Return what containers are made and run by. Raises SettingsError for a seccomp profile that cannot be read."""
    cgroup_version = sysinfo.cgroup_facts().version
    return EngineSettings(
        live_restore=config.live_restore,
        log_driver=config.log_driver,
        log_options=config.log_opts,
        log_spill_size=config.log_spill_size,
        shm_size=config.default_shm_size,
        ipc_mode=config.default_ipc_mode,
        cgroupns_mode=config.default_cgroupns_mode or ("private" if cgroup_version == "2" else "host"),
        cgroup_parent=config.cgroup_parent,
        init=config.init,
        init_path=config.init_path or EngineSettings.init_path,
        no_new_privileges=config.no_new_privileges,
        seccomp_profile=_seccomp_profile(config.seccomp_profile),
        ulimits={
            name: Ulimit(name=name, soft=limit.soft, hard=limit.hard) for name, limit in config.default_ulimits.items()
        },
        runtimes={
            **{name: RuntimeProgram() for name in STOCK_RUNTIMES},
            **{name: RuntimeProgram.configured(runtime) for name, runtime in config.runtimes.items()},
        },
        default_runtime=config.default_runtime or DEFAULT_RUNTIME,
        shutdown_timeout=config.shutdown_timeout,
        storage_driver=config.storage_driver,
        cgroup_version=cgroup_version,
        cdi_folders=cdi_folders(config),
    )


def cdi_folders(config: DaemonConfig) -> tuple[str, ...]:
    """Return where devices by CDI are specified; nowhere when the feature is off."""
    return tuple(filter(None, config.cdi_spec_dirs)) if config.features.get("cdi", True) else ()


def _seccomp_profile(value: str) -> str:
    """Return the text of a profile, or the word for a built-in one."""
    if value in ("", "builtin", "unconfined"):
        return value
    try:
        return Path(value).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"opening seccomp profile ({value}) failed: {error}; check seccomp-profile") from None


def registry_settings(config: DaemonConfig) -> RegistrySettings:
    """Return how registries are reached."""
    return RegistrySettings(
        registry_mirrors=config.registry_mirrors,
        insecure_registries=config.insecure_registries,
        max_concurrent_downloads=config.max_concurrent_downloads,
        max_concurrent_uploads=config.max_concurrent_uploads,
        max_download_attempts=config.max_download_attempts,
    )


def net_config(config: DaemonConfig) -> NetConfig:
    """Return what networks are made by; values were checked when the file was read."""

    def interface(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface | None:
        return ipaddress.ip_interface(text) if text else None

    def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        return ipaddress.ip_network(text, strict=False) if text else None

    def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        return ipaddress.ip_address(text) if text else None

    return NetConfig(
        bridge=config.bridge,
        bip=interface(config.bip),
        bip6=interface(config.bip6),
        fixed_cidr=network(config.fixed_cidr),
        fixed_cidr_v6=network(config.fixed_cidr_v6),
        default_gateway=address(config.default_gateway),
        default_gateway_v6=address(config.default_gateway_v6),
        pools=parse_pools((pool.base, pool.size) for pool in config.default_address_pools),
        dns=config.dns,
        dns_opts=config.dns_opts,
        dns_search=config.dns_search,
        host_gateway_ips=config.host_gateway_ips,
        icc=config.icc,
        iptables=config.iptables,
        ip6tables=config.ip6tables,
        ip_forward=config.ip_forward,
        ip_masq=config.ip_masq,
        ipv6=config.ipv6,
        mtu=config.mtu,
        default_bind="" if config.ip == "0.0.0.0" else config.ip,
        userland_proxy=config.userland_proxy,
        default_network_opts=config.default_network_opts,
    )
