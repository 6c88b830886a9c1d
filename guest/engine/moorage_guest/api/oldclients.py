"""What a container's configuration means when an older client sends it: fields it cannot know, defaults it expects.

dockerd keeps these rules in its API; the engine behind it only knows the newest meaning.
"""

from moorage_guest.api.types import ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig
from moorage_guest.errors import InvalidParameter

MAC_ADDRESS_MOVED = (
    "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
)


def adapt_create(
    version: tuple[int, int], config: ContainerConfig, host: HostConfig, networking: NetworkingConfig, *, cgroup1: bool
) -> list[str]:
    """Change the three in place to what a client of that version means; return warnings. Raises InvalidParameter."""
    if host.network_mode in ("", "default"):
        host.network_mode = "bridge"
        if "default" in networking.endpoints_config:
            networking.endpoints_config["bridge"] = networking.endpoints_config.pop("default")
    if version < (1, 25):  # the client removes it
        host.auto_remove = False
    if version < (1, 40):
        host.ipc_mode = host.ipc_mode or "shareable"
        for mount in host.mounts:
            if mount.bind_options is not None:
                mount.bind_options.non_recursive = False
    if version < (1, 41) and cgroup1:
        host.cgroupns_mode = host.cgroupns_mode or "host"
    _mount_options(version, host)
    if version < (1, 43):
        host.annotations = {}
    if version < (1, 44):
        if config.healthcheck is not None:
            config.healthcheck.start_interval = 0
        if len(networking.endpoints_config) > 1:
            raise InvalidParameter(
                f"Container cannot be created with multiple network endpoints: {', '.join(networking.endpoints_config)}"
            )
    return _mac_address(version, config, host, networking)


def _mount_options(version: tuple[int, int], host: HostConfig) -> None:
    for mount in host.mounts:
        bind, volume = mount.bind_options, mount.volume_options
        if version < (1, 42):
            if bind is not None:
                bind.create_mountpoint = False
            if mount.type != "volume":
                mount.volume_options = None
            if mount.type != "tmpfs":
                mount.tmpfs_options = None
        else:
            for kind, name, given in (
                ("volume", "VolumeOptions", volume),
                ("bind", "BindOptions", bind),
                ("tmpfs", "TmpfsOptions", mount.tmpfs_options),
            ):
                if given is not None and mount.type != kind:
                    raise InvalidParameter(f'{name} must not be specified on mount type "{mount.type}"')
        if version < (1, 44) and mount.type == "bind" and bind is not None and bind.read_only_force_recursive:
            raise InvalidParameter("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
        if version < (1, 45) and volume is not None and volume.subpath:
            raise InvalidParameter("VolumeOptions.Subpath needs API v1.45 or newer")


def _mac_address(
    version: tuple[int, int], config: ContainerConfig, host: HostConfig, networking: NetworkingConfig
) -> list[str]:
    """Settle which endpoint has the address that was given for the whole container."""
    endpoints = networking.endpoints_config
    plain = host.network_mode not in ("host", "none") and not host.network_mode.startswith("container:")
    if version < (1, 44):
        if config.mac_address and not plain:
            raise InvalidParameter("conflicting options: mac-address and the network mode")
        if not config.mac_address:
            for settings in endpoints.values():
                if settings is not None:
                    settings.mac_address = ""
        elif endpoints:  # exactly one: it has the address whatever it is called
            endpoints.update({name: (settings or EndpointSettings()) for name, settings in endpoints.items()})
            for settings in endpoints.values():
                assert settings is not None
                settings.mac_address = config.mac_address
        return []
    if not config.mac_address:
        return []
    if not plain:
        config.mac_address = ""
    elif endpoints and host.network_mode not in endpoints:
        raise InvalidParameter(
            "if a container-wide MAC address is supplied, HostConfig.NetworkMode must match the identity of a network in "
            "NetworkSettings.Networks"
        )
    return [MAC_ADDRESS_MOVED]
