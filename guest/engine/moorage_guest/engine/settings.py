"""The daemon's settings that containers are made and run by; daemon.py fills them from daemon.json and flags."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moorage_contract.daemon_config.kinds import STOCK_RUNTIMES, Runtime

from moorage_guest.api.types import Ulimit
from moorage_guest.oci.spec import DEFAULT_SHM_SIZE, SpecDefaults

#: Seconds between the stop signal and SIGKILL unless a container says otherwise.
DEFAULT_STOP_TIMEOUT = 10

DEFAULT_RUNTIME = "runc"


@dataclass(frozen=True)
class RuntimeProgram:
    """An OCI runtime: its path, or a name in $PATH, and arguments before its command."""

    path: str = "crun"
    arguments: tuple[str, ...] = ()

    @classmethod
    def configured(cls, runtime: Runtime) -> "RuntimeProgram":
        """Return the program behind an entry of ``runtimes``; runc without a path is the runtime that is there."""
        return cls("crun" if runtime.path == DEFAULT_RUNTIME else runtime.path, runtime.args)


_STOCK = {name: RuntimeProgram() for name in STOCK_RUNTIMES}


@dataclass(frozen=True)
class EngineSettings:
    """A snapshot; a reload replaces it as a whole."""

    live_restore: bool = True
    log_driver: str = "json-file"
    log_options: Mapping[str, str] = field(default_factory=dict)
    #: Bytes of each stream that a shim keeps on disk instead of letting its container wait; 0 is never.
    log_spill_size: int = 0
    shm_size: int = DEFAULT_SHM_SIZE
    ipc_mode: str = "private"
    cgroupns_mode: str = ""
    cgroup_parent: str = ""
    init: bool = False
    init_path: str = "/usr/bin/tini-static"
    no_new_privileges: bool = False
    #: "", "builtin", "unconfined" or the JSON text of a profile.
    seccomp_profile: str = ""
    ulimits: Mapping[str, Ulimit] = field(default_factory=dict)
    #: By the names that containers know them by.
    runtimes: Mapping[str, RuntimeProgram] = field(default_factory=lambda: dict(_STOCK))
    default_runtime: str = DEFAULT_RUNTIME
    #: Seconds for all containers to stop when the daemon stops with live restore off; -1 is for ever.
    shutdown_timeout: int = 15
    storage_driver: str = "overlay2"
    cgroup_version: str = "2"
    cdi_folders: tuple[str, ...] = ()

    def spec_defaults(self) -> SpecDefaults:
        """Return the part that the OCI spec is built with."""
        return SpecDefaults(
            init=self.init,
            init_path=Path(self.init_path),
            no_new_privileges=self.no_new_privileges,
            seccomp_profile=self.seccomp_profile,
            ulimits=self.ulimits,
            shm_size=self.shm_size,
            cgroupns_mode=self.cgroupns_mode,
            cdi_folders=self.cdi_folders,
        )
