"""The answer of `GET /info`, from the configuration in force, the machine and what the daemon counts."""

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moorage_contract.daemon_config import DaemonConfig
from moorage_contract.daemon_config.kinds import STOCK_RUNTIMES

from moorage_guest import sysinfo
from moorage_guest.api.system import machine_info
from moorage_guest.engineconfig import cdi_folders
from moorage_guest.oci import cdi
from moorage_guest.store import Store

INDEX_SERVER = "https://index.docker.io/v1/"


def engine_id(store: Store, file: Path) -> str:
    """Return this engine's id, made at its first start and kept in the state database.

    ``file`` shows it, as dockerd's does; who writes another one there gives the engine that id.
    """
    with contextlib.suppress(OSError):
        if text := file.read_text().strip():
            return text
    record = store.get("engine", "id")
    if record is None:
        record = {"id": str(uuid.uuid4())}
        store.put("engine", "id", record)
    with contextlib.suppress(OSError):
        file.write_text(str(record["id"]))
    return str(record["id"])


def masked_proxy(url: str) -> str:
    """Return a proxy's address without its credentials."""
    scheme, separator, rest = url.partition("://")
    if separator and "@" in rest:
        return f"{scheme}://xxxxx:xxxxx@{rest.rpartition('@')[2]}"
    return url


def engine_info(
    config: DaemonConfig,
    *,
    identity: str,
    counts: Mapping[str, int],
    images: int,
    driver: str,
    driver_status: list[list[str]],
    data_root: Path,
    remapped: bool,
    listeners: int,
    tasks: int,
    warnings: list[str],
) -> dict[str, Any]:
    """Put the answer together. Reads a few kernel files; does not block on anything else."""
    configs = {
        "docker.io": {"Name": "docker.io", "Mirrors": list(config.registry_mirrors), "Secure": True, "Official": True}
    }
    networks = ["::1/128", "127.0.0.0/8"]
    for registry in config.insecure_registries:
        if "/" in registry:
            networks.append(registry)
        else:
            configs[registry] = {"Name": registry, "Mirrors": [], "Secure": False, "Official": False}
    crun = sysinfo.program_version("crun")
    profile = config.seccomp_profile or "builtin"
    return {
        **machine_info(),
        "CDISpecDirs": list(cdi_folders(config)),
        "DiscoveredDevices": [{"Source": "cdi", "ID": name} for name in sorted(cdi.devices(cdi_folders(config)))],
        "SecurityOptions": sysinfo.security_options(
            profile, no_new_privileges=config.no_new_privileges, remapped=remapped
        ),
        "ID": identity,
        **counts,
        "Images": images,
        "Driver": driver,
        "DriverStatus": driver_status,
        "Debug": config.debug,
        "NGoroutines": tasks,
        "NEventsListener": listeners,
        "LoggingDriver": config.log_driver,
        "CgroupDriver": "cgroupfs",
        "IndexServerAddress": INDEX_SERVER,
        "RegistryConfig": {
            "AllowNondistributableArtifactsCIDRs": None,
            "AllowNondistributableArtifactsHostnames": None,
            "InsecureRegistryCIDRs": sorted(networks),
            "IndexConfigs": configs,
            "Mirrors": list(config.registry_mirrors),
        },
        "DockerRootDir": str(data_root),
        "HttpProxy": masked_proxy(config.http_proxy or os.environ.get("HTTP_PROXY", "")),
        "HttpsProxy": masked_proxy(config.https_proxy or os.environ.get("HTTPS_PROXY", "")),
        "NoProxy": config.no_proxy or os.environ.get("NO_PROXY", ""),
        "Name": sysinfo.hostname(),
        "Labels": list(config.labels),
        "ExperimentalBuild": config.experimental,
        "Runtimes": {
            **{name: {"path": "crun"} for name in STOCK_RUNTIMES},
            **{
                name: {"path": runtime.path, **({"runtimeArgs": list(runtime.args)} if runtime.args else {})}
                for name, runtime in config.runtimes.items()
            },
        },
        "DefaultRuntime": config.default_runtime,
        "LiveRestoreEnabled": config.live_restore,
        "InitBinary": config.init_path or "tini",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": f"crun {crun}" if crun else ""},
        "InitCommit": {"ID": sysinfo.program_version("tini")},
        "DefaultAddressPools": [{"Base": pool.base, "Size": pool.size} for pool in config.default_address_pools],
        "FirewallBackend": {"Driver": "nftables"},
        "Warnings": [
            *sysinfo.cgroup_facts().warnings(),
            *(["WARNING: daemon is not using the default seccomp profile"] if profile != "builtin" else []),
            *warnings,
        ],
    }
